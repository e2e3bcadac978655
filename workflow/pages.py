"""Write book/results/<paper>.md from the TOML files: one executed cell per table.

Sections written by hand (`workflow/pages/<paper>.md`) stand before the claims. `--check` only compares.
"""

import sys
from pathlib import Path

from companion import tables

ROOT = Path(__file__).resolve().parent.parent
HEAD = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
mystnb:
  execution_mode: force
---

# {short}: results

Every cell shows what was **reported** (small numbers lead to where it was read, below the table; *unknown* where
nobody could read it) and what **our runs** gave: the mean over seeds with its {{term}}`95 % interval` and the number of
seeds, linked to a {{term}}`record`; without ±, all seeds gave the same number. *Not run* and
{{term}}`stale` mean what they say. A number at the reduced or real scale says nothing about the paper's own numbers;
only the `full` {{term}}`scale` can reproduce those.

```{{code-cell}}
:tags: [remove-input]
from companion import report
```
"""
TABLE = """
## {title}

```{{code-cell}}
:tags: [remove-input]
report.table("{paper}", "{table}")
```
"""
FOOT = """
## Claims

```{{code-cell}}
:tags: [remove-input]
report.claims(["{paper}"])
```
"""


def page(name: str) -> str:
    """The results page of one paper."""
    paper = tables.paper(name)
    parts = [HEAD.format(short=paper.short)]
    parts += [TABLE.format(title=t.title, paper=name, table=t.id) for t in paper.tables.values()]
    more = ROOT / "workflow" / "pages" / f"{name}.md"
    if more.is_file():
        parts.append(more.read_text(encoding="utf-8"))
    return "".join(parts) + FOOT.format(paper=name)


def main() -> int:
    """Write the pages, or with --check name those that are out of step."""
    old = 0
    for name in tables.available():
        path = ROOT / "book" / "results" / f"{name}.md"
        text = page(name)
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                print(f"{path.relative_to(ROOT)} is out of step with the TOML; run python workflow/pages.py")
                old += 1
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
