"""What the rule costs at full size: plain BART, the rule as encoder prefix, as text and as decoder prefix.

    python benchmarks/newscap_cost.py [ARTICLE_TOKENS] [bart-base|bart-large] [none|prefix|text|decoder]

Random weights, random inputs, one thread, one item per step (AdamW, 32 bit on a CPU); medians of seven steps and of seven
captions; each case in a process of its own, so that peak memory is its own. Prints a line per case; writes `newscap_cost.json` beside it (cases measured before stay).
"""

import json
import subprocess
import sys
from pathlib import Path

from companion import records, tables, training

REPEATS = 7
OUT = Path(__file__).with_suffix(".json")
CASES = {
    "plain": "none",
    "encoder prefix, last 3": "prefix",
    "rule as text": "text",
    "decoder prefix": "decoder",
}


def one(size: str, way: str, article: int) -> None:
    """Measure a case and print its report as JSON."""
    from companion.newscap import cost

    training.seed_everything(0, threads=1)
    cell = tables.cell("newscap", "goodnews", "rule-prefix", "all", "full")
    parameters = dict(cell.parameters) | {"bart": size, "rule": way, "layers": "last3"}
    print(json.dumps(cost.dry_run(parameters, 1, article, REPEATS)))


def main(article: int, sizes: list[str], ways: list[str]) -> None:
    """Measure the cases of `sizes` and `ways`."""
    for size in sizes:
        for title, way in CASES.items():
            if way not in ways:
                continue
            call = [sys.executable, __file__, "--one", size, way, str(article)]
            done = subprocess.run(call, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"{size:<11} {title:<24} {found}", flush=True)
            known = json.loads(OUT.read_text()) if OUT.is_file() else {"cases": {}}
            known["cases"][f"{size}, {title}"] = found
            known |= {"processor": records.processor(), "threads": 1, "versions": records.versions()}
            records.write_json(OUT, known)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["--one"]:
        one(words[1], words[2], int(words[3]))
    else:
        main(
            int((words or ["256"])[0]),
            words[1:2] or ["bart-base", "bart-large"],
            words[2:3] or list(CASES.values()),
        )
