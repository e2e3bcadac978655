"""Readers on small files in exactly the public formats, written here; contexts against the published loops."""

import json

import pytest

from companion.newscap import data as d


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_goodnews(tmp_path):
    write(tmp_path / "captioning_dataset.json", {
        "4fd2a7": {"images": {"0": "Ana Torres in <b>Corvo</b>. [Photo desk]", "3": "Leo Park &amp; friends"},
                   "headline": {"main": "A meeting"}, "article": "One two three.\n\nFour five.", "article_url": "u"},
        "4fd2a8": {"images": {"1": "Not in any split"}, "headline": {"main": "x"}, "article": "y"}})  # fmt: skip
    write(tmp_path / "img_splits.json", {"4fd2a7_0": "train", "4fd2a7_3": "val"})
    items = list(d.goodnews(tmp_path))
    assert [(i.id, i.split, i.caption) for i in items] == [
        ("4fd2a7_0", "train", "Ana Torres in Corvo."), ("4fd2a7_3", "valid", "Leo Park & friends")]  # fmt: skip
    assert items[0].context == "A meeting\n\nOne two three.\n\nFour five."
    assert items[0].image.endswith("4fd2a7_0.jpg")
    # the published rule splits at single spaces, so a word may hold line breaks
    assert next(d.goodnews(tmp_path, most_words=3)).context == "A meeting\n\nOne two"
    assert [i.id for i in d.goodnews(tmp_path, "valid")] == ["4fd2a7_3"]


def section(kind, text, **more):
    return {"type": kind, "text": text, **more}


SECTIONS = [section("paragraph", "p0 first"), section("paragraph", "p1 a"), section("caption", "The caption", hash="h7"),
            section("paragraph", "p3 b"), section("paragraph", "p4 c"), section("caption", "Other", hash="h8"),
            section("paragraph", "p6 d")]  # fmt: skip


def test_context_goes_outwards_from_the_image_and_stops():
    whole = d.context_around(SECTIONS, 2, "Head line")
    assert whole.split("\n") == ["Head line", "p0 first", "p1 a", "p3 b", "p4 c", "p6 d"]
    # headline 2, then p1 and p3 together reach 6: both sides of a round are taken before stopping
    assert d.context_around(SECTIONS, 2, "Head line", most=4).split("\n") == [
        "Head line",
        "p0 first",
        "p1 a",
        "p3 b",
    ]
    # the first paragraph does not count, so an image at the end still reaches backwards
    assert d.context_around(SECTIONS, 5, "", most=3).split("\n") == ["p0 first", "p4 c", "p6 d"]
    # an image before the first paragraph has nothing on its left
    assert d.context_around(
        [section("caption", "c"), section("paragraph", "p1"), section("paragraph", "p2")], 0
    ).split("\n") == ["p1", "p2"]
    with pytest.raises(d.DataError, match="image position 9 is not among"):
        d.context_around(SECTIONS, 9)


def test_plain_context_stops_after_more_than_enough():
    assert d.context_plain(SECTIONS, "Head line", most=4).split("\n") == ["Head line", "p0 first", "p1 a"]


ARTICLE = {"_id": {"$oid": "5d"}, "headline": {"main": "Head line"}, "web_url": "u", "language": "en",
           "pub_date": "2019-05-03T00:00:00Z", "image_positions": [2, 5], "parsed_section": SECTIONS}  # fmt: skip


@pytest.mark.parametrize("form", ["lines", "array", "parquet"])
def test_nytimes_in_each_export(tmp_path, form):
    foreign = ARTICLE | {"language": "es"}
    path = (
        tmp_path / {"lines": "articles.jsonl", "array": "articles.json", "parquet": "articles.parquet"}[form]
    )
    if form == "lines":
        write(path, "\n".join(json.dumps(a) for a in (ARTICLE, foreign)) + "\n")
    elif form == "array":
        write(path, [ARTICLE, foreign])
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([ARTICLE, foreign]), path)
    items = list(d.nytimes(path, tmp_path / "images_processed"))
    assert [(i.id, i.split, i.caption) for i in items] == [
        ("h7", "valid", "The caption"),
        ("h8", "valid", "Other"),
    ]
    assert items[0].headline == "Head line"
    assert items[0].text.split("\n") == ["p0 first", "p1 a", "p3 b", "p4 c", "p6 d"]
    assert items[0].image.endswith("images_processed/h7.jpg")
    assert list(d.nytimes(path, tmp_path, "train")) == []


def test_splits_by_date():
    assert [d.split_by_date(x) for x in ("2019-04-30", "2019-05-01T10", {"$date": "2019-06-01T00:00:00Z"}, "2008-12-31")] == [
        "train", "valid", "test", "train"]  # fmt: skip
    with pytest.raises(d.DataError, match="publication date None"):
        d.split_by_date(None)


def test_visualnews(tmp_path):
    write(tmp_path / "origin" / "bbc" / "articles" / "1.txt", "Some article text")
    write(tmp_path / "data.json", [{"id": 1, "caption": "A caption", "topic": "world", "source": "bbc",
                                    "image_path": "origin/bbc/images/1.jpg", "article_path": "origin/bbc/articles/1.txt"}])  # fmt: skip
    (item,) = d.visualnews(tmp_path)
    assert (item.id, item.text, item.caption) == ("1", "Some article text", "A caption")
    write(tmp_path / "data.json", [{"id": 1, "caption": "c", "image_path": "i", "article_path": "gone.txt"}])
    with pytest.raises(d.DataError, match=r"article file .* is not there"):
        list(d.visualnews(tmp_path))


def test_own_lines(tmp_path):
    path = tmp_path / "mine.jsonl"
    write(path, '{"id": "a", "image": "a.jpg", "headline": "H", "article": "Text", "caption": "C"}\n')
    (item,) = d.own(path)
    assert (item.context, item.image) == ("H\n\nText", str(tmp_path / "a.jpg"))
    write(path, '{"id": "a", "image": "a.jpg", "article": "Text"}\n')
    with pytest.raises(d.DataError, match="item 1 has no caption; training items need one"):
        list(d.own(path))
    assert next(d.own(path, training=False)).caption == ""
    write(path, '{"id": "a", "image": "a.jpg", "article": ""}\n')
    with pytest.raises(d.DataError, match="item 1 has no article"):
        list(d.own(path))


def test_bad_files(tmp_path):
    with pytest.raises(d.DataError, match="neither captioning_dataset"):
        list(d.goodnews(tmp_path))
    with pytest.raises(d.DataError, match="mongoexport"):
        list(d.nytimes(tmp_path / "no.jsonl", tmp_path))
    write(tmp_path / "x.jsonl", "{\n")
    with pytest.raises(d.DataError, match="line 1: not JSON"):
        list(d.nytimes(tmp_path / "x.jsonl", tmp_path))
    write(
        tmp_path / "y.json",
        [ARTICLE | {"parsed_section": [section("caption", "c", hash="h")], "image_positions": [0]}],
    )
    with pytest.raises(d.DataError, match="the article is empty"):
        list(d.nytimes(tmp_path / "y.json", tmp_path))
    write(tmp_path / "broken.jpg", "not a picture")
    with pytest.raises(d.DataError, match="cannot be read"):
        d.open_image(tmp_path / "broken.jpg")
