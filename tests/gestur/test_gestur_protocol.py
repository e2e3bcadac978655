"""DomainBed's protocol: golden splits, selection, standard errors, loaders, bad input."""

import os

import numpy as np
import pytest
import torch
from torch import nn

from companion.gestur import data, protocol, world
from companion.gestur.model import Erm, adam
from companion.gestur.protocol import Domain, ProtocolConfig, Trial


def test_golden_seeds():
    assert [protocol.seed_hash(0, k) for k in range(6)] == [
        894182419, 1514274641, 1325548499, 1796103049, 1773288162, 1833038383]  # fmt: skip
    assert (protocol.seed_hash(1, 0), protocol.seed_hash(2, 0)) == (785910682, 472130416)


@pytest.mark.parametrize(("n", "number", "sizes", "first"), [
    (2048, 0, (409, 1639), [548, 677, 1997, 977, 1553]), (2344, 1, (468, 1876), None), (1670, 2, (334, 1336), None),
    (3929, 3, (785, 3144), [2743, 2083, 2744, 3449, 1159])])  # fmt: skip
def test_golden_splits_of_pacs(n, number, sizes, first):
    inside, out = protocol.split(n, 0, number)
    assert (len(out), len(inside)) == sizes
    assert sorted([*inside, *out]) == list(range(n))
    if first:
        assert out[:5].tolist() == first


def trial(values, target=("t",), tests=None):
    log = [
        {"step": k, "a/out": v, "b/out": v, "t/in": (tests or values)[k], "t/out": 1 - v}
        for k, v in enumerate(values)
    ]
    return Trial(target, ("a", "b"), log)


def test_selection_takes_the_first_maximum_of_source_validation():
    one = trial([0.2, 0.9, 0.5, 0.9], tests=[0.1, 0.3, 0.8, 0.7])
    assert one.chosen() == 1
    assert one.result()["test"] == pytest.approx(30)
    assert one.result("oracle") == {
        "step": 3,
        "val": pytest.approx(90),
        "test": pytest.approx(70),
        "oracle": pytest.approx(10),
    }
    with pytest.raises(ValueError, match="selection rule 'best' does not exist"):
        one.chosen("best")


def test_choice_of_hyper_parameters_by_the_three_rules():
    def pair(value):
        return Trial(
            ("t", "o"), ("a", "b"), [{"step": 0, "o/in": value, "t/in": 0.0, "a/out": 0.1, "b/out": 0.1}]
        )

    runs = {"small": [trial([0.9, 0.9]), pair(0.2)], "large": [trial([0.5, 0.5]), pair(0.7)]}
    assert protocol.choose(runs, "training-domain", "t") == "small"
    assert protocol.choose(runs, "oracle", "t") == "large"  # target `out` accuracy is 1 - v
    assert protocol.choose(runs, "leave-one-domain-out", "t") == "large"
    with pytest.raises(ValueError, match="no run leaves out t together with another domain"):
        protocol.choose({"small": [trial([0.9])]}, "leave-one-domain-out", "t")


def test_mean_and_standard_error_as_domainbed_prints_them():
    assert protocol.mean_and_error([84.0, 85.0, 86.0]) == (
        85.0,
        pytest.approx(np.std([84, 85, 86]) / np.sqrt(3)),
    )


def test_report_is_per_target_and_averages_targets_within_trials():
    found = protocol.report([trial([0.5], ("t",)), trial([0.7], ("t",))])
    assert found["t"] == found["mean"] == (pytest.approx(60), pytest.approx(10 / 2**0.5))


def toy(name, n=40, classes=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.rand(n, 3, 4, 4, generator=g) * 0.2 + labels[:, None, None, None] * 0.5
    return Domain(name, images, labels, shift=1)


def algorithm():
    torch.manual_seed(0)
    return Erm(nn.Flatten(), nn.Linear(48, 2), adam(1e-2))


def test_training_evaluates_after_steps_0_f_2f_and_the_last_and_learns():
    domains = [toy(n, seed=k) for k, n in enumerate("abc")]
    found = protocol.train(algorithm(), domains, [2], ProtocolConfig(steps=32, every=10, batch=8))
    assert [entry["step"] for entry in found.log] == [0, 10, 20, 30, 31]
    assert found.sources == ("a", "b")
    assert found.result("last")["test"] == 100
    assert "a/in" not in found.log[0]


def test_the_same_seed_gives_the_same_run_and_the_target_is_never_trained_on():
    domains = [toy(n, seed=k) for k, n in enumerate("abc")]
    one, two, three = algorithm(), algorithm(), algorithm()
    config = ProtocolConfig(steps=5, every=5, batch=8)
    protocol.train(one, domains, [2], config)
    protocol.train(two, domains, [2], config)
    other = [*domains[:2], toy("c", seed=99)]
    protocol.train(three, other, [2], config)
    for a, b, c in zip(one.parameters(), two.parameters(), three.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_bad_domains_are_one_sentence():
    a, b, c = (toy(n) for n in "abc")
    with pytest.raises(
        ValueError, match="1 source domain is left; domain generalisation trains on at least two"
    ):
        protocol.train(algorithm(), [a, b], [1], ProtocolConfig(steps=1))
    lacks = Domain("b", b.images[:1], b.labels[:1])
    with pytest.raises(ValueError, match="domain b has no image of class 1 of 0 to 1"):
        protocol.train(algorithm(), [a, lacks, c], [2], ProtocolConfig(steps=1))
    with pytest.raises(ValueError, match="target 5 does not exist; domains are numbered 0 to 2"):
        protocol.train(algorithm(), [a, b, c], [5], ProtocolConfig(steps=1))
    with pytest.raises(ValueError, match="domain x: 40 images but 3 labels"):
        Domain("x", a.images, a.labels[:3])


# --- loaders -------------------------------------------------------------------------------------------


def tree(base, domains, classes, n=3):
    from PIL import Image

    g = np.random.RandomState(0)
    for domain in domains:
        for kind in classes:
            (base / domain / kind).mkdir(parents=True)
            for k in range(n):
                Image.fromarray(g.randint(0, 255, (20, 30, 3), np.uint8)).save(
                    base / domain / kind / f"{k}.jpg"
                )


@pytest.mark.parametrize("name", list(data.SETS))
def test_real_folder_layouts(name, tmp_path):
    known = data.SETS[name]
    tree(tmp_path / known.folder, known.domains, ("bird", "dog"), n=1)
    found = data.image_set(name, tmp_path)
    assert [d.name for d in found] == sorted(known.domains)
    assert found[0].labels.tolist() == [0, 1]
    assert found[0].get(torch.tensor([1, 0])).shape == (2, 3, 224, 224)


def test_folder_order_is_torchvisions_and_augmentation_is_drawn_from_the_generator(tmp_path):
    from torchvision.datasets import ImageFolder

    tree(tmp_path, ("x", "y"), ("b", "a"))
    domain = data.image_folders(tmp_path, size=32)[0]
    wanted = ImageFolder(tmp_path / "x").samples
    assert [(str(p), int(y)) for p, y in zip(domain.paths, domain.labels, strict=True)] == wanted
    index = torch.tensor([0, 3])
    one = domain.get(index, torch.Generator().manual_seed(1))
    assert torch.equal(one, domain.get(index, torch.Generator().manual_seed(1)))
    assert not torch.equal(one, domain.get(index, torch.Generator().manual_seed(2)))
    assert torch.equal(domain.get(index), domain.get(index))


def test_trees_that_do_not_fit_are_one_sentence(tmp_path):
    tree(tmp_path / "one", ("x",), ("a",))
    with pytest.raises(ValueError, match="one has 1 domain folder; at least two domains are needed"):
        data.image_folders(tmp_path / "one")
    tree(tmp_path / "two", ("x", "y"), ("a", "b"))
    os.rename(tmp_path / "two" / "y" / "b", tmp_path / "two" / "y" / "c")
    with pytest.raises(ValueError, match="domain y lacks class 'b'; all domains must have the same classes"):
        data.image_folders(tmp_path / "two")
    tree(tmp_path / "three", ("x", "y"), ("a",), n=1)
    (tmp_path / "three" / "x" / "a" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"x/a/0\.jpg cannot be read as an image"):
        data.image_folders(tmp_path / "three")[0].get(torch.tensor([0]))
    with pytest.raises(ValueError, match="data set 'imagenet' does not exist; choose pacs, vlcs"):
        data.image_set("imagenet")


def test_digits_follow_their_recipes():
    rotated = data.rotated_digits()
    assert [d.name for d in rotated] == ["00", "15", "30", "45", "60", "75"]
    assert sum(len(d) for d in rotated) == 1797
    for domain, share in zip(data.coloured_digits(), (0.9, 0.8, 0.1), strict=True):
        red = domain.images[:, 1].flatten(1).sum(1) > 0
        agrees = (red.long() == domain.labels).float().mean()
        assert abs(float(agrees) - share) < 0.06


# --- the styled glyphs ---------------------------------------------------------------------------------


def test_the_shortcut_is_in_the_sources_and_not_in_the_target():
    config = world.WorldConfig(images=1000, strength=0.9)
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 10
    hue = world.hues(labels, 10, 0.9, g)
    near = ((hue - labels / 10 + 0.5) % 1 - 0.5).abs() < 0.05
    assert 0.88 < float(near.float().mean()) < 0.94  # 0.9 own, and a tenth of the free ones by chance
    free = world.hues(labels, 10, 0.0, g)
    assert abs(float((((free - labels / 10 + 0.5) % 1 - 0.5).abs() < 0.05).float().mean()) - 0.1) < 0.04
    one, two = world.domains(config, "art", 0), world.domains(config, "photo", 0)
    assert torch.equal(one["sketch"][0], two["sketch"][0])  # a source is the same whatever the target
    assert not torch.equal(one["art"][0], two["art"][0])
    assert all(
        x.shape == (1000, 3, 16, 16) and float(x.min()) >= 0 and float(x.max()) <= 1 for x, _ in one.values()
    )


def test_pre_training_and_task_glyphs_differ_and_bad_styles_are_named():
    assert not torch.equal(world.alphabet(10, 0).nan_to_num(), world.alphabet(10, 1000).nan_to_num())
    with pytest.raises(
        ValueError, match="target 'oil' is not a style of the task; choose art, cartoon, photo, sketch"
    ):
        world.domains(world.WorldConfig(), "oil", 0)
    with pytest.raises(ValueError, match="strength is 2; it is a probability"):
        world.WorldConfig(strength=2)


@pytest.mark.skipif(
    "COMPANION_TEST_DATA" not in os.environ, reason="needs the public sets: COMPANION_TEST_DATA"
)
def test_public_sets_have_their_published_sizes(monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", os.environ["COMPANION_TEST_DATA"])
    found = data.pacs_small(16)
    assert {d.name: len(d) for d in found} == data.SETS["pacs"].domains
    assert protocol.check_domains(found) == 7
    ink, labels = data.mnist()
    assert ink.shape == (10000, 1, 28, 28)
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    ink, labels = data.omniglot(16)
    assert ink.shape == (5840, 1, 16, 16)
    assert labels.bincount().tolist() == [20] * 292
    digits = world.domains(world.WorldConfig(images=800), "art", 0, data.mnist())
    assert all(x.shape == (800, 3, 16, 16) for x, _ in digits.values())
