"""DG-SCT's training step at the published batch sizes, in memory that one machine has.

    python benchmarks/dgsct_batch.py                     # every task; about 40 minutes on one CPU thread
    python benchmarks/dgsct_batch.py --tasks ave avs-ms3

The paper's models with random weights and fused units. For each task one step on the published batch with the
activations of units and layers recomputed (`companion.dgsct.memory`), and one on a single video both ways, which
shows what recomputing costs and saves. For the tasks in `COMPARED` frozen late fusion and LAVISH* (its units fused, too)
take their step on the published batch right after DG-SCT's; no gradient passes the towers of late fusion, so it has
nothing to recompute. Every step has a process of its own, so that its peak memory is its own; steps that the JSON file
beside this one already holds are not taken again (`--again` takes those of the chosen tasks).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import torch

from companion import records
from companion.dgsct import cost, fast, full, memory

STORE = Path(__file__).with_suffix(".json")
TASKS = ["ave", "avvp", "avqa", "avs-s4", "avs-ms3", "few-shot"]
COMPARED = ("ave", "avs-ms3")
RIVALS = {"lavish": "LAVISH*", "late-fusion": "late fusion"}


def step(task: str, variant: str, batch: int, recompute: bool, threads: int) -> dict[str, Any]:
    """One training step: seconds, peak memory in MiB and the loss before it."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    masks = task.startswith("avs")
    segments, size, hops = (
        (5 if masks else 10),
        (192 if task in cost.HEADS else 224),
        (501 if masks else 1001),
    )
    model = fast.fuse(cost.step_model(task, variant))
    if recompute:
        memory.checkpoint_activations(model)
    model.to(device).train()
    example = cost.targets(task, batch, segments, device) | {
        "images": torch.randn(batch, segments, 3, size, size, device=device),
        "sounds": torch.randn(batch, segments, 1, hops, 64, device=device),
    }
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4)
    start = cost._now(device)
    loss = model.loss(example, 1)
    loss.backward()
    optimizer.step()
    seconds, peak = cost._now(device) - start, records.peak_memory()
    return {"step s": round(seconds, 1), "s per video": round(seconds / batch, 1),
            "peak MiB": round(peak["device_mib"] or peak["rss_mib"]), "loss": round(float(loss.detach()), 4)}  # fmt: skip


def main() -> None:
    """Take the steps, one process each, and store every result as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="take again what is stored")
    args = parser.parse_args()
    found = json.loads(STORE.read_text()) if STORE.is_file() else {"steps": {}}
    if args.again:
        found["steps"] = {k: v for k, v in found["steps"].items() if k.split(",")[0] not in args.tasks}
    for task in args.tasks:
        published = full.PROTOCOLS[task].batch
        wanted = [("dg-sct", 1, False), ("dg-sct", 1, True), ("dg-sct", published, True)]
        if task in COMPARED:
            wanted += [("lavish", published, True), ("late-fusion", published, False)]
        for variant, batch, recompute in wanted:
            who = f", {RIVALS[variant]}" if variant in RIVALS else ""
            name = f"{task}{who}, {batch} video{'s' * (batch > 1)}, {'recomputed' if recompute else 'kept'}"
            if name in found["steps"]:
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                one = pool.apply(step, (task, variant, batch, recompute, args.threads))
            found["steps"][name] = {"videos": batch, "recomputed": recompute, **one}
            print(name, one, flush=True)
            found["steps"] = dict(
                sorted(found["steps"].items(), key=lambda x: TASKS.index(x[0].split(",")[0]))
            )
            found |= {"threads": args.threads, "processor": records.processor(), "gpu": records.gpu(),
                      "versions": records.versions()}  # fmt: skip
            records.write_json(STORE, found)


if __name__ == "__main__":
    main()
