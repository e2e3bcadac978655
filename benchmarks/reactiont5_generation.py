"""Beam search of ReactionT5: this package's batches against one `generate` call per row, as the official script does.

    python benchmarks/reactiont5_generation.py [ROWS]

Same weights (the chapter's small forward model), same inputs, beam 5. The official script pads every input to a fixed
length (150 here) and calls transformers' `generate` on batches of 5 by default; shown are batches of 1 and of 5.
Prints rows per second of processor time on one thread (so that other work on the machine does not count), the ratios,
and whether all sequences agree; writes `reactiont5_generation.json` beside it.
"""

import sys
import time
from pathlib import Path

import torch

from companion import records, training
from companion.reactiont5 import hub, pretrain, train
from companion.reactiont5.beam import beam_search
from companion.reactiont5.model import EOS, PAD

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 120
MOST = 52


def trimmed(sequence: list[int]) -> list[int]:
    """Without start token, </s> and what follows."""
    sequence = sequence[1:]
    return sequence[: sequence.index(EOS)] if EOS in sequence else [t for t in sequence if t != PAD]


def theirs(model, ids: list[list[int]], batch: int) -> list[list[int]]:
    """transformers' generate on inputs padded to 150."""
    found = []
    for k in range(0, len(ids), batch):
        block = train.padded(ids[k : k + batch])
        block = torch.nn.functional.pad(block, (0, 150 - block.shape[1]))
        out = model.generate(input_ids=block, attention_mask=block.ne(PAD).long(), num_beams=5, num_return_sequences=5,
                             min_length=1, max_length=MOST, do_sample=False)  # fmt: skip
        found += [trimmed(s) for s in out.tolist()]
    return found


def ours(model, ids: list[list[int]], batch: int = 32) -> list[list[int]]:
    """Sorted by length, batched, finished inputs leave."""
    found: list = [None] * len(ids)
    order = sorted(range(len(ids)), key=lambda k: len(ids[k]))
    for k in range(0, len(order), batch):
        part = order[k : k + batch]
        for row, group in zip(
            part, beam_search(model, train.padded([ids[i] for i in part]), 5, MOST)[0], strict=True
        ):
            found[row] = group
    return [s for group in found for s in group]


def main() -> None:
    """Measure and report."""
    training.seed_everything(0, threads=1)
    _, held_back = train.seen_reactions()
    ids = train.forward_pairs(held_back, train.tokenizer()).ids[:ROWS]
    model = pretrain.small_model("reaction").eval()
    library = hub.to_transformers(model)
    ways: dict[str, dict[str, float]] = {}
    report, answers = {"rows": len(ids), "beams": 5, "threads": 1, "processor": records.processor()}, {}
    for name, call in (("ours, batches of 32", lambda: ours(model, ids)), ("generate, one at a time", lambda: theirs(library, ids, 1)),
                       ("generate, batches of 5", lambda: theirs(library, ids, 5))):  # fmt: skip
        began, wall = time.process_time(), time.perf_counter()
        answers[name] = call()
        took = time.process_time() - began
        ways[name] = {
            "rows per core-second": round(len(ids) / took, 2),
            "wall seconds": round(time.perf_counter() - wall, 2),
        }
        print(f"{name:<26} {ways[name]['rows per core-second']:8.2f} rows per core-second", flush=True)
    first = answers["ours, batches of 32"]
    report["identical"] = all(first == other for other in answers.values())
    report["different sequences"] = sum(
        a != b for a, b in zip(first, answers["generate, one at a time"], strict=True)
    )
    rate = {name: way["rows per core-second"] for name, way in ways.items()}
    for name in ("one at a time", "batches of 5"):
        report[f"times faster than {name}"] = round(
            rate["ours, batches of 32"] / rate[f"generate, {name}"], 1
        )
    report["ways"] = ways
    print(report)
    records.write_json(Path(__file__).with_suffix(".json"), report | {"versions": records.versions()})


if __name__ == "__main__":
    main()
