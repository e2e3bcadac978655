"""Y-Tuning's cost beside other ways to tune: step time, examples per second, peak memory, cost per epoch.

    python benchmarks/ytuning_efficiency.py                                   # MiniLM's shape, this machine's CPU
    python benchmarks/ytuning_efficiency.py --backbone deberta-v2-xxlarge --tokens 128 --precision bfloat16   # a GPU

Random weights of the model's exact shape; each method runs in a process of its own, so that its peak memory is its
own. The one-off feature pass is a forward pass without gradients over the training set; `break-even` is the number
of epochs after which it has paid for itself against that row.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

from companion import records
from companion.ytuning import cost


def forward_only(queue, backbone: str, batch: int, tokens: int, device: str | None, precision: str) -> None:
    """Examples per second of the feature pass."""
    import torch

    from companion.ytuning.frozen import hidden_states

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with place, torch.inference_mode():
        model = cost.build(backbone).to(getattr(torch, precision)).eval()
        ids = torch.randint(5, cost.shape(backbone).vocabulary, (batch, tokens))
        pad = torch.zeros(batch, tokens, dtype=torch.bool)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            hidden_states(model, ids, pad)[-1].sum().item()
            times.append(time.perf_counter() - began)
    queue.put(batch / min(times[1:]))


def one(queue, method: str, options: dict) -> None:
    """`cost.measure` in this process; what went wrong comes back as text."""
    try:
        queue.put(cost.measure(method, **options))
    except (RuntimeError, ValueError) as error:
        queue.put(str(error).splitlines()[0])


def apart(target, *args):
    """Run `target(queue, *args)` in a fresh process and return what it puts."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=target, args=(queue, *args))
    process.start()
    found = queue.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="minilm", help=", ".join(cost.SHAPES))
    parser.add_argument("--methods", nargs="+", default=["y-tuning-cached", "y-tuning", "linear-mean", "ladder",
                                                         "fine-tuning", "lora", "bitfit"])  # fmt: skip
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--examples", type=int, default=8551, help="training examples per epoch (default: CoLA's)"
    )
    parser.add_argument("--device", default=None)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path, help="also write the numbers here, as JSON")
    args = parser.parse_args()
    options = {
        name: getattr(args, name) for name in ("backbone", "batch", "tokens", "steps", "device", "precision")
    }
    feature_pass = args.examples / apart(
        forward_only, args.backbone, args.batch, args.tokens, args.device, args.precision
    )
    rows = {method: apart(one, method, options) for method in args.methods}
    cached = rows.get("y-tuning-cached")
    print(f"{args.backbone}, batch {args.batch} x {args.tokens} tokens, {args.precision}; an epoch is {args.examples} "
          f"examples; the feature pass takes {feature_pass:.1f} s once")  # fmt: skip
    print(
        f"{'method':<18}{'trained':>12}{'share':>8}{'step ms':>10}{'ex/s':>9}{'peak MiB':>10}{'epoch s':>9}{'break-even':>12}"
    )
    for method, found in rows.items():
        if isinstance(found, str):
            print(f"{method:<18}{found}")
            continue
        epoch = args.examples / found["examples_per_s"]
        found["epoch_s"] = epoch
        pays = "–"
        if isinstance(cached, dict) and method != "y-tuning-cached" and cached["epoch_s"] < epoch:
            found["break_even_epochs"] = cost.break_even(feature_pass, cached["epoch_s"], epoch)
            pays = f"{found['break_even_epochs']:.2f}"
        peak = "–" if found["peak_mib"] is None else f"{found['peak_mib']:.0f}"
        print(f"{method:<18}{found['trainable']:>12,}{found['share']:>7.2f}%{found['step_ms']:>10.1f}"
              f"{found['examples_per_s']:>9.1f}{peak:>10}{epoch:>9.1f}{pays:>12}")  # fmt: skip
    if args.out:
        records.write_json(args.out, {"options": {k: v for k, v in vars(args).items() if k != "out"},
                                      "feature_pass_s": feature_pass, "rows": rows, "versions": records.versions(),
                                      "processor": records.processor(), "gpu": records.gpu()})  # fmt: skip


if __name__ == "__main__":
    main()
