"""GLUE's files, GLUE's metrics, and a grammar whose tasks are what they say."""

import pytest
import torch

from companion import datasets
from companion.ytuning import data, metrics

FILES = {
    "CoLA/train.tsv": "gj04\t1\t\tShe \"left.\ngj04\t0\t*\tShe left the the.\n",
    "SST-2/dev.tsv": "sentence\tlabel\na fine film \t1\nnot so fine\t0\n",
    "MRPC/train.tsv": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\t\"A, he said.\tHe said \"A\".\n",
    "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA b.\tC d.\tnot_entailment\n1\tA.\tB.\tentailment\n",
    "MNLI/dev_matched.tsv": "index\tsentence1\tsentence2\tgold_label\n0\tA\tB\tneutral\n1\tA\tC\tcontradiction\n",
}  # fmt: skip


@pytest.fixture
def glue(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / "glue" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "glue" / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    return tmp_path / "glue"


@pytest.mark.parametrize(("task", "split", "texts", "pairs", "target"), [
    ("cola", "train", ['She "left.', "She left the the."], None, [1, 0]),
    ("sst2", "dev", ["a fine film", "not so fine"], None, [1, 0]),
    ("mrpc", "train", ['"A, he said.'], ['He said "A".'], [1]),
    ("rte", "dev", ["A b.", "A."], ["C d.", "B."], [1, 0]),
    ("mnli", "dev", ["A", "A"], ["B", "C"], [1, 2]),
])  # fmt: skip
def test_each_task_is_read_in_its_own_format(glue, task, split, texts, pairs, target):
    found = data.read(task, split)
    assert (found.texts, found.pairs, found.target) == (texts, pairs, target)
    assert found.labels == data.GLUE[task].labels


@pytest.mark.parametrize(("name", "text", "words"), [
    ("SST-2/dev.tsv", "text\tlabel\na\t1\n", "column 'sentence' of sst2 is missing; found text, label"),
    ("SST-2/dev.tsv", "sentence\tlabel\na\t1\nb\t2\n", "row 2 has label '2'; known: 0, 1"),
    ("SST-2/dev.tsv", "sentence\tlabel\na\n", "row 1 has 1 fields, expected 2"),
    ("SST-2/dev.tsv", "", "dev.tsv of sst2 is empty"),
])  # fmt: skip
def test_broken_files_are_named_with_the_row(glue, name, text, words):
    (glue / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        data.read("sst2", "dev")


@pytest.mark.parametrize(("content", "words"), [
    ("sentence\tlabel\nfine\t1\nun caf\u00e9\t1\n".encode("latin-1"),
     r"dev.tsv of SST-2 is not UTF-8 \(byte 0xe9 in line 3\); GLUE's files are: save it as UTF-8, or fetch it again"),
    ("sentence\tlabel\nfine\t1\n".encode("utf-16"), r"not UTF-8 \(byte 0xff in line 1\)"),
    (b"sentence\tlabel\n" + b"a" * 200_000 + b"\t1\n", "dev.tsv of SST-2 is no table with tabs"),
])  # fmt: skip
def test_files_that_are_no_text_are_named_with_the_line(glue, content, words):
    (glue / "SST-2" / "dev.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        data.read("sst2", "dev")


@pytest.mark.parametrize("name", ["SST-2", "sst-2", "SST2", "sst_2"])
def test_tasks_go_by_any_of_their_usual_spellings(glue, name):
    assert data.read(name, "dev") == data.read("sst2", "dev")
    assert data.read_tsv(glue / "CoLA" / "train.tsv", "CoLA").labels == data.GLUE["cola"].labels


def test_rows_that_glue_itself_broke_are_left_out_and_counted(glue):
    """QQP's own file has questions with a line break or a tab inside, and empty ones."""
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    rows = [
        "1\t1\t2\tWhy?\tHow come?\t1",
        "2\t3\t4\tWho was",
        "he?\tWho is he?\t0",
        "3\t5\t6\tWhat?\t\t0",
        "4\t7\t8\tA?\tB?\t0",
    ]
    (glue / "QQP").mkdir()
    (glue / "QQP" / "train.tsv").write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="train.tsv of qqp: 3 of 5 rows are broken and were left out"):
        found = data.read("qqp")
    assert (found.texts, found.pairs, found.target) == (["Why?", "A?"], ["How come?", "B?"], [1, 0])


def test_regression_is_excluded_in_one_sentence():
    for name in ("stsb", "STS-B", "sts_b"):
        with pytest.raises(ValueError, match="STS-B is regression"):
            data.read(name)


def test_unknown_tasks_and_splits_are_refused():
    with pytest.raises(ValueError, match="GLUE task 'sst' is not known; did you mean sst2"):
        data.read("sst")
    with pytest.raises(ValueError, match="train and dev"):
        data.read("sst2", "test")


def test_splits_with_different_labels_are_refused():
    a, b = data.Split(["x"], [0], ("no", "yes")), data.Split(["x"], [0], ("yes", "no"))
    assert data.same_labels(a, a) == ("no", "yes")
    with pytest.raises(ValueError, match="different labels: no, yes and yes, no"):
        data.same_labels(a, b)


@pytest.mark.parametrize("number", [2, -1, 0.5])
def test_label_numbers_outside_the_list_are_refused(number):
    """GLUE's own test splits have -1 throughout, regression has fractions."""
    with pytest.raises(
        ValueError, match=rf"example 1 has label number {number}; 2 labels have numbers 0 to 1"
    ):
        data.Split(["x", "y"], [0, number], ("no", "yes"))


def test_dividing_keeps_every_example_once():
    whole = data.Split([str(k) for k in range(50)], [0, 1] * 25, ("a", "b"))
    one, two = data.divide(whole, 0.2, seed=3)
    assert (len(one), len(two)) == (40, 10)
    assert sorted(one.texts + two.texts, key=int) == whole.texts
    assert all(int(t) % 2 == y for t, y in zip(two.texts, two.target, strict=True))
    assert sum(map(len, data.divide(whole, 0.2, seed=3, most=10))) == 10


def test_golden_metrics():
    # counts tp 6, tn 3, fp 1, fn 2: (18 - 2) / sqrt(7 * 8 * 4 * 5)
    target = torch.tensor([1] * 8 + [0] * 4)
    predicted = torch.tensor([1] * 6 + [0] * 2 + [0] * 3 + [1])
    assert metrics.matthews(predicted, target) == pytest.approx(100 * 16 / 1120**0.5)
    assert metrics.f1(predicted, target) == pytest.approx(100 * 12 / 15)
    assert metrics.accuracy(predicted, target) == pytest.approx(75.0)


def test_constant_answers_have_no_correlation():
    assert metrics.matthews(torch.ones(4, dtype=torch.long), torch.tensor([0, 1, 1, 1])) == 0.0


def test_each_task_reports_glues_metrics():
    p = t = torch.tensor([0, 1])
    assert list(metrics.of_task("cola", p, t)) == ["mcc", "accuracy"]
    assert list(metrics.of_task("mrpc", p, t)) == ["accuracy", "f1"]
    assert list(metrics.of_task("rte", p, t)) == ["accuracy"]
    with pytest.raises(ValueError, match="the same, non-zero length"):
        metrics.accuracy(p, torch.tensor([1]))


def test_aspect_labels_follow_the_food():
    for text, target in zip(*(lambda s: (s.texts, s.target))(data.grammar("aspect", 300, 0)), strict=True):
        words = text.replace(",", "").split()
        judgements = [w for w in words if w in data.GOOD + data.BAD]
        assert len(judgements) == 2
        assert "food" in words
        # each frame keeps the order of nouns and judgements
        first = words.index("food") < next(words.index(o) for o in data.PARTS[1:] if o in words)
        assert (judgements[0 if first else 1] in data.GOOD) == bool(target)


def test_roles_differ_in_nothing_but_who_did_it():
    split = data.grammar("roles", 300, 0)
    for a, b, target in zip(split.texts, split.pairs, split.target, strict=True):

        def agent(text):
            people = [w for w in text.split() if w in data.PEOPLE]
            return people[-1] if " by " in text else people[0]

        assert {w for w in a.split() if w in data.PEOPLE} == {w for w in b.split() if w in data.PEOPLE}
        assert (agent(a) != agent(b)) == bool(target)


def test_dev_sentences_are_never_trained_on_under_any_seed():
    dev = set(data.grammar("aspect", 300, 0, "dev").texts)
    for seed in range(3):
        for part in ("train", "valid"):
            assert not dev & set(data.grammar("aspect", 300, seed, part).texts)


def test_grammar_is_a_function_of_its_seed():
    assert data.grammar("requests-8", 50, 1) == data.grammar("requests-8", 50, 1)
    assert data.grammar("requests-8", 50, 1) != data.grammar("requests-8", 50, 2)
    assert len(data.grammar("requests-32", 5, 0).labels) == 32


def test_requests_ask_for_their_label_and_mention_another():
    split = data.grammar("requests-150", 400, 0)
    assert len(set(split.labels)) == 150
    verbs = {form: k for k, forms in enumerate(data.ACTIONS) for form in forms}
    for text, target in zip(split.texts, split.target, strict=True):
        words = text.split()
        action, thing = data.REQUESTS[target]
        assert data.ACTIONS[action][0] in words
        assert data.THINGS[thing] in words
        assert len({verbs[w] for w in words if w in verbs}) == 2
        assert len({w for w in words if w in data.THINGS}) == 2


def test_typos_swap_two_inner_letters_and_nothing_else():
    texts = ["the terrible waiter forgot everything", "we saw it"]
    assert data.typos(texts, 0.0, 0) == texts
    changed = data.typos(texts, 1.0, 0)
    assert changed == data.typos(texts, 1.0, 0)
    assert changed[1] == texts[1]  # no word of four letters
    for old, new in zip(texts[0].split(), changed[0].split(), strict=True):
        assert sorted(old) == sorted(new)
        assert (old[0], old[-1]) == (new[0], new[-1])
        assert sum(a != b for a, b in zip(old, new, strict=True)) in (0, 2)
    with pytest.raises(ValueError, match="share is 2; it lies between 0 and 1"):
        data.typos(texts, 2, 0)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("requests-151", "2 to 150"),
        ("aspects", "did you mean aspect"),
        ("request-8", "did you mean requests-8"),
    ],
)
def test_unknown_grammar_tasks_are_refused(task, words):
    with pytest.raises(ValueError, match=words):
        data.grammar(task, 10, 0)


def test_without_files_the_hub_is_read(monkeypatch, tmp_path):
    """The hub's columns, label numbers and split names, served by a stand-in with the hub's layout."""
    import datasets as hub

    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    asked = []

    def load_dataset(name, task, split):
        asked.append((name, task, split))
        one = (
            {"premise": ["A.", "B."], "hypothesis": ["C.", "D."]}
            if task == "mnli"
            else {"question1": ["A?", "B?"], "question2": ["C?", " "]}
            if task == "qqp"
            else {"sentence": ["a", "b "]}
        )
        return hub.Dataset.from_dict({**one, "label": [2, 0] if task == "mnli" else [1, 0]})

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    found = data.read("mnli", "dev")
    assert (found.texts, found.pairs, found.target) == (["A.", "B."], ["C.", "D."], [2, 0])
    found = data.read("sst2", "dev")
    assert (found.texts, found.target) == (["a", "b"], [1, 0])
    with pytest.warns(UserWarning, match="1 of 2 examples of qqp have an empty text and were left out"):
        found = data.read("qqp")
    assert (found.texts, found.pairs, found.target) == (["A?"], ["C?"], [1])
    assert asked[:2] == [
        ("nyu-mll/glue", "mnli", "validation_matched"),
        ("nyu-mll/glue", "sst2", "validation"),
    ]


def test_missing_data_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(datasets.DataMissing, match=r"glue/QQP/train.tsv is needed"):
        data.read("qqp")
