"""Fill in the address of the repository that publishes the book: `python workflow/publish.py OWNER/REPOSITORY`.

Writes it into `_config.yml` (buttons of the book) and into the set-up cell of every notebook (Colab installs the
package from there). The publishing workflow runs this on the branch `published`, which Colab opens; on other
branches the address stays empty, so that a fork's book opens the fork's notebooks.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Replace the placeholder in the working tree."""
    if len(sys.argv) != 2 or not re.fullmatch(r"[\w.-]+/[\w.-]+", sys.argv[1]):
        print("usage: python workflow/publish.py OWNER/REPOSITORY")
        return 2
    address = f"https://github.com/{sys.argv[1]}"
    config = ROOT / "_config.yml"
    text, changed = re.subn(r"(?m)^(  url: )\S+", rf"\g<1>{address}", config.read_text(encoding="utf-8"))
    if changed != 1:
        print("_config.yml: the line 'url:' of the repository was not found once")
        return 1
    config.write_text(text, encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*/*.*")):
        if path.suffix not in (".py", ".ipynb"):
            continue
        # inside .ipynb the quotes are escaped
        text = path.read_text(encoding="utf-8")
        for quote in ('"', r"\""):
            text = text.replace(
                f"REPOSITORY = {quote}{quote}", f"REPOSITORY = {quote}{address}@published{quote}"
            )
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
