"""One image and one article to a caption and the rule it followed: `python -m companion.newscap --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from companion.newscap import corpus, data
from companion.newscap.pipeline import NewsCaptioner
from companion.newscap.rule import Rule


def main(argv: list[str] | None = None) -> int:
    """Write the caption, its rule and the audit; what is wrong is said in one sentence, with exit status 2."""
    top = argparse.ArgumentParser(
        prog="python -m companion.newscap", description="Caption an image with its article."
    )
    top.add_argument(
        "folder", help="a trained captioner: what pipeline.save_pretrained or the notebook news wrote"
    )
    top.add_argument("image", help="JPEG or PNG file")
    top.add_argument("article", help="text file (UTF-8)")
    top.add_argument("--rule", help="file with a designated rule in JSON (as printed by this command)")
    top.add_argument(
        "--edit", action="append", default=[], metavar="ROLE=NAME", help="edit the rule: verb=..., or a role"
    )
    top.add_argument(
        "--coformer", help="checkout of CoFormer with CoFormer_checkpoint.pth in it (situations)"
    )
    top.add_argument("--draw", help="picture file to write: the rule drawn on the image")
    args = top.parse_args(argv)
    try:
        edit = dict(part.split("=", 1) for part in args.edit)
    except ValueError:
        top.error(f"--edit takes ROLE=NAME, such as place=Corvo; got {' '.join(args.edit)}")
    try:
        article = Path(args.article).read_text(encoding="utf-8")
        rule = Rule.from_json(Path(args.rule).read_text(encoding="utf-8")) if args.rule else None
        situation = corpus.coformer(Path(args.coformer)) if args.coformer else None
        captioner = NewsCaptioner.from_pretrained(args.folder, situation=situation)
        got = captioner.caption(args.image, article, rule=rule, edit=edit or None)
    except (ValueError, OSError) as error:
        print(f"companion.newscap: {error}", file=sys.stderr)
        return 2
    print(got.caption)
    print(got.rule.to_json() if got.rule else "no rule")
    for support in got.audit(article, captioner.names):
        print(
            f"  {support.text} ({support.type}): {support.by}" + (f", {support.role}" if support.role else "")
        )
    if args.draw and got.rule:
        axes = got.rule.show(data.open_image(args.image))
        axes.figure.savefig(args.draw, bbox_inches="tight")
    if got.note:
        print(got.note, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
