"""The built book: links that lead somewhere, pictures that can be read aloud, buttons that open the right notebook.

`make test` builds the book before these run; without a build they are skipped, except on CI.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

from companion import records, tables

ROOT = records.checkout()
HTML = ROOT / "_build" / "html"
PAGES = sorted(p for p in HTML.rglob("*.html") if "_static" not in p.parts)

pytestmark = pytest.mark.skipif(not (HTML / "index.html").is_file() and not os.environ.get("CI"),
                                reason="no built book; run make book")  # fmt: skip


@pytest.fixture(scope="module")
def soups():
    return {p: BeautifulSoup(p.read_text(encoding="utf-8"), "lxml") for p in PAGES}


def test_every_page_of_the_contents_was_built():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    named = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    assert [n for n in named if not (HTML / f"{n}.html").is_file()] == []
    for name in tables.available():
        assert f"book/papers/{name}" in named
        assert f"book/results/{name}" in named
        assert f"notebooks/{name}/method" in named


def test_internal_links_lead_somewhere(soups):
    broken = []
    anchors = {p.resolve(): {t.get("id") for t in s.find_all(id=True)} for p, s in soups.items()}
    for page, soup in soups.items():
        for tag, key in [(t, "href") for t in soup.find_all(href=True)] + [
            (t, "src") for t in soup.find_all(src=True)
        ]:
            link = urlsplit(tag[key])
            if link.scheme or link.netloc or (tag[key].startswith(("#", "mailto:")) and tag.name == "link"):
                continue
            target = (page.parent / unquote(link.path)).resolve() if link.path else page.resolve()
            if target.is_dir():
                target = target / "index.html"
            if not target.exists():
                broken.append(f"{page.relative_to(HTML)}: {tag[key]}")
            elif (
                link.fragment
                and target in anchors
                and unquote(link.fragment) not in anchors[target] | {"", "top"}
            ):
                broken.append(f"{page.relative_to(HTML)}: {tag[key]} (no such place)")
    assert broken == []


def test_every_picture_has_a_text(soups):
    bad = [f"{p.relative_to(HTML)}: {i.get('src')}" for p, s in soups.items() for i in s.find_all("img")
           if not i.get("alt") or "_images/" in i["alt"]]  # fmt: skip
    assert bad == []


def test_colab_buttons_open_a_notebook_of_the_repository(soups):
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    found = 0
    for soup in soups.values():
        for a in soup.find_all("a", href=re.compile("colab.research.google.com")):
            found += 1
            where = config["url"].removeprefix("https://github.com/")
            path = a["href"].split(f"/github/{where}/blob/{config['branch']}/")[1]
            assert path.endswith(".ipynb")
            assert (ROOT / path).is_file()
    assert found >= 2


def test_no_page_shows_directives_or_errors(soups):
    for page, soup in soups.items():
        text = soup.get_text()
        assert "Traceback (most recent call last)" not in text, page
        assert ":::{" not in text, page


def test_results_pages_follow_the_toml():
    done = subprocess.run(
        [sys.executable, "workflow/pages.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_every_table_of_every_paper_is_shown(soups):
    for name in tables.available():
        # headings get typographic apostrophes
        text = soups[HTML / "book" / "results" / f"{name}.html"].get_text().replace("’", "'")
        for table in tables.paper(name).tables.values():
            assert table.title in text


def test_the_book_is_newer_than_its_sources():
    built = (HTML / "index.html").stat().st_mtime
    late = [str(p.relative_to(ROOT)) for folder in ("book", "notebooks") for p in (ROOT / folder).rglob("*.md")
            if p.stat().st_mtime > built]  # fmt: skip
    assert late == []


def test_jupyter_book_is_one():
    from importlib.metadata import version

    assert int(version("jupyter-book").split(".")[0]) == 1
    assert isinstance(HTML, Path)


def test_the_list_of_references_is_labelled_as_the_text_cites(soups):
    labels = [
        one.get_text().strip("[]") for one in soups[HTML / "book/references.html"].select(".citation .label")
    ]
    assert len(labels) > 20
    assert [one for one in labels if not re.fullmatch(r"\D+, \d{4}[a-z]?", one)] == []
    assert len(set(labels)) == len(labels)


def test_api_pages_have_a_heading_per_module_and_no_empty_entries(soups):
    for name in ("shared", *tables.available()):
        page = soups[HTML / "book" / "api" / f"{name}.html"]
        assert "Alias for field number" not in page.get_text()
        modules = re.findall(r"automodule:: (\S+)", (ROOT / "book" / "api" / f"{name}.md").read_text())
        assert [h.get_text().rstrip("#") for h in page.select("article h2")] == modules
