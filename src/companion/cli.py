"""The command `companion`: list | reproduce | confirm | show | doctor. Heavy imports happen only where they are needed."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from companion import __version__, datasets, records, tables


def sources(paper: str, table: str = "*", scale: str = "*") -> dict[str, list[dict]]:
    """Records of the book (`committed`) and of this machine (`this machine`), where there are any."""
    found = {"committed": records.read(records.evidence_folder(), paper, table, scale)}
    mine = records.read(records.runs_folder(), paper, table, scale)
    return found | ({"this machine": mine} if mine else {})


def list_(args: argparse.Namespace) -> int:
    """Every table: its scales, how many runs fill it, how many of them this machine has."""
    head = ["paper", "table", "title", "scale", "runs", "seeds", "min/run", "here"]
    body = []
    for name in tables.available():
        for table in tables.paper(name).tables.values():
            for scale, at in table.scales.items():
                here = len(records.read(records.runs_folder(), name, table.id, scale))
                body.append([name, table.id, table.title, scale, str(len(table.cells(scale))), str(at.seeds),
                             f"{at.minutes:g}", str(here)])  # fmt: skip
    print(tables.render(head, body), end="")
    return 0


def reproduce(args: argparse.Namespace) -> int:
    """Run what is missing or stale; name what failed."""
    from companion import batch

    names = tables.available() if args.paper == "all" else [args.paper]
    folder = Path(args.record_dir) if args.record_dir else records.runs_folder()
    if args.seeds is not None and args.seeds < 1:
        raise tables.TableError(f"--seeds is {args.seeds}; it counts seeds and starts at 1")
    jobs, there = [], 0
    for name in names:
        wanted = [tables.table(name, args.table)] if args.table else tables.paper(name).tables.values()
        if args.scale not in tables.SCALES:
            raise tables.TableError(f"scale {args.scale!r} does not exist; did you mean "
                                    f"{tables.nearest(args.scale, tables.SCALES)}?")  # fmt: skip
        for table in wanted:
            if args.scale not in table.scales and not args.table:
                continue
            new, old = batch.plan(table, args.scale, rows=args.row, columns=args.column, seeds=args.seeds,
                                  folder=folder, force=args.force)  # fmt: skip
            jobs, there = jobs + new, there + old
    if args.dry_run:
        return _dry_run(jobs, there, args.scale)
    print(f"{there} runs are there, {len(jobs)} to do"
          + (f", about {sum(j.minutes for j in jobs) / args.jobs:.0f} minutes" if jobs else ""), flush=True)  # fmt: skip
    if not jobs:
        return 0
    failed = batch.execute(jobs, workers=args.jobs, profile=args.profile)
    for job in failed:
        print(f"FAILED {job.paper} {job.table} {job.row} × {job.column} seed {job.seed}: {batch.reason(job)}\n"
              f"       executed notebook: {job.notebook}")  # fmt: skip
    print(f"{len(jobs) - len(failed)} of {len(jobs)} runs done; records in {folder}")
    return 1 if failed else 0


def _dry_run(jobs: list, there: int, scale: str) -> int:
    """List what would run; at `full` also build each distinct model with random weights and take one step."""
    body = [[j.paper, j.table, j.row, j.column, str(j.seed), j.why] for j in jobs]
    print(tables.render(["paper", "table", "row", "column", "seed", "why"], body), end="")
    print(f"{there} runs are there, {len(jobs)} would run")
    if scale != "full":
        return 0
    import importlib

    done: dict[str, str] = {}
    for job in jobs:
        cell = tables.cell(job.paper, job.table, job.row, job.column, job.scale)
        key = f"{job.paper} {sorted(cell.parameters.items())}"
        if key in done:
            continue
        try:
            cost = importlib.import_module(f"companion.{job.paper}.cost")
        except ModuleNotFoundError:
            print(f"{job.paper}: no full-size dry run exists yet (companion.{job.paper}.cost)")
            return 1
        report = cost.dry_run(dict(cell.parameters))
        done[key] = ", ".join(f"{k} {v}" for k, v in report.items())
        print(f"{job.paper} {job.table} {job.row} × {job.column}: {done[key]}", flush=True)
    return 0


def confirm(args: argparse.Namespace) -> int:
    """Keep committed records whose code has changed since, where a run of the new code gives the same numbers.

    For every row (of a table at a scale) with records that only a change of code made stale, the quickest is run
    again. Where all its numbers come out the same, times and memory aside, it replaces the old one and vouches
    for the others of its row; where one differs, everything stays stale and the difference is named.
    """
    from companion import batch

    here, evidence = records.commit(), records.evidence_folder()
    if evidence is None or here["commit"] is None or here["dirty"]:
        raise RuntimeError("`companion confirm` needs a checkout without uncommitted changes in src and notebooks: "
                           "a record names the commit that made it")  # fmt: skip
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for record in records.read(evidence, args.paper, args.table or "*", args.scale or "*"):
        run = record["run"]
        try:
            cell = tables.cell(*(run[k] for k in ("paper", "table", "row", "column", "scale")))
        except tables.TableError:
            continue  # a record without a cell is no evidence for anything that is shown
        if (records.stale(record, cell) or "").startswith("made by other code"):
            groups.setdefault((run["table"], run["scale"], run["row"]), []).append(record)
    # a folder per commit: nothing that older code left behind can answer for the new, and a stopped call goes on
    os.environ["COMPANION_RUNS"] = str(records.runs_folder() / f"confirm-{here['commit'][:10]}")
    jobs = []
    for (table, scale, row), found in groups.items():
        run = min(found, key=lambda r: r["provenance"]["wall_s"])["run"]
        new, _ = batch.plan(tables.table(args.paper, table), scale, rows=[row], columns=[run["column"]],
                            seeds=run["seed"] + 1, folder=records.runs_folder())  # fmt: skip
        jobs += [job for job in new if job.seed == run["seed"]]
    stale = sum(map(len, groups.values()))
    print(f"{stale} records are stale by code, {len(groups)} rows, {len(jobs)} runs to do", flush=True)
    failed = batch.execute(jobs, workers=args.jobs, profile="local") if jobs else []
    kept = 0
    for (table, scale, row), found in groups.items():
        old = min(found, key=lambda r: r["provenance"]["wall_s"])
        path = Path(old["path"])
        again = records.runs_folder() / path.relative_to(evidence)
        if not again.is_file():
            print(f"{table} {row} ({scale}): the run left no record")
            continue
        new = records.load(again)
        timed = ("s", "ms", "MiB", "GiB")
        names = [m.id for m in tables.table(args.paper, table).metrics if m.unit not in timed]
        try:
            changed = records.differences(old, new, names)
        except ValueError as problem:
            print(f"{table} {row} ({scale}): {problem}; run it again with `companion reproduce`")
            continue
        if changed:
            print(f"{table} {row} ({scale}): {changed[0]} was {old['metrics'][changed[0]]}, "
                  f"is {new['metrics'].get(changed[0])}; its {len(found)} records stay stale")  # fmt: skip
            continue
        records.write_json(path, new)
        for record in found:
            if record is not old:
                records.confirm(Path(record["path"]), new)
        kept += len(found)
    print(f"{kept} of {stale} records hold for the code as it is now")
    return 1 if failed or kept < stale else 0


def show(args: argparse.Namespace) -> int:
    """Reported beside reproduced."""
    table = tables.table(args.paper, args.table)
    args.scale = args.scale or ("reduced" if "reduced" in table.scales else next(iter(table.scales), "full"))
    if args.scale not in table.scales:
        raise tables.TableError(f"{args.paper} {args.table}: scale {args.scale!r} does not exist; did you mean "
                                f"{tables.nearest(args.scale, table.scales)}?")  # fmt: skip
    head, body = tables.flat(table, args.scale, sources(args.paper, table.id, args.scale))
    if args.format == "text":
        print(
            f"{tables.paper(args.paper).short} – {table.title} ({args.scale} scale; mean ± 95 % interval (seeds))\n"
        )
    print(tables.render(head, body, args.format), end="")
    return 0


def doctor(args: argparse.Namespace) -> int:
    """One screen: versions, GPU, data, weights, and what each scale can run here."""
    import psutil
    import torch

    where = records.commit()
    print(f"companion {__version__}" + (f" at {where['commit'][:10]}" + ("+changes" if where["dirty"] else "")
                                        if where["commit"] else ""))  # fmt: skip
    print("versions   " + ", ".join(f"{k} {v}" for k, v in records.versions().items()))
    memory = psutil.virtual_memory().total / 2**30
    print(f"processor  {records.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB")
    card = records.gpu()
    print("GPU        " + (f"{card['count']} × {card['name']}, {card['memory_gib']} GiB" if card
                           else f"none that torch {torch.__version__} can use"))  # fmt: skip
    base = datasets.data_folder()
    print(f"data       COMPANION_DATA {'is ' + str(base) if base else 'is not set'}")
    for one in datasets.SETS:
        print(f"           {'here   ' if datasets.present(one) else 'missing'}  {one.folder:<10} {one.title}")
    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    weights = sorted(p.name[8:].replace("--", "/") for p in hub.glob("models--*")) if hub.is_dir() else []
    print(f"weights    {', '.join(weights) or 'no hub model is cached here'}")
    print("scales     reduced  runs here: data are made or shipped, 2 cores are enough")
    here = [one for one in datasets.SETS if datasets.present(one)]
    ready = sorted({p for one in here for p in one.papers})
    print(f"           real     {'runs here for ' + ', '.join(ready) if ready else 'needs COMPANION_DATA'}")
    print("           full     " + ("a GPU is here; each table names the data and weights it lacks when it starts"
                                    if card else "needs a GPU, the papers' data and weights; "
                                    "`companion reproduce PAPER --scale full --dry-run` builds the models here"))  # fmt: skip
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="companion", description="Large Pre-trained Models, Six Ways: tables and runs"
    )
    top.add_argument("--version", action="version", version=__version__)
    sub = top.add_subparsers(dest="command", required=True)
    sub.add_parser("list", help="every table and what it takes").set_defaults(call=list_)
    p = sub.add_parser("reproduce", help="run what a table still lacks")
    p.add_argument("paper", help="a paper's name, or all")
    p.add_argument("table", nargs="?", help="one table (default: all of the paper)")
    p.add_argument("--row", action="append", default=[], help="only this row (repeatable)")
    p.add_argument("--column", action="append", default=[], help="only this column (repeatable)")
    p.add_argument("--scale", default="reduced", help="reduced, real or full")
    p.add_argument("--seeds", type=int, help="number of seeds, from 0 (default: the table's)")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: cores)")
    p.add_argument("--profile", default="local", help="local or slurm, a folder of workflow/profiles")
    p.add_argument("--record-dir", help="folder for records (default: runs/ of the checkout)")
    p.add_argument("--force", action="store_true", help="run again what is there")
    p.add_argument(
        "--dry-run", action="store_true", help="say what would run; at full, build the models and take a step"
    )
    p.set_defaults(call=reproduce)
    p = sub.add_parser(
        "confirm", help="maintainers: keep evidence over a change of code that leaves its numbers as they are"
    )
    p.add_argument("paper")
    p.add_argument("table", nargs="?", help="one table (default: all of the paper)")
    p.add_argument("--scale", help="reduced, real or full (default: all)")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: cores)")
    p.set_defaults(call=confirm)
    p = sub.add_parser("show", help="reported beside reproduced")
    p.add_argument("paper")
    p.add_argument("table")
    p.add_argument("--scale", help="reduced, real or full; default: the smallest that the table has")
    p.add_argument("--format", default="text", help="text, markdown, csv or latex")
    p.set_defaults(call=show)
    sub.add_parser("doctor", help="what this machine has and can run").set_defaults(call=doctor)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; a wrong name or missing data ends with one sentence and exit status 2."""
    args = parser().parse_args(argv)
    try:
        return args.call(args)
    except (tables.TableError, datasets.DataMissing, RuntimeError, ValueError) as error:
        print(f"companion: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("companion: stopped; finished runs are kept, the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
