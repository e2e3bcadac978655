"""From settings to trainings: variants, the cache of finished trainings, and the table of everything."""

import json

import pytest
import torch

from companion import records, tables
from companion.gestur import recipe, summary, world

SMALL = {"data": "glyphs", "size": 16, "images": 60, "backbone": "glyphs", "steps": 4, "every": 2, "batch": 4, "lr": 1e-3,
         "head_factor": 10.0, "memory": 1.0, "method": "gestur"}  # fmt: skip


def test_variants_have_names_and_settings():
    found = recipe.variants("erm: method=erm|lam=0.1|plain: norm=none lam=0.5 halve=false")
    assert found == {
        "erm": {"method": "erm"},
        "lam=0.1": {"lam": 0.1},
        "plain": {"norm": "none", "lam": 0.5, "halve": False},
    }
    with pytest.raises(ValueError, match="variant 'lam=1' is there twice"):
        recipe.variants("lam=1|lam=1")
    with pytest.raises(ValueError, match="'speed' is no setting; choose from method"):
        recipe.variants("speed=3")


def test_settings_name_what_differs_from_the_defaults():
    config = recipe.method_config({**SMALL, "lam": 0.1})
    assert recipe.settings(config) == "lr=0.001, head_factor=10, lam=0.1, decay=0.75"
    # a method's own numbers are there at their defaults, others' never
    miro = recipe.method_config({**SMALL, "method": "miro"})
    assert recipe.settings(miro) == "lr=0.001, head_factor=10, miro=0.1"
    plain = recipe.method_config({**SMALL, "norm": "none", "halve": False})
    assert recipe.settings(plain).endswith("decay=0.75, norm=none, halve=False")


def test_a_finished_training_is_kept_and_every_setting_that_matters_makes_another(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    net = recipe.backbone(SMALL)
    parts = recipe.domains(SMALL, "art", 0, 0.5)
    one = recipe.trial(SMALL, net, parts, "art", 0, 0.5, lam=0.1)
    assert one.swad is not None  # small networks are averaged densely, too
    assert len(list(tmp_path.iterdir())) == 1
    kept = next(tmp_path.iterdir()) / "trial.json"
    content = json.loads(kept.read_text())
    content["log"][0]["step"] = 77
    kept.write_text(json.dumps(content))
    assert recipe.trial(SMALL, net, parts, "art", 0, 0.5, lam=0.1).log[0]["step"] == 77
    # what only decides which tables show the training does not matter
    again = recipe.trial(
        {**SMALL, "variants": "x", "against": "y", "swad": True}, net, parts, "art", 0, 0.5, lam=0.1
    )
    assert again.log[0]["step"] == 77
    for change, strength, seed in (({"lam": 0.2}, 0.5, 0), ({"lam": 0.1}, 0.6, 0), ({"lam": 0.1}, 0.5, 1)):
        assert recipe.trial(SMALL, net, parts, "art", seed, strength, **change).log[0]["step"] == 0
    assert len(list(tmp_path.iterdir())) == 4
    # what leave-one-domain-out selection looks at: a source is left out with the target
    both = recipe.trial(SMALL, net, parts, "art", 0, 0.5, also="photo", lam=0.1)
    assert (both.target, both.sources) == (("art", "photo"), ("cartoon", "sketch"))
    assert len(list(tmp_path.iterdir())) == 5


def record(folder, seed, per_target, row="strong"):
    cell = tables.cell("gestur", "shortcut", row, "all")
    run = records.Run(cell, seed, folder)
    run.save(
        dict.fromkeys(cell.metrics, 1.0), notes={"per target": per_target, "settings": {"gestur": "lam=0.1"}}
    )


def test_the_table_of_everything(tmp_path):
    for seed in (0, 1):
        art = {"test": 70.0 + 4 * seed, "val": 90.0, "last": 60.0, "step": 10 * seed}
        sketch = {"test": 80.0 + 4 * seed, "val": 92.0, "last": 64.0, "step": 20}
        record(tmp_path, seed, {"0.95": {"erm": {"art": art}, "gestur": {"art": art, "sketch": sketch}}})
    found = summary.everything("gestur", "shortcut", "reduced", "strong", {"gestur": "GESTUR"}, tmp_path)
    line = found.loc["GESTUR"]
    # standard error over two trials, deviation with n in the denominator: 2 / √2
    assert (line["art"], line["sketch"], line["mean"]) == ("72.0 ± 1.4", "82.0 ± 1.4", "77.0 ± 1.4")
    assert (line["sources"], line["last step"], line["trials"]) == ("91.0 ± 0.0", "62.0 ± 0.0", 2)
    assert (line["chosen steps"], line["settings"]) == ("0–20", "lam=0.1")
    with pytest.raises(ValueError, match="no valid records of gestur shortcut at scale reduced, row weak"):
        summary.everything("gestur", "shortcut", "reduced", "weak", folder=tmp_path)
    assert "held-out images of the sources" in summary.rule()


def test_differences_have_the_sign_that_their_head_says(tmp_path):
    cell = tables.cell("gestur", "ablation", "strong", "all")
    for seed in (0, 1):
        metrics = dict.fromkeys(cell.metrics, 70.0 + seed)
        ours = next(c.metric for c in tables.table("gestur", "ablation").columns if c.id == "published")
        records.Run(cell, seed, tmp_path).save(metrics | {ours: 75.0 + seed})
    frame = summary.differences("ablation", "reduced", "published", tmp_path)
    assert set(frame.iloc[:, 0]) == {"+5.0 ± 0.0"}
    frame = summary.differences("ablation", "reduced", "published", tmp_path, others_minus=True)
    assert frame.index.name.startswith("minus ")
    assert set(frame.iloc[:, 0]) == {"−5.0 ± 0.0"}


def test_rivals_are_paired_by_seed_and_best_first(tmp_path):
    for row, values in {"gestur": (30.0, 32.0), "erm": (31.0, 34.0), "mixup": (20.0,)}.items():
        cell = tables.cell("gestur", "pacs", row, "all", "real")
        for seed, value in enumerate(values):
            records.Run(cell, seed, tmp_path).save(dict.fromkeys(cell.metrics, value))
    frame = summary.rivals(folder=tmp_path)
    assert list(frame.index) == ["ERM", "GESTUR (λ = 0.1)", "Mixup"]
    gaps = list(frame["GESTUR (λ = 0.1) minus it"])
    assert gaps[0].startswith("−1.5 ± ")
    assert gaps[1:] == ["–", "+10.0"]
    with pytest.raises(ValueError, match="no valid records of gestur pacs"):
        summary.rivals(row="sam", folder=tmp_path)


def test_standing_says_who_is_ahead_by_more_than_the_interval(tmp_path):
    methods = {"gestur": (30.0, 32.0, 31.0), "erm": (20.0, 22.1, 20.9), "miro": (40.0, 42.1, 41.0),
               "sam": (29.0, 33.0, 31.0), "mixup": (10.0,)}  # fmt: skip
    for row, values in methods.items():
        cell = tables.cell("gestur", "pacs", row, "all", "real")
        for seed, value in enumerate(values):
            records.Run(cell, seed, tmp_path).save(dict.fromkeys(cell.metrics, value))
    assert summary.gaps("pacs", "real", "gestur", folder=tmp_path)["Mixup"] == [20.0]
    assert summary.standing("pacs", "real", "gestur", folder=tmp_path) == (
        "ahead of ERM (+10.0 ± 0.2); behind MIRO (−10.0 ± 0.1); "
        "not to be told apart from Mixup and SAM (1 to 3 seeds)"
    )
    # the same where one run trains all methods
    cell = tables.cell("gestur", "shortcut", "strong", "all")
    for seed in (0, 1):
        metrics = dict.fromkeys(cell.metrics, 70.0) | {"test@gestur": 75.0, "test@miro": 76.0}
        records.Run(cell, seed, tmp_path).save(metrics)
    said = summary.standing("shortcut", "reduced", "gestur", "strong", tmp_path)
    assert said.startswith("ahead of Linear probe (frozen) (+5.0 ± 0.0), ERM (+5.0 ± 0.0), ")
    assert said.endswith("; behind MIRO (−1.0 ± 0.0) (2 seeds)")
    shown = summary.said(
        lambda *given: summary.standing(*given, tmp_path), "shortcut", "reduced", "gestur", start="GESTUR is"
    )
    assert shown.startswith("<ul><li><strong>s = 0.95</strong>: GESTUR is ahead of Linear probe")
    assert shown.endswith("<li><strong>s = 0.5</strong>: not run yet.</li></ul>")


def test_numbers_in_sentences_are_paired_by_seed_and_say_where_there_are_none(tmp_path):
    cell = tables.cell("gestur", "shortcut", "strong", "all")
    for seed, (gestur, erm) in enumerate(((75.0, 70.0), (77.0, 70.0))):
        metrics = dict.fromkeys(cell.metrics, 60.0) | {
            "test@gestur": gestur,
            "test@erm": erm,
            "val@erm": 90.0,
        }
        records.Run(cell, seed, tmp_path).save(metrics)
    ours, erm, sources = (
        summary.by_seed("shortcut", "reduced", "strong", name, tmp_path)
        for name in ("test@gestur", "test@erm", "val@erm")
    )
    assert ours == {0: 75.0, 1: 77.0}
    assert summary.points(ours) == "76.0 ± 12.7"
    assert summary.points(ours, erm) == "6.0 ± 12.7"
    assert summary.points(erm, ours) == "−6.0 ± 12.7"
    assert summary.points(ours, {1: 70.0, 5: 0.0}) == "7.0"  # one seed in common has no interval
    assert summary.points(sources) == "90.0 ± 0.0"
    assert summary.each({1: -0.5, 0: 1.125}) == "1.12 and −0.50"
    none = summary.by_seed("shortcut", "reduced", "weak", "test@gestur", tmp_path)
    assert (none, summary.points(none), summary.points(ours, none), summary.each(none)) == (
        {},
        *["(not run)"] * 3,
    )


def test_whether_the_prototypes_order_stands(tmp_path):
    """Ahead, behind and level by intervals over seeds; the scale that has not been run has no column."""
    cell = tables.cell("gestur", "shortcut", "strong", "all")
    for seed in (0, 1):
        metrics = dict.fromkeys(cell.metrics, 70.0)
        metrics |= {"test@erm": 60.0, "test@ema": 62.0 + seed * 0.2, "test@gestur": 65.0, "test@miro": 64.0,
                    "test@linear-probe": 60.0 + 10 * seed}  # fmt: skip
        records.Run(cell, seed, tmp_path).save(metrics)
    cell = tables.cell("gestur", "shortcut", "weak", "all")
    for seed in (0, 1):
        metrics = dict.fromkeys(cell.metrics, 70.0) | {"test@gestur": 72.0, "test@miro": 72.0 + 2 * seed}
        records.Run(cell, seed, tmp_path).save(metrics)
    found = summary.prototype(tmp_path)
    assert list(found.columns) == ["reduced scale"]
    said = found["reduced scale"].to_dict()
    assert said == {
        "s = 0.95: EMA (λ = 0) ahead of ERM": "+2.1 ± 1.3 (2 seeds): stands",
        "s = 0.95: GESTUR (λ = 0.1) ahead of EMA (λ = 0)": "+2.9 ± 1.3 (2 seeds): stands",
        "s = 0.95: MIRO ahead of GESTUR (λ = 0.1)": "−1.0 ± 0.0 (2 seeds): does not stand",
        "s = 0.95: Linear probe (frozen) ahead of GESTUR (λ = 0.1)": "+0.0 ± 63.5 (2 seeds): open",
        "s = 0.5: GESTUR (λ = 0.1) level with EMA (λ = 0)": "+2.0 ± 0.0 (2 seeds): does not stand",
        "s = 0.5: MIRO ahead of GESTUR (λ = 0.1)": "+1.0 ± 12.7 (2 seeds): open",
        "s = 0.5: Linear probe (frozen) ahead of GESTUR (λ = 0.1)": "−2.0 ± 0.0 (2 seeds): does not stand",
    }
    with pytest.raises(ValueError, match="no valid records of gestur shortcut"):
        summary.prototype(tmp_path / "none")


def test_the_curve_in_words_names_the_lambdas_that_leave_zero(tmp_path):
    cell = tables.cell("gestur", "pacs-lambda", "gestur", "all", "real")
    for seed in (0, 1):
        metrics = dict.fromkeys(cell.metrics, 30.0 + seed) | {
            "test@lam=0.3": 28.0 + seed,
            "test@lam=1": 29.0 + 3 * seed,
            "test@best": 31.0 + seed,
        }
        records.Run(cell, seed, tmp_path).save(metrics, notes={"chosen": "lam=0" if seed else "lam=0.01"})
    assert summary.curve("pacs-lambda", "real", folder=tmp_path) == (
        "The unseen accuracy is 30.5 ± 6.4 % at λ = 0 and 30.5 ± 19.1 % at λ = 1; the difference to λ = 0 excludes zero "
        "at λ = 0.3 (−2.0 ± 0.0). The best λ, seen from the target, has 1.0 ± 0.0 points more than λ = 0. Validation on the "
        "sources, choosing one λ for all domains, picks λ = 0 in 1 of 2 seeds; what it picks has 0.0 ± 0.0 points more than "
        "λ = 0."
    )
    with pytest.raises(ValueError, match="no valid records of gestur pacs-lambda at scale real, row gestur"):
        summary.curve("pacs-lambda", "real", folder=tmp_path / "none")


def test_costs_show_every_run(tmp_path):
    cell = tables.cell("gestur", "cost", "resnet50", "all", "full")
    for seed in (0, 1):
        records.Run(cell, seed, tmp_path).save(dict.fromkeys(cell.metrics, 1.5 - 2 * seed))
    line = summary.costs(tmp_path).loc["ResNet-50"]
    assert (line["runs"], line["time, GESTUR"]) == (2, "1.50, −0.50")
    assert line["memory, GESTUR"] == "1.500, −0.500"  # enough digits to compare with a bound of 1.1
    with pytest.raises(ValueError, match="no valid records of gestur cost"):
        summary.costs(tmp_path / "none")


def test_figures_show_means_and_intervals_of_the_valid_records(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(records, "evidence_folder", lambda: tmp_path)
    cell = tables.cell("gestur", "lambda", "gestur-strong", "all")
    for seed, value in enumerate((70.0, 80.0)):
        metrics = dict.fromkeys(cell.metrics, value)
        metrics |= {k.replace("test@", "val@"): value + 10 for k in cell.metrics}
        records.Run(cell, seed, tmp_path).save(metrics, notes={"chosen": "lam=0.03"})
    fig = summary.figure_lambda()
    strong, weak = fig.axes
    assert [list(line.get_ydata()) for line in strong.lines if len(line.get_ydata()) == 6][:1] == [[85.0] * 6]
    assert [t.get_text() for t in strong.texts] == ["chosen 2×"]
    assert not weak.lines  # nothing has been run there
    assert summary.interval([70.0, 80.0])[1] == pytest.approx(12.7062 * 50**0.5 / 2**0.5)
    frame = summary.differences("lambda", "reduced", "lam-0.1", tmp_path)
    assert frame.loc["λ = 0 (EMA)", "GESTUR, s = 0.95 (2 seeds)"] == "+0.0 ± 0.0"
    shown = summary.block(
        summary.differences, "lambda", "reduced", "lam-0.1", tmp_path, caption="Points", fold="λ < 1"
    )
    assert "+0.0 ± 0.0" in shown
    assert "<caption>Points</caption>" in shown
    assert shown.startswith("<details><summary>λ &lt; 1</summary>")
    # a page is built all the same where nothing has been run
    assert summary.block(summary.selection, tmp_path, caption="Rules.") == "<p>Not run: Rules.</p>"
    summary.figure_ablation()  # empty, not an error
    assert summary.drawn(summary.figure_methods, "real", otherwise="Not yet <.") == "<p>Not yet &lt;.</p>"
    assert summary.drawn(summary.figure_pretraining, otherwise="Not yet.") == "<p>Not yet.</p>"
    assert summary.drawn(summary.figure_lambda, otherwise="Not yet.") is None
    plt.close("all")


def curves(at):
    """The curves of a record of the table "gradients", two points each; `at` is the second one's height."""
    names = ["source gradient", "estimate", "both together", "bias, source gradient", "bias, both together",
             *(f"estimate, {style}" for style in world.STYLES), "loss on the way, sources", "loss on the way, unseen"]  # fmt: skip
    return {name: [[0.0, 1.0], [1.0, at + k]] for k, name in enumerate(names)}


def measured(folder, row, heights):
    cell = tables.cell("gestur", "gradients", row, "all")
    for seed, at in enumerate(heights):
        records.Run(cell, seed, folder).save(dict.fromkeys(cell.metrics, 0.0), curves=curves(at))


def test_the_gradients_are_drawn_at_both_strengths_with_their_intervals(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(records, "evidence_folder", lambda: tmp_path)
    for make in (summary.figure_gradients, summary.figure_styles, summary.figure_way):
        assert summary.drawn(make, otherwise="Not yet.") == "<p>Not yet.</p>"
    measured(tmp_path, "ema", (5.0,))
    measured(tmp_path, "gestur", (0.5, 0.7))

    def ends(ax):
        return [line.get_ydata()[-1] for line in ax.lines if len(line.get_ydata())]

    fig = summary.figure_gradients()
    cosines, weak_cosines, biases, _ = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["s = 0.95 (2 seeds)", "s = 0.5 (0 seeds)", "", ""]
    # means of the two seeds of the first, third and second curve, the second curve at λ = 0, and zero
    assert ends(cosines) == pytest.approx([0.6, 2.6, 1.6, 6.0, 0.0])
    assert ends(biases) == pytest.approx([3.6, 4.6])
    assert ends(weak_cosines) == [0.0]  # nothing has been run there
    names = ["source gradient", "both together", "estimate", "estimate at λ = 0"]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == names
    # the lower panels have no legend of their own
    assert [line.get_color() for line in biases.lines] == [line.get_color() for line in cosines.lines[:2]]

    fig = summary.figure_styles()
    assert ends(fig.axes[0]) == pytest.approx([5.6, 6.6, 7.6, 8.6, 0.0])
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["art", "cartoon", "photo", "sketch"]
    plt.close("all")


def test_the_way_from_the_pretrained_weights_is_drawn_with_its_interval(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(records, "evidence_folder", lambda: tmp_path)
    measured(tmp_path, "gestur", (0.5, 0.7))
    other, ours, *weak = summary.figure_way().axes
    assert ours.get_title() == "λ = 0.1, s = 0.95 (2 seeds)"
    assert [list(line.get_xdata()) for line in ours.lines] == [[0.0, 1.0]] * 2
    assert [y for line in ours.lines for y in line.get_ydata()] == pytest.approx([1.0, 9.6, 1.0, 10.6])
    assert max(ours.collections[0].get_paths()[0].vertices[:, 1]) == pytest.approx(9.6 + 12.7062 * 0.1)
    assert other.get_title() == "λ = 0, s = 0.95 (0 seeds)"
    assert [ax.get_title() for ax in weak] == ["λ = 0, s = 0.5 (0 seeds)", "λ = 0.1, s = 0.5 (0 seeds)"]
    assert not any(len(line.get_xdata()) for line in other.lines)
    plt.close("all")


def test_fixed_sets_are_read_once():
    p = {"data": "coloured-digits"}
    first = recipe.domains(p, "agree-0.9", 3)
    assert all(a is b for a, b in zip(first, recipe.domains(p, "agree-0.1", 3), strict=True))
    assert not torch.equal(first[0].labels, recipe.domains(p, "agree-0.1", 4)[0].labels)


def test_what_the_selection_rules_picked(tmp_path):
    cell = tables.cell("gestur", "selection", "strong", "all")
    for seed, gain in enumerate((2.0, 4.0)):
        metrics = dict.fromkeys(cell.metrics, 70.0) | {"test@crossed": 70.0 + gain}
        picks = {"art": "lam=0.3", "sketch": "lam=0" if seed else "lam=0.3"}
        records.Run(cell, seed, tmp_path).save(metrics, notes={"crossed by style": picks})
    found = summary.selection(tmp_path).set_index("rule").loc["leave one domain out"]
    assert found["unseen"].startswith("73.0 ±")
    assert found["above λ = 0"].startswith("+3.0 ±")
    assert found["λ picked (times)"] == "0 (1), 0.3 (3)"


def test_the_gradients_are_measured_at_every_step_on_all_images_of_every_style_at_both_strengths():
    """What the chapter and the captions say of the table; only λ and the strength differ between its rows."""
    t = tables.table("gestur", "gradients")
    runs = {row.id: dict(t.cell(row.id, "all", "reduced").parameters) for row in t.rows}
    differ = {row: (p.pop("strength"), p.pop("lam")) for row, p in runs.items()}
    assert differ == {
        "ema": (0.95, 0.0),
        "gestur": (0.95, 0.1),
        "ema-weak": (0.5, 0.0),
        "gestur-weak": (0.5, 0.1),
    }
    assert summary.PAIRS == (("ema", "gestur"), ("ema-weak", "gestur-weak"))
    assert len({json.dumps(p, sort_keys=True) for p in runs.values()}) == 1
    p = runs["ema"]
    assert (p["watch"], p["probe"]) == (1, p["images"])
    assert recipe.targets(p) == list(world.STYLES)


def test_what_the_gradients_say_per_style(tmp_path):
    cell = tables.cell("gestur", "gradients", "gestur-weak", "all")
    for seed, cosine in enumerate((0.1, 0.3)):
        style = {
            "source": 0.2,
            "estimate": cosine,
            "combined": 0.2 + cosine / 10,
            "gain": -0.02,
            "relief": 0.01,
        }
        metrics = dict.fromkeys(cell.metrics, 0.0) | style
        per_style = {"art": style, "cartoon": style | {"gain": 0.03}, "photo": style | {"gain": 0.04 + 0.002 * seed},
                     "sketch": style | {"estimate": -cosine, "gain": 0.1 * seed}}  # fmt: skip
        curve = {"estimate": [[step, step] for step in range(1, 5)]}
        records.Run(cell, seed, tmp_path).save(metrics, curves=curve, notes={"per target": per_style})
    found = summary.directions("gestur-weak", tmp_path)
    assert found.index.name == "GESTUR, λ = 0.1, s = 0.5 (2 seeds)"
    assert list(found.columns) == ["art", "cartoon", "photo", "sketch", "mean"]
    estimate = found.loc["estimate: cosine with the unseen gradient"]
    assert estimate["art"] == "+0.200 ± 1.271"  # 12.7062 times the standard error of two values
    assert estimate["sketch"].startswith("−0.200")
    adds = found.loc["what the estimate adds to the cosine with the unseen gradient"]
    assert adds["mean"].startswith("+0.020")
    wanted = "what it adds to the cosine with the wanted direction"
    assert summary.signs(wanted, "gestur-weak", tmp_path) == (
        "above zero for cartoon and photo; below zero for art; not to be told apart from zero for sketch"
    )
    assert summary.stretch("gestur-weak", "estimate", 2, 3, tmp_path) == {0: 2.5, 1: 2.5}
    assert summary.stretch("gestur", "estimate", 2, 3, tmp_path) == {}
    with pytest.raises(ValueError, match="no valid records of gestur gradients at scale reduced, row gestur"):
        summary.directions(folder=tmp_path)
    with pytest.raises(ValueError, match="no valid records of gestur gradients"):
        summary.signs(wanted, "ema", tmp_path)
    cell = tables.cell("gestur", "gradients", "ema", "all")
    records.Run(cell, 0, tmp_path).save(metrics, notes={"per target": per_style})
    assert summary.signs(wanted, "ema", tmp_path) == "measured at one seed only, which has no interval"


def test_the_settings_of_the_papers_tables():
    found = summary.published()

    def line(backbone, method, data):
        here = found[(found.backbone == backbone)
                     & found.method.map(lambda m: method in m.split(" · "))
                     & found.data.map(lambda d: data in d.split(" · "))]  # fmt: skip
        assert len(here) == 1
        return here.iloc[0]

    vlcs = line("resnet50", "GESTUR", "vlcs")
    assert vlcs["method"] == "GESTUR · GESTUR + SWAD"
    assert (vlcs["own"], vlcs["dropout"], vlcs["steps"]) == ("lam = 0.05, decay = 0.999", "0.5", "5001")
    assert line("resnet50", "EMA of ERM (λ = 0)", "vlcs")["own"] == "lam = 0, decay = 0.999"
    assert line("swag-regnety-16gf", "MIRO", "domainnet")["own"] == "miro = 0.1"
    assert line("swag-regnety-16gf", "MIRO", "pacs")["images per source"] == "16"
    assert line("resnet50", "GESTUR", "domainnet")["evaluated every"] == "1000"
    assert line("resnet50", "GESTUR", "domainnet")["images per source"] == "32"
    assert line("clip-vit-b16", "GESTUR", "domainnet")["images per source"] == "24"
    assert line("clip-vit-b16", "GESTUR", "officehome")["images per source"] == "32"
