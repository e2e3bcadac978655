"""Readers on small files in exactly the public formats, written here; contexts against the published loops."""

import functools
import gzip
import json
import operator
import struct

import pytest

from companion.newscap import data as d
from companion.newscap import mongodump


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


def test_goodnews_items_that_lack_something_are_refused_or_left_out(tmp_path):
    write(tmp_path / "captioning_dataset.json", {
        "a": {"images": {"0": "Ana", "1": " ", "2": None}, "headline": {"main": "H"}, "article": "Text."},
        "b": {"images": {"0": "Leo"}, "headline": {"main": "H"}, "article": None}})  # fmt: skip
    write(tmp_path / "img_splits.json", dict.fromkeys(("a_0", "a_1", "a_2", "b_0"), "train"))
    with pytest.raises(d.DataError, match="image a_1 has no caption; training items need one"):
        list(d.goodnews(tmp_path))
    assert [i.id for i in d.goodnews(tmp_path, missing="skip")] == ["a_0"]
    write(tmp_path / "img_splits.json", {"b_0": "test"})
    with pytest.raises(d.DataError, match="article b is empty"):
        list(d.goodnews(tmp_path))
    with pytest.raises(ValueError, match="choose refuse or skip"):
        list(d.goodnews(tmp_path, missing="drop"))


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


# Every BSON type that a dump can hold, written by pymongo 4.20's bson.encode.
GOLDEN = bytes.fromhex(
    "e3000000075f6964005d2f3a1b9c8e7f6a5b4c3d2e01640033333333333314400273000700000068c3a96c6c6f00037375620017000000026d61"
    "696e000500000048656164000a6e000004610025000000023000020000007800103100010000000432000d000000083000010831000000000562"
    "00020000000000010974004039ac7d6a010000106900f9ffffff126c0000000000000100000b7200616200690013646563000f00000000000000"
    "0000000000003e300d636f6465000400000066282900117473000200000001000000ff6d696e00096f6c640018fcffffffffffff00")  # fmt: skip


def bson(thing):
    """A document of text, whole numbers, documents and lists as BSON."""
    out = b""
    for key, value in thing.items():
        name = key.encode() + b"\0"
        if isinstance(value, bool):
            out += b"\x08" + name + bytes([value])
        elif isinstance(value, int):
            out += b"\x10" + name + struct.pack("<i", value)
        elif isinstance(value, str):
            text = value.encode() + b"\0"
            out += b"\x02" + name + struct.pack("<i", len(text)) + text
        elif isinstance(value, list):
            out += b"\x04" + name + bson({str(k): v for k, v in enumerate(value)})
        else:
            out += b"\x03" + name + bson(value)
    return struct.pack("<i", len(out) + 5) + out + b"\0"


def archive(blocks):
    """mongodump's archive: magic, metadata, then blocks of (collection, documents), each ended by -1."""
    end = struct.pack("<i", -1)
    out = struct.pack("<I", 0x8199E26D) + bson({"concurrent_collections": 4, "version": "0.1"})
    out += (
        b"".join(bson({"db": "nytimes", "collection": c, "metadata": "{}"}) for c in ("articles", "objects"))
        + end
    )
    for collection, documents in blocks:
        header = bson({"db": "nytimes", "collection": collection, "EOF": not documents, "CRC": 0})
        out += header + b"".join(map(bson, documents)) + end
    return out


def test_bson_of_every_type(tmp_path):
    (tmp_path / "one.bson").write_bytes(GOLDEN * 2)
    one, two = mongodump.read_dump(tmp_path / "one.bson")
    assert one == two
    assert one == {
        "_id": "5d2f3a1b9c8e7f6a5b4c3d2e", "d": 5.05, "s": "héllo", "sub": {"main": "Head", "n": None},
        "a": ["x", 1, [True, False]], "b": b"\x00\x01", "t": "2019-05-03T12:30:00", "i": -7, "l": 2**40, "r": "ab",
        "dec": bytes([15]) + bytes(13) + b">0", "code": "f()", "ts": 2**32 + 2, "min": None,
        "old": "1969-12-31T23:59:59"}  # fmt: skip


def test_archives_with_collections_taking_turns(tmp_path):
    blocks = [("articles", [{"_id": "a"}]), ("objects", [{"_id": "o"}]), ("articles", [{"_id": "b"}, {"_id": "c"}]),
              ("objects", []), ("articles", [])]  # fmt: skip
    (tmp_path / "plain.archive").write_bytes(archive(blocks))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(archive(blocks)))
    for name in ("plain.archive", "packed.gz"):
        assert [x["_id"] for x in mongodump.read_dump(tmp_path / name)] == ["a", "b", "c"]
    assert [x["_id"] for x in mongodump.read_dump(tmp_path / "packed.gz", "objects")] == ["o"]


def test_dumps_that_are_none_or_cut_off(tmp_path):
    whole = gzip.compress(archive([("articles", [{"_id": "a", "text": "x" * 4000}])]))
    for name, content, message in (("a.gz", b"no dump at all", "is not a MongoDB dump"),
                                   ("b.bson", GOLDEN[:-3], "ends in the middle of a document"),
                                   ("c.gz", whole[:-20], "ends in the middle of its gzip stream"),
                                   ("d.bson", GOLDEN.replace(b"\x10i\0", b"\x20i\0"), "type 0x20 is not known")):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(d.DataError, match=message):
            list(d.documents(tmp_path / name))


@pytest.mark.parametrize("form", ["lines", "array", "parquet", "dump"])
def test_nytimes_in_each_export(tmp_path, form):
    foreign = ARTICLE | {"language": "es"}
    path = tmp_path / {"lines": "articles.jsonl", "array": "articles.json", "parquet": "articles.parquet",
                       "dump": "nytimes-2020-04-21.gz"}[form]  # fmt: skip
    if form == "dump":
        path.write_bytes(
            gzip.compress(archive([("articles", [ARTICLE, foreign]), ("objects", [{"_id": "h7"}])]))
        )
    elif form == "lines":
        write(path, "\n".join(json.dumps(a) for a in (ARTICLE, foreign)) + "\n")
    elif form == "array":
        write(path, [ARTICLE, foreign])
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([ARTICLE, foreign]), path)
    items = list(d.nytimes(path, tmp_path / "images_processed"))
    assert [(i.split, i.caption) for i in items] == [("valid", "The caption"), ("valid", "Other")]
    assert [i.id.endswith(f"_{k}") for i, k in zip(items, (2, 5), strict=True)] == [True, True]
    assert len({i.id for i in items}) == 2
    assert items[0].headline == "Head line"
    assert items[0].text.split("\n") == ["p0 first", "p1 a", "p3 b", "p4 c", "p6 d"]
    assert items[0].image.endswith("images_processed/h7.jpg")
    assert items[0].context.startswith("Head line\np0 first\np1 a")  # one line break, as published
    assert list(d.nytimes(path, tmp_path, "train")) == []


def test_nytimes_counts_the_headline_and_leaves_captions_as_they_are(tmp_path):
    sections = [SECTIONS[0], SECTIONS[1], section("caption", " [Left] Ana <b> ", hash="h"), *SECTIONS[3:5]]
    write(tmp_path / "a.json", [ARTICLE | {"parsed_section": sections, "image_positions": [2]}])
    (item,) = d.nytimes(tmp_path / "a.json", tmp_path, most=4)
    assert item.text.split("\n") == ["p0 first", "p1 a", "p3 b"]  # headline 2, then both sides of one round
    assert item.caption == "[Left] Ana <b>"
    (plain,) = d.nytimes(tmp_path / "a.json", tmp_path, located=False, most=5)
    assert plain.text.split("\n") == ["p0 first", "p1 a"]


def test_items_without_image_or_caption_are_left_out_on_request(tmp_path):
    (tmp_path / "h7.jpg").write_bytes(b"")
    train = ARTICLE | {"pub_date": "2018-01-01", "parsed_section": [*SECTIONS[:5], section("caption", " ", hash="h8"),
                                                                    SECTIONS[6]]}  # fmt: skip
    write(tmp_path / "a.json", [train])
    with pytest.raises(d.DataError, match="section 5 has no caption; training items need one"):
        list(d.nytimes(tmp_path / "a.json", tmp_path))
    assert [i.id for i in d.nytimes(tmp_path / "a.json", tmp_path, missing="skip")] == ["5d_2"]
    with pytest.raises(ValueError, match="missing is 'drop'; choose refuse or skip"):
        list(d.nytimes(tmp_path / "a.json", tmp_path, missing="drop"))
    write(tmp_path / "b.json", [ARTICLE])
    dropped = []
    assert [i.id for i in d.usable(d.nytimes(tmp_path / "b.json", tmp_path), dropped)] == ["5d_2"]
    assert dropped == ["5d_5"]


def test_one_photograph_in_two_articles_makes_two_items(tmp_path):
    """Rules are stored by id, and a photograph's hash does not tell which article it stood in."""
    write(tmp_path / "a.json", [ARTICLE, ARTICLE | {"_id": {"$oid": "5e"}, "headline": {"main": "Other"}}])
    items = list(d.nytimes(tmp_path / "a.json", tmp_path))
    assert [i.id for i in items] == ["5d_2", "5d_5", "5e_2", "5e_5"]
    assert items[0].image == items[2].image


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
    write(tmp_path / "data.json", [{"id": k, "caption": "A caption", "topic": "world", "source": "bbc", "image_path": "i.jpg",
                                    "article_path": f"./{'x/../' * (k // 2)}origin/bbc/articles/1.txt"} for k in range(200)])  # fmt: skip
    for part in ("origin", "x"):
        (tmp_path / part).mkdir(exist_ok=True)
    parts = {s: [i.id for i in d.visualnews(tmp_path, s)] for s in d.SPLITS}
    assert sorted(map(int, functools.reduce(operator.iadd, parts.values(), []))) == list(range(200))
    assert all(str(int(k) ^ 1) in part for part in parts.values() for k in part)  # one article, one split
    assert len(parts["train"]) > 150
    assert parts["test"]
    write(tmp_path / "data.json", [{"id": 1, "caption": "c", "image_path": "i", "article_path": "gone.txt"}])
    with pytest.raises(d.DataError, match=r"article file .* is not there"):
        list(d.visualnews(tmp_path))
    assert list(d.visualnews(tmp_path, missing="skip")) == []
    write(tmp_path / "empty.txt", " ")
    write(tmp_path / "data.json", [{"id": k, "caption": c, "image_path": "i", "article_path": a} for k, (c, a) in enumerate(
        (("c", "empty.txt"), ("", "origin/bbc/articles/1.txt"), ("c", "origin/bbc/articles/1.txt")))])  # fmt: skip
    assert [i.id for i in d.visualnews(tmp_path, missing="skip")] == ["2"]
    with pytest.raises(d.DataError, match="item 0: the article is empty"):
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
    assert list(d.nytimes(tmp_path / "y.json", tmp_path, missing="skip")) == []
    write(tmp_path / "broken.jpg", "not a picture")
    with pytest.raises(d.DataError, match="cannot be read"):
        d.open_image(tmp_path / "broken.jpg")
