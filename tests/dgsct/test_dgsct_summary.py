"""The chapter's tables: paired differences, and what can be had without pairing."""

import json
import math
import re

import pytest

from companion import records, tables
from companion.dgsct import parsing, summary


def test_gap_is_paired_and_one_seed_has_no_interval():
    assert summary.gap([]) == "not run"
    assert summary.gap([-1.25]) == "−1.2"
    # two seeds: t of one degree of freedom times the standard error of the mean, 12.71 * 1
    assert summary.gap([1.0, 3.0]) == "+2.0 ± 12.7 (2)"


def test_without_pairing_is_what_sound_and_picture_say_apart():
    found = summary.without_pairing(200)
    # three objects of about equal size, one or two of which sound
    assert found["avs-s4"] == pytest.approx(100 / 3, abs=2)
    assert found["avs-ms3"] == pytest.approx(200 / 3, abs=2)
    assert found["few-shot"] == found["avqa-colour"] == found["avqa-colour-map"] == pytest.approx(100 / 3)
    # of the three unseen colours of a shape the right one is in view, the others each by chance: 2 of 5 places
    by_hand = sum(math.comb(2, k) * math.comb(3, 2 - k) / math.comb(5, 2) / (k + 1) for k in range(3))
    assert found["zero-shot"] == pytest.approx(100 * by_hand, abs=3)
    assert found["zero-shot"] > 100 / 3
    # one answer per kind cannot be worse than the rarest case of two answers or six colours
    assert 40 < found["avqa"] < 70


def test_tasks_take_only_seeds_that_both_arms_have(tmp_path):
    """Records of two seeds for one arm and one for the other: the difference is of the common seed."""
    source = records.evidence_folder() / "reduced" / "dgsct" / "tasks"
    for row, seeds in (("dg-sct", (0, 1)), ("unguided", (1,))):
        one = json.loads((source / row / "few-shot" / "seed-0.json").read_text())
        for seed in seeds:
            one["run"]["seed"], one["metrics"]["headline"] = seed, 10.0 * (seed + 1 + (row == "dg-sct"))
            records.write_json(tmp_path / f"reduced/dgsct/tasks/{row}/few-shot/seed-{seed}.json", one)
    text = summary.tasks(folder=tmp_path, clips=40)
    line = next(part for part in text.split("<tr>") if "few-shot" in part)
    cells = [x.split("</td>")[0] for x in line.split("<td>")[1:]]
    assert cells == ["not run", "20.0", "25.0 ± 63.5 (2)", "+10.0", "33.3"]


def test_grid_shows_what_was_run_and_refuses_what_is_not_there(tmp_path):
    text = summary.grid("localisation", "reduced", ["inside", "peak"], "What came out.", tmp_path)
    rows = tables.table("dgsct", "localisation").rows
    assert text.count("not run") == 2 * len(rows)
    assert "<caption>What came out.</caption>" in text
    with pytest.raises(
        tables.TableError, match="localisation has no column 'insight'; it has accuracy, inside"
    ):
        summary.grid("localisation", "reduced", ["insight"], folder=tmp_path)


def test_tasks_names_every_task():
    assert {c.id for c in tables.table("dgsct", "tasks").columns} == set(parsing.TASKS)


def test_differences_are_of_one_row_against_others_and_refuse_what_is_not_there(tmp_path):
    source = records.evidence_folder() / "reduced" / "dgsct" / "localisation"
    for row, values in (("dg-sct", (50.0, 60.0)), ("unguided", (30.0, 50.0)), ("late-fusion", (40.0,))):
        one = json.loads((source / row / "all" / "seed-0.json").read_text())
        for seed, value in enumerate(values):
            one["run"]["seed"], one["metrics"]["inside"] = seed, value
            records.write_json(tmp_path / f"reduced/dgsct/localisation/{row}/all/seed-{seed}.json", one)
    text = summary.differences(
        "localisation", "reduced", ["inside"], "dg-sct", ["unguided", "late-fusion", "told"], "", tmp_path
    )
    cells = [x.split("</td>")[0] for x in text.split("<td>")[1:]]
    assert cells == ["+15.0 ± 63.5 (2)", "+10.0", "not run"]
    assert summary.gain("localisation", "reduced", "inside", "dg-sct", "late-fusion", tmp_path) == "+10.0"
    for row, column in (("short", "insight"), ("shuffled", "inside")):
        with pytest.raises(
            tables.TableError, match=r"localisation has no (column 'insight'|row 'shuffled'); it has"
        ):
            summary.gain("localisation", "reduced", column, row, "unguided", tmp_path)


def test_figure_draws_a_mark_per_seed(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    left, right = summary.figure_localisation()
    marks = [len(line.get_xdata()) for line in left.lines[:-1]]
    rows = tables.table("dgsct", "localisation").rows
    runs = [r["run"] for r in records.read(records.evidence_folder(), "dgsct", "localisation", "reduced")]
    assert marks == [sum(r["row"] == row.id for r in runs) for row in rows]
    assert len(right.lines) == len(rows)  # without "told", which reads no map, with the line of a guess


# what the chapter says in words, per table, column, row and the row it is held against: +1 a gain, 0 nothing shown
SAID = {
    ("tasks", "few-shot", "dg-sct", "unguided"): 1,
    ("tasks", "avs-s4", "dg-sct", "unguided"): 0,
    ("tasks", "avs-s4", "unguided", "late-fusion"): 1,
    ("tasks", "avs-s4", "dg-sct", "late-fusion"): 1,
    ("tasks", "avs-ms3", "dg-sct", "unguided"): 0,
    ("tasks", "zero-shot", "dg-sct", "unguided"): 0,
    ("tasks", "avvp", "dg-sct", "unguided"): 0,
    ("tasks", "avqa", "dg-sct", "unguided"): 0,
    ("tasks", "avqa-colour", "unguided", "late-fusion"): 1,
    ("tasks", "avqa-colour", "dg-sct", "unguided"): 0,
    ("tasks", "avqa-colour-map", "dg-sct", "unguided"): 1,
    ("localisation", "peak", "dg-sct", "unguided"): 1,
    ("localisation", "event", "dg-sct", "unguided"): 1,
    ("localisation", "inside", "dg-sct", "unguided"): 1,
    ("localisation", "inside", "no-temporal", "unguided"): 1,
    ("localisation", "accuracy", "dg-sct", "no-temporal"): 0,
    ("ablation", "map", "dg-sct", "unguided"): 1,
    ("ablation", "map", "dg-sct", "shuffled"): 1,
    ("ablation", "map", "dg-sct", "fine-tuning"): 1,
    ("ablation", "map", "dg-sct", "to-audio"): 1,
    ("ablation", "map", "dg-sct", "to-visual"): 0,
    ("ablation", "map", "dg-sct", "no-reweighting"): 0,
    ("ablation", "map", "dg-sct", "no-channel"): 0,
    ("ablation", "map", "dg-sct", "no-latent"): 0,
    ("ablation", "mean", "dg-sct", "unguided"): 0,
    ("ablation", "mean", "fine-tuning", "late-fusion"): 1,
}  # fmt: skip


@pytest.mark.parametrize(("where", "sign"), SAID.items())
def test_the_chapters_words_are_what_the_records_say(where, sign):
    table, column, row, than = where
    # what is said of the other tasks speaks of three seeds, of localisation of eight
    (seeds,) = re.findall(r" \((\d+)\)</td>", summary.differences(table, "reduced", [column], row, [than]))
    assert int(seeds) >= 3 if table == "ablation" else int(seeds) == {"tasks": 3, "localisation": 8}[table]
    mean, half = summary.gain(table, "reduced", column, row, than).replace("−", "-").split(" ± ")
    assert (float(mean) > float(half)) == (sign > 0)
    assert float(mean) > -float(half)
