"""DomainBed's protocol: golden splits, selection, standard errors, loaders, bad input."""

import io
import os
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from companion.gestur import data, protocol, recipe, world
from companion.gestur.baselines import Mixup
from companion.gestur.model import Erm, Gestur, GesturConfig, adam
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
        {
            "step": k,
            "a/out": v,
            "b/out": v,
            f"{target[0]}/in": (tests or values)[k],
            f"{target[0]}/out": 1 - v,
        }
        for k, v in enumerate(values)
    ]
    return Trial(target, ("a", "b"), log)


def test_selection_takes_the_first_maximum_of_source_validation():
    one = trial([0.2, 0.9, 0.5, 0.9], tests=[0.1, 0.3, 0.8, 0.7])
    assert one.chosen() == 1
    assert one.result()["test"] == pytest.approx(30)
    wanted = {"step": 3, "val": 90, "test": 70, "out": 10}
    assert one.result("oracle") == {k: pytest.approx(v) for k, v in wanted.items()}
    with pytest.raises(ValueError, match="this training was not averaged densely"):
        one.result("swad")
    one.swad = {"step": 3, "a/out": 0.4, "b/out": 0.6, "t/in": 0.25, "t/out": 0.5}
    assert one.result("swad")["val"] == pytest.approx(50)
    assert one.result("swad")["test"] == pytest.approx(25)
    with pytest.raises(ValueError, match="selection rule 'best' does not exist"):
        one.chosen("best")


def pair(other, values):
    """A training that leaves out `t` and another domain; accuracy on the latter over the evaluations."""
    return Trial(("t", other), ("x",), [{"step": k, f"{other}/in": v} for k, v in enumerate(values)])


def test_choice_of_run_and_step_by_the_three_rules():
    runs = {
        "small": [trial([0.9, 0.8], tests=[0.3, 0.2]), pair("a", [0.2, 0.4]), pair("b", [0.2, 0.2])],
        "large": [trial([0.5, 0.5], tests=[0.6, 0.7]), pair("a", [0.8, 0.1]), pair("b", [0.6, 0.9])],
    }
    inside = protocol.select(runs, "training-domain", "t")
    assert (inside.name, inside.steps, inside.test) == ("small", (0,), pytest.approx(30))
    oracle = protocol.select(runs, "oracle", "t")  # last step; target `out` accuracy is 1 - v
    assert (oracle.name, oracle.steps, oracle.test) == ("large", (1,), pytest.approx(70))
    # both sources' accuracies when left out, averaged step by step: 70 at step 0, 50 at step 1
    crossed = protocol.select(runs, "leave-one-domain-out", "t")
    assert (crossed.name, crossed.steps, crossed.val) == ("large", (0,), pytest.approx(70))
    assert crossed.test == pytest.approx(60)
    with pytest.raises(ValueError, match="small: no run leaves out t together with b"):
        protocol.select({"small": runs["small"][:2]}, "leave-one-domain-out", "t")
    with pytest.raises(ValueError, match="2 runs leave out t alone; a choice is made within one trial"):
        protocol.select({"twice": [trial([0.9]), trial([0.8])]}, "oracle", "t")
    with pytest.raises(ValueError, match="selection rule 'best' does not exist; choose training-domain"):
        protocol.select(runs, "best", "t")


def test_one_choice_for_all_targets_looks_at_their_mean_and_the_last_of_equals_wins():
    runs = {
        "even": [trial([0.7], ("t",), [0.1]), trial([0.7], ("u",), [0.3])],
        "odd": [trial([0.9], ("t",), [0.5]), trial([0.3], ("u",), [0.5])],
    }
    once = protocol.select(runs)
    assert (once.name, once.val, once.test) == ("even", pytest.approx(70), pytest.approx(20))
    assert protocol.select(runs, target="t").name == "odd"
    assert protocol.select({"one": [trial([0.5])], "two": [trial([0.5])]}).name == "two"


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


def test_what_ran_before_in_the_process_does_not_matter():
    domains = [toy(n, seed=k) for k, n in enumerate("abc")]
    config = ProtocolConfig(steps=5, every=5, batch=8)
    logs = []
    for before in (1, 2):
        torch.manual_seed(0)
        mixup = Mixup(nn.Flatten(), nn.Linear(48, 2), adam(1e-2), dropout=0.3)
        torch.manual_seed(before)
        protocol.train(mixup, domains, [2], config)
        logs.append([p.tolist() for p in mixup.parameters()])
    assert logs[0] == logs[1]


def test_a_training_stopped_between_evaluations_goes_on_to_the_same_numbers(tmp_path):
    domains = [toy(n, seed=k) for k, n in enumerate("abc")]
    config = ProtocolConfig(steps=13, every=4, batch=8, swad=(2, 3, 0.3))

    def gestur():
        torch.manual_seed(0)
        return Gestur(
            nn.Flatten(), nn.Linear(48, 2), adam(1e-2), GesturConfig(scope="all", decay=0.8), dropout=0.3
        )

    one, two, three = gestur(), gestur(), gestur()
    whole = protocol.train(one, domains, [2], config)
    part = protocol.train(two, domains, [2], config, folder=tmp_path, stop_after=2)
    assert [entry["step"] for entry in part.log] == [0, 4]
    torch.manual_seed(77)
    rest = protocol.train(three, domains, [2], config, folder=tmp_path)
    assert rest.log == whole.log
    assert rest.swad == whole.swad
    for p, q in zip(one.parameters(), three.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_target_is_a_number_or_a_name_alone_or_in_a_list():
    domains = [toy(n, seed=k) for k, n in enumerate("abc")]
    for target in (2, "c", [2], ("c",), np.int64(2), np.array([2])):
        found = protocol.train(algorithm(), domains, target, ProtocolConfig(steps=1, batch=4))
        assert (found.target, found.sources) == (("c",), ("a", "b"))


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
    small = Domain("small", b.images[:4], b.labels[:4])
    wanted = r"domain small has 4 images, of which a holdout of 0\.2 keeps none for validation; at least 5 are needed"
    with pytest.raises(ValueError, match=wanted):
        protocol.train(algorithm(), [a, small, c], [2], ProtocolConfig(steps=1))
    for bad, wanted in (
        ([], "no target domain is given; leave out at least one of a, b, c"),
        ("d", "target 'd' is not a domain; choose a, b, c, or their numbers"),
        (None, "target None is not a domain; choose a, b, c"),
        ([1.5], r"target 1\.5 is not a domain; choose a, b, c"),
        (-1, "target -1 does not exist; domains are numbered 0 to 2"),
        ([2, "c"], "target c is there twice; name every target once"),
    ):
        with pytest.raises(ValueError, match=wanted):
            protocol.train(algorithm(), [a, b, c], bad, ProtocolConfig(steps=1))
    for name, value in (("steps", 0), ("every", 0), ("batch", -1)):
        with pytest.raises(ValueError, match=f"{name} is {value}; a training needs 1 or more"):
            ProtocolConfig(**{name: value})
    with pytest.raises(ValueError, match=r"holdout is 1\.0; it is a share between 0 and 1"):
        ProtocolConfig(holdout=1.0)
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


CLASSES = {
    "pacs": ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
    "vlcs": ("bird", "car", "chair", "dog", "person"),
    "terraincognita": ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(data.SETS))
def test_real_folder_layouts(name, tmp_path):
    """The folders and numbers of classes of DomainBed's download script, with one tiny image per class."""
    from PIL import Image

    known = data.SETS[name]
    kinds = CLASSES.get(name) or [f"class {k:03d}" for k in range(known.classes)]
    Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(tmp_path / "one.jpg")
    image = (tmp_path / "one.jpg").read_bytes()
    for domain in known.domains:
        for kind in kinds:
            (tmp_path / known.folder / domain / kind).mkdir(parents=True)
            (tmp_path / known.folder / domain / kind / "picture_1.jpg").write_bytes(image)
    found = data.image_set(name, tmp_path)
    assert [d.name for d in found] == sorted(known.domains)
    assert found[0].labels.tolist() == list(range(known.classes))
    assert found[0].get(torch.tensor([1, 0])).shape == (2, 3, 224, 224)
    assert set(recipe.targets({"data": name})) == set(known.domains)


def test_a_set_with_missing_classes_or_domains_is_named(tmp_path):
    tree(tmp_path / "VLCS", data.SETS["vlcs"].domains, ("bird", "dog"), n=1)
    with pytest.raises(ValueError, match="VLCS has 2 classes; vlcs has 5"):
        data.image_set("vlcs", tmp_path)
    tree(tmp_path / "PACS", ("photo", "sketch"), ("dog",), n=1)
    with pytest.raises(ValueError, match="PACS has no domain folder 'art_painting'; pacs has art_painting"):
        data.image_set("pacs", tmp_path)


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


@pytest.mark.parametrize(("width", "height"), [(224, 224), (300, 200), (100, 400)])
def test_crops_are_distributed_as_torchvisions(width, height):
    """Two samples of 3000 boxes: means of height, width, top and left agree within 5 standard errors."""
    from PIL import Image
    from torchvision.transforms import RandomResizedCrop

    g = torch.Generator().manual_seed(0)
    ours = np.array([data.Augmentation.draw(g).box(width, height) for _ in range(3000)], float)
    torch.manual_seed(1)
    image = Image.new("RGB", (width, height))
    theirs = np.array(
        [RandomResizedCrop.get_params(image, (0.7, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)], float
    )
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 3000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= 5 * error + 1e-9).all()
    top, left, h, w = ours.T
    assert min(top.min(), left.min()) >= 0
    assert (top + h).max() <= height
    assert (left + w).max() <= width


def test_colours_are_distributed_as_torchvisions():
    g = torch.Generator().manual_seed(0)
    draws = [data.Augmentation.draw(g) for _ in range(2000)]
    colours = np.array([d.colours for d in draws])
    assert colours.min(0) == pytest.approx([0.7, 0.7, 0.7, -0.3], abs=0.01)
    assert colours.max(0) == pytest.approx([1.3, 1.3, 1.3, 0.3], abs=0.01)
    assert np.mean([d.mirror for d in draws]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([d.grey for d in draws]) == pytest.approx(0.1, abs=0.03)
    assert len({d.order for d in draws}) == 24


def test_ones_own_images_from_a_folder_to_a_result(tmp_path):
    """The recipe of the chapter: a tree domain/class/image, any featurizer, GESTUR, the protocol."""
    tree(tmp_path, ("clinic a", "clinic b", "clinic c"), ("healthy", "ill"), n=5)
    domains = data.image_folders(tmp_path, size=16)
    featurizer = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    gestur = Gestur(featurizer, nn.Linear(4, 2), adam(1e-3), GesturConfig(lam=0.1, decay=0.9))
    found = protocol.train(gestur, domains, [2], ProtocolConfig(steps=3, every=2, batch=4))
    assert (found.sources, found.target) == (("clinic a", "clinic b"), ("clinic c",))
    assert [entry["step"] for entry in found.log] == [0, 2]
    assert 0 <= found.result()["test"] <= 100


def test_trees_that_do_not_fit_are_one_sentence(tmp_path, monkeypatch):
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
    from PIL import Image

    tree(tmp_path / "four", ("x", "y"), ("a",), n=1)
    big = data.image_folders(tmp_path / "four")[1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 600 pixels are more than twice as many
    with pytest.raises(ValueError, match=r"y/a/0\.jpg cannot be read as an image \(DecompressionBombError\)"):
        big.get(torch.tensor([0]))
    with pytest.raises(ValueError, match="data set 'imagenet' does not exist; choose pacs, vlcs"):
        data.image_set("imagenet")


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(
        ValueError, match=r"nothing is no folder; a folder with the tree domain/class/image is needed"
    ):
        data.image_folders(tmp_path / "nothing")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match=r"file is no folder"):
        data.image_folders(tmp_path / "file")


def broken_png():
    """A PNG whose second data chunk has a name of bytes that no chunk has."""
    from PIL import Image

    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    made = io.BytesIO()
    Image.fromarray(noise).save(made, "png")
    whole = made.getvalue()
    start = whole.index(b"IDAT") - 4
    size = int.from_bytes(whole[start : start + 4], "big")
    body, half = whole[start + 8 : start + 8 + size], size // 2
    first = b"IDAT" + body[:half]
    crc = zlib.crc32(first).to_bytes(4, "big")
    second = (size - half).to_bytes(4, "big") + bytes([0, 1, 2, 3]) + body[half:] + bytes(4)
    return whole[:start] + half.to_bytes(4, "big") + first + crc + second


@pytest.mark.parametrize(("name", "content", "kind"), [
    ("0.png", broken_png(), "SyntaxError"),
    ("0.ppm", b"P3\n2 2\n255\n1 2 3 x y z 1 2 3 4 5 6\n", "ValueError"),
    ("0.ppm", b"P3\n2 2\n255\n1 2 3\n", "ValueError"),
])  # fmt: skip
def test_an_image_that_breaks_off_later_is_one_sentence_with_its_name(tmp_path, name, content, kind):
    from PIL import Image

    with pytest.raises(Exception) as raw, Image.open(io.BytesIO(content)) as image:
        image.convert("RGB")
    assert type(raw.value).__name__ == kind  # what the library says of it, without the name
    tree(tmp_path, ("x", "y"), ("a",), n=1)
    (tmp_path / "x" / "a" / "0.jpg").unlink()
    (tmp_path / "x" / "a" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^x/a/0\.{name[2:]} cannot be read as an image \({kind}\)$"):
        data.image_folders(tmp_path)[0].get(torch.tensor([0]))


def test_digits_are_reached_by_name():
    for name, count in (("rotated-digits", 6), ("coloured-digits", 3)):
        names = recipe.targets({"data": name})
        assert sorted(d.name for d in recipe.domains({"data": name}, names[0], 0)) == sorted(names)
        assert len(names) == count
    with pytest.raises(ValueError, match="data 'cifar' does not exist; choose glyphs, digits, pacs-small"):
        recipe.targets({"data": "cifar"})


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
    not os.environ.get("COMPANION_TEST_DATA"), reason="COMPANION_DATA names no folder with the public sets"
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
