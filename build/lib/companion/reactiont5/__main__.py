"""`python -m companion.reactiont5 predict IN.csv OUT.csv --model NAME` and `... leakage PRETRAINING.csv TEST.csv`."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Run a command; bad input ends with one sentence and exit status 2."""
    top = argparse.ArgumentParser(
        prog="python -m companion.reactiont5", description="predict reactions, look for leaks"
    )
    sub = top.add_subparsers(dest="command", required=True)
    p = sub.add_parser("predict", help="CSV in, CSV out")
    p.add_argument(
        "source", help="CSV with REACTANT (PRODUCT for retrosynthesis); REAGENT, CATALYST, SOLVENT optional"
    )
    p.add_argument("target", help="CSV to write")
    p.add_argument("--model", default="small", help="released name, folder, or small (the book's toy model)")
    p.add_argument("--beams", type=int, default=5)
    p.add_argument("--top", type=int, default=5)
    p.add_argument("--batch-size", type=int, default=32)
    p = sub.add_parser("leakage", help="how much of a test file a pre-training file knows")
    p.add_argument(
        "pretraining",
        help="CSV in the ORD schema (REACTANT, PRODUCT, ...), .pb.gz, .parquet or a folder of them",
    )
    p.add_argument("test", help="the same")
    args = top.parse_args(argv)
    try:
        if args.command == "predict":
            from companion.reactiont5.predict import load, predict_csv

            engine = load(args.model)
            options = {"batch_size": args.batch_size}
            options |= {} if engine.task == "yield" else {"beams": args.beams, "top": args.top}
            print(predict_csv(args.source, args.target, engine, **options))
        else:
            from companion.reactiont5 import leakage
            from companion.reactiont5.ord import read_any

            before, first = read_any(args.pretraining)
            after, second = read_any(args.test)
            print(f"{args.pretraining}: {first}\n{args.test}: {second}\n")
            print(leakage.table(leakage.leakage_report(before, after)))
    except (ValueError, OSError) as error:
        print(f"companion.reactiont5: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
