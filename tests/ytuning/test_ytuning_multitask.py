"""Joint training, and labels that arrive later, on features that are there."""

import pytest
import torch

from companion.ytuning import metrics, multitask, protocol
from companion.ytuning.classifier import YTuningForSequenceClassification
from companion.ytuning.features import extract
from companion.ytuning.model import YTuning, YTuningConfig

TEXTS = ["the cat sat", "the dog sat", "the cat ran", "the dog ran", "a happy cat sat", "a sad dog sat",
         "a sad cat ran", "a happy dog ran"] * 2  # fmt: skip
WHO = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1] * 2)
WHAT = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1] * 2)
TASKS = {"who": ("cat", "dog"), "what": ("sat", "ran")}


def parts(make_encoder, folder):
    found = extract(make_encoder(), TEXTS, folder=folder, quiet=True)
    return {"who": protocol.Labelled(found, WHO), "what": protocol.Labelled(found, WHAT)}


def head(**options):
    torch.manual_seed(0)
    return YTuning(YTuningConfig(TASKS, 16, 16, 2, 32, dropout=0.0, **options))


def test_a_joint_head_learns_both_tasks_and_the_model_is_not_asked(make_encoder, tmp_path):
    read = parts(make_encoder, tmp_path)
    model = head()
    done = multitask.tune(model, read, read, metrics.accuracy, protocol.Budget((3e-3,), 15, 4))
    assert done.valid == {"who": 100.0, "what": 100.0}
    for task, one in read.items():
        scores = protocol.predict(multitask.OneTask(model, task), one.source)
        assert metrics.accuracy(scores.argmax(1), one.target) == 100.0


def test_every_batch_of_every_task_has_its_turn():
    order = multitask.turns({"a": 3, "b": 2}, 0, 0)
    assert sorted(order) == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert len({tuple(multitask.turns({"a": 3, "b": 2}, 0, e)) for e in range(6)}) > 1


def test_only_the_new_labels_vectors_move(make_encoder, tmp_path):
    read = parts(make_encoder, tmp_path)
    model = head(per_label=2)
    model.add_label("who", "bird")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    undo = multitask.only_new(model, "who", 2)
    late = protocol.Labelled(read["who"].source, torch.where(WHAT == 1, 2, WHO))
    budget = protocol.Budget((1e-2,), 3, 4, weight_decay=0.0)
    multitask.tune(model, {"who": late}, {"who": late}, metrics.accuracy, budget)
    undo()
    for name, value in model.state_dict().items():
        moved = (value != before[name]).nonzero()
        if name == "labels.who":
            assert sorted(set(moved[:, 0].tolist())) == [4, 5]
        else:
            assert not len(moved)
    assert all(p.requires_grad for p in model.parameters())


def test_bad_input_gets_one_sentence(make_encoder, tmp_path):
    read = parts(make_encoder, tmp_path)
    with pytest.raises(ValueError, match="train has the tasks who, valid has what; give the same"):
        multitask.tune(head(), {"who": read["who"]}, {"what": read["what"]}, metrics.accuracy,
                       protocol.Budget((1e-3,)))  # fmt: skip
    with pytest.raises(ValueError, match="this model knows who, what"):
        multitask.OneTask(head(), "where")
    with pytest.raises(ValueError, match="2 of 2 labels of who are old; at least one must be new"):
        multitask.only_new(head(), "who", 2)


def test_the_classifier_fits_tasks_together_with_one_pass(make_encoder, tmp_path):
    encoder, seen = make_encoder(), []
    encoder._module.register_forward_hook(lambda m, inputs, out: seen.append(len(inputs[0])))
    model = YTuningForSequenceClassification(encoder, TASKS, width=16, heads=2, dropout=0.0)
    examples = {
        "who": (TEXTS * 2, [TASKS["who"][k] for k in WHO] * 2),
        "what": (TEXTS, [TASKS["what"][k] for k in WHAT]),
    }
    model.fit_tasks(examples, epochs=15, rate=3e-3, batch_size=4, hold_out=0.25, folder=tmp_path, quiet=True)
    assert sum(seen) == len(set(TEXTS))
    assert model.predict(TEXTS[:4], task="who", folder=tmp_path, quiet=True) == ["cat", "dog", "cat", "dog"]
    with pytest.raises(ValueError, match="what: 2 texts come with 1 labels"):
        model.fit_tasks({"what": (["a", "b"], ["sat"])})
    with pytest.raises(ValueError, match="example 0 has label 'bird'"):
        model.fit_tasks({"who": (["a"], ["bird"])})
    with pytest.raises(ValueError, match="who: 1 example cannot be split"):
        model.fit_tasks({"who": (["a"], ["cat"])})
    with pytest.raises(ValueError, match="hold_out is 0; it lies between 0 and 1"):
        model.fit_tasks({"who": (["a", "b"], ["cat", "dog"])}, hold_out=0)
    with pytest.raises(ValueError, match="this model knows who, what"):
        model.fit_tasks({"where": (["a", "b"], ["cat", "dog"])})


def test_tasks_of_pairs_train_beside_tasks_of_single_texts(make_encoder, tmp_path, monkeypatch):
    """Two tasks on pairs and one on single texts: each reads its own texts, and each distinct text is encoded once."""
    tasks = {**TASKS, "same": ("yes", "no")}
    encoder, seen, given = make_encoder(), [], []
    encoder._module.register_forward_hook(lambda m, inputs, out: seen.append(len(inputs[0])))
    model = YTuningForSequenceClassification(encoder, tasks, width=16, heads=2, apart=True)
    second, here = TEXTS[1:8] + TEXTS[:1], {"folder": tmp_path, "quiet": True}
    examples = {
        "who": (TEXTS[:8], [TASKS["who"][k] for k in WHO[:8]]),
        "what": (TEXTS[:8], [TASKS["what"][k] for k in WHAT[:8]], second),
        "same": (TEXTS[2:6], ["yes", "no", "no", "yes"], second[2:6]),
    }
    tune = multitask.tune
    monkeypatch.setattr(multitask, "tune", lambda *a: given.append(a) or tune(*a))
    done = model.fit_tasks(examples, epochs=1, batch_size=4, hold_out=0.25, **here)
    assert set(done.valid) == set(tasks)
    assert sum(seen) == len(set(TEXTS))
    _, train, valid, *_ = given[0]
    for task, (texts, labels, *pairs) in examples.items():
        want = model.features(texts, *pairs, **here)
        wanted = {(want.one(k)[0].sum().item(), len(want.one(k)[1]), name) for k, name in enumerate(labels)}
        found = set()
        for part in (train[task], valid[task]):
            for k, number in enumerate(part.target):
                H, marks = part.source.one(k)
                found.add((H.sum().item(), len(marks), tasks[task][number]))
        assert found == wanted
    for broken, words in (
        (((["a"],)), "who has 1 lists"),
        ((["a", "b"], ["cat", "dog"], ["c"]), "2 texts come with 1 second"),
    ):
        with pytest.raises(ValueError, match=words):
            model.fit_tasks({"who": broken})
    with pytest.raises(ValueError, match="there are no tasks"):
        model.fit_tasks({})
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.fit_tasks(examples, batch_size=0)
