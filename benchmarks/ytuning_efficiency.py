"""Y-Tuning's cost beside other ways to tune: step time, examples per second, peak memory, cost per epoch.

    python benchmarks/ytuning_efficiency.py                                   # MiniLM's shape, this machine's CPU
    python benchmarks/ytuning_efficiency.py --backbone deberta-v2-xxlarge --precision bfloat16   # a GPU

Random weights of the model's exact shape; each method runs in a process of its own, so that its peak memory is its
own. The one-off feature pass is a forward pass without gradients over the training set; `break-even` is the number
of epochs after which it has paid for itself against that row. Prints a table and the four targets with what was
found; `--out` also writes everything as JSON (`ytuning_efficiency.json` beside this file is such a run).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from companion import records
from companion.ytuning import cost

DEFAULT = ("y-tuning-cached", "y-tuning", "linear-mean", "ladder", "lora", "bitfit", "fine-tuning")
# ratio to full fine-tuning: the figure, and which side of it is asked for
TARGETS = {"speed y-tuning-cached": (20.0, "at least"), "memory y-tuning-cached": (0.10, "at most"),
           "speed y-tuning": (2.5, "at least"), "memory y-tuning": (0.40, "at most")}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="minilm", help=", ".join(cost.SHAPES))
    parser.add_argument("--methods", nargs="+", default=DEFAULT, help=", ".join(cost.METHODS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument(
        "--examples", type=int, default=8551, help="training examples per epoch (default: CoLA's)"
    )
    parser.add_argument("--device", default=None)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path, help="also write the numbers here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = {name: getattr(args, name) for name in ("batch", "tokens", "steps", "device", "precision")}
    found = cost.compare(args.backbone, tuple(args.methods), examples=args.examples, **options)
    print(f"{args.backbone}, batch {args.batch} x {args.tokens} tokens, {args.precision}; an epoch is {args.examples} "
          f"examples; the feature pass takes {found['feature_pass_s']:.1f} s once")  # fmt: skip
    print(
        f"{'method':<18}{'trained':>12}{'share':>8}{'step ms':>10}{'ex/s':>9}{'peak MiB':>10}{'epoch s':>9}{'break-even':>12}"
    )
    for method, row in found["rows"].items():
        peak = "–" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        pays = f"{row['break_even_epochs']:.2f}" if "break_even_epochs" in row else "–"
        print(f"{method:<18}{row['trainable']:>12,}{row['share']:>7.2f}%{row['step_ms']:>10.1f}"
              f"{row['examples_per_s']:>9.1f}{peak:>10}{row['epoch_s']:>9.1f}{pays:>12}")  # fmt: skip
    for name, (bound, side) in TARGETS.items():
        if (value := found["ratios"].get(name)) is not None:
            met = value >= bound if side == "at least" else value <= bound
            print(
                f"{name} / fine-tuning: {value:.3g}, target {side} {bound:g}: {'met' if met else 'not met'}"
            )
    if args.out:
        records.write_json(args.out, {"options": {k: v for k, v in vars(args).items() if k != "out"}, **found,
                                      "versions": records.versions(), "processor": records.processor(),
                                      "gpu": records.gpu()})  # fmt: skip


if __name__ == "__main__":
    main()
