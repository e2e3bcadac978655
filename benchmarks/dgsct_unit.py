"""Time per training step of DG-SCT's units against a plain transcription of the published operations.

    python benchmarks/dgsct_unit.py [--task ave] [--frames 10] [--repeats 3] [--threads 1] [--stages 3 4]

Both hold the same weights; outputs and gradients are compared before anything is timed (`companion.dgsct.plain`). Writes `dgsct_unit.json` beside it.
"""

import argparse
from pathlib import Path

import torch

from companion import records
from companion.dgsct import plain


def main() -> None:
    """Print a line per kind of unit, and the ratio over all units of the stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="ave")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2, 3, 4])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{args.task}, {args.frames} frames, {device}, {args.threads} thread(s), torch {torch.__version__}")
    found = {}
    for stage in args.stages:
        for side in ("visual", "audio"):
            one = plain.compare(args.task, stage, side, args.frames, args.repeats, device)
            found[stage, side] = one
            print(f"stage {stage} {side:6}  plain {one['plain_ms']:8.1f} ms  ours {one['ours_ms']:8.1f} ms  "
                  f"ratio {one['ratio']:.2f}  outputs differ by {one['output']:.1e}, "
                  f"gradients by {one['gradient']:.1e}", flush=True)  # fmt: skip
    whole = plain.summary(found)
    print(f"all units of these stages: ratio {whole['ratio']:.2f}")
    units = {
        f"stage {stage}, {side}": {name: float(f"{value:.4g}") for name, value in one.items()}
        for (stage, side), one in found.items()
    }
    records.write_json(Path(__file__).with_suffix(".json"), {
        "units": units,
        "ratio over all units": round(whole["ratio"], 3), "target: at least": 1.5, "frames": args.frames,
        "task": args.task, "threads": args.threads, "processor": records.processor(), "gpu": records.gpu(),
        "versions": records.versions()})  # fmt: skip


if __name__ == "__main__":
    main()
