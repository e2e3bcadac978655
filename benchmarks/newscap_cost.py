"""What the rule costs at full size: plain BART, the rule as encoder prefix, as text and as decoder prefix.

    python benchmarks/newscap_cost.py [ARTICLE_TOKENS] [bart-base|bart-large ...]

Random weights, random inputs, one thread, one item per step (AdamW, 32 bit on a CPU); each case in a process of its own,
so that peak memory is its own. Prints a line per case; writes `newscap_cost.json` beside it (cases measured before stay).
"""

import json
import subprocess
import sys
from pathlib import Path

from companion import records, tables, training

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
    print(json.dumps(cost.dry_run(parameters, 1, article)))


def main(article: int, sizes: list[str]) -> None:
    """Measure all cases of `sizes`."""
    known = json.loads(OUT.read_text()) if OUT.is_file() else {"cases": {}}
    for size in sizes:
        for title, way in CASES.items():
            call = [sys.executable, __file__, "--one", size, way, str(article)]
            done = subprocess.run(call, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            known["cases"][f"{size}, {title}"] = found
            print(f"{size:<11} {title:<24} {found}", flush=True)
            known |= {"processor": records.processor(), "threads": 1, "versions": records.versions()}
            records.write_json(OUT, known)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(int((sys.argv[1:] or ["256"])[0]), sys.argv[2:] or ["bart-base", "bart-large"])
