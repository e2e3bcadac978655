"""`python -m companion.reactiont5 COMMAND`: predict, leakage, molecules (stage 1) and train (stage 2, fine-tuning)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

FILE = "CSV in the ORD schema (REACTANT, PRODUCT, ...), .pb.gz, .parquet or a folder of them"


def main(argv: list[str] | None = None) -> int:
    """Run a command; bad input ends with one sentence and exit status 2."""
    top = argparse.ArgumentParser(
        prog="python -m companion.reactiont5",
        description="predict reactions, train on your own, look for leaks",
    )
    sub = top.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        p = sub.add_parser(name, help=text, description=text)
        p.set_defaults(run=run)
        return p

    p = command("predict", _predict, "CSV in, CSV out")
    p.add_argument(
        "source", help="CSV with REACTANT (PRODUCT for retrosynthesis); REAGENT, CATALYST, SOLVENT optional"
    )
    p.add_argument("target", help="CSV to write")
    p.add_argument(
        "--model",
        default="small",
        help="released name, folder, or small, small-forward, small-retrosynthesis",
    )
    p.add_argument(
        "--task", default="", help="forward, retrosynthesis or yield, where a folder does not say so"
    )
    p.add_argument("--beams", type=int, default=5)
    p.add_argument("--top", type=int, default=5)
    p.add_argument("--batch-size", type=int, default=32)
    p = command("leakage", _leakage, "how much of a test file a pre-training file knows")
    p.add_argument("pretraining", help=FILE)
    p.add_argument("test", help="the same")
    p = command("molecules", _molecules, "stage 1: span corruption on SMILES")
    p.add_argument("source", help=".smi (SMILES first on each line) or CSV with a column SMILES")
    p.add_argument("folder", help="checkpoint to write; a stopped training goes on")
    p.add_argument("--size", default="base", help="base (published), small or tiny")
    p.add_argument("--own-vocabulary", action="store_true", help="train the pieces on these molecules")
    _plan(p)
    p = command("train", _train, "stage 2 or fine-tuning on reactions")
    p.add_argument("source", help=FILE)
    p.add_argument("folder", help="checkpoint to write; a stopped training goes on")
    p.add_argument(
        "--start", required=True, help="folder of stage 1 or of a model, released name, small..., or scratch"
    )
    p.add_argument("--task", default="", help="forward, retrosynthesis or yield; default: that of the start")
    p.add_argument("--start-task", default="", help="task of a start folder that does not say it")
    p.add_argument(
        "--tests", default="", help="file whose reactions must not be learned: same reactants and product"
    )
    p.add_argument("--examples", type=int, default=0, help="use so many reactions only (0: all)")
    p.add_argument("--size", default="base", help="of --start scratch: base, small or tiny")
    _plan(p)
    args = top.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"companion.reactiont5: {error}", file=sys.stderr)
        return 2
    return 0


def _plan(p: argparse.ArgumentParser) -> None:
    for name, kind in (("epochs", int), ("lr", float), ("batch", int), ("precision", str)):
        p.add_argument(f"--{name}", type=kind, help="default: the authors' setting")
    p.add_argument("--seed", type=int, default=0)


def _planned(plan, args: argparse.Namespace):
    given = {name: getattr(args, name) for name in ("epochs", "lr", "batch", "precision")}
    return replace(plan, **{name: value for name, value in given.items() if value is not None})


def _predict(args: argparse.Namespace) -> None:
    from companion.reactiont5.prediction import predict_csv

    options = {"batch_size": args.batch_size, "beams": args.beams, "top": args.top}
    print(predict_csv(args.source, args.target, args.model, args.task, **options))


def _leakage(args: argparse.Namespace) -> None:
    from companion.reactiont5 import leakage
    from companion.reactiont5.ord import read_any

    before, first = read_any(args.pretraining)
    after, second = read_any(args.test)
    print(f"{args.pretraining}: {first}\n{args.test}: {second}\n")
    print(leakage.table(leakage.leakage_report(before, after)))


def _molecules(args: argparse.Namespace) -> None:
    from companion.reactiont5 import stages

    smiles, report = stages.read_molecules(args.source)
    print(f"{args.source}: {report}")
    stages.pretrain_molecules(smiles, args.folder, size=args.size, plan=_planned(stages.MOLECULES, args),
                              own_vocabulary=args.own_vocabulary, seed=args.seed)  # fmt: skip
    print(f"written: {args.folder}")


def _train(args: argparse.Namespace) -> None:
    from companion.reactiont5 import stages
    from companion.reactiont5.ord import read_any
    from companion.reactiont5.prediction import load

    start = (
        stages.fresh(args.size, args.seed) if args.start == "scratch" else load(args.start, args.start_task)
    )
    task = args.task or start.task
    rows, report = read_any(args.source, task)
    print(f"{args.source}: {report}")
    tests = read_any(args.tests)[0] if args.tests else []
    plans = stages.FINE_TUNING if start.task == task else stages.PRETRAINING
    plan = _planned(plans[task], args) if task in plans else None
    _, report = stages.train_reactions(rows, args.folder, start=start, task=task, plan=plan, tests=tests,
                                       examples=args.examples, seed=args.seed)  # fmt: skip
    print(f"training: {report}\nwritten: {args.folder}")


if __name__ == "__main__":
    sys.exit(main())
