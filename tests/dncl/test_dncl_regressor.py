"""The estimator: scikit-learn's checks, formulas in the data's units, limits, and bad input."""

import time

import numpy as np
import pandas as pd
import pytest
import sympy
from sklearn.utils.estimator_checks import check_estimator

from companion.dncl import SymbolicRegressor, evolve, regressor, score_formula


def quick(**changes):
    return SymbolicRegressor(**({"max_seconds": None, "network": None, "rounds": 1} | changes))


def data(n=60, eta=0.02, seed=0):
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"time": rng.uniform(0.1, 3, n), "mass": rng.uniform(1, 4, n)})
    y = X["mass"].to_numpy() * np.sin(X["time"].to_numpy())
    return X, y + eta * np.sqrt(np.mean(y**2)) * rng.normal(size=n)


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks_pass():
    check_estimator(quick(rounds=0))


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks_pass_with_the_shipped_network():
    check_estimator(SymbolicRegressor(None, rounds=0, beam=2, samples=2, subsets=1))


def test_a_noisy_formula_comes_back_with_the_columns_names():
    X, y = data()
    model = quick(rounds=3).fit(X, y)
    time_, mass = sympy.symbols("time mass", real=True)
    assert sympy.simplify(model.sympy() - mass * sympy.sin(time_)) == 0
    assert model.latex() == r"mass \sin{\left(time \right)}"
    assert model.formula_ == "mass*sin(time)"
    np.testing.assert_allclose(model.predict(X), X["mass"] * np.sin(X["time"]))
    assert model.score(X, y) > 0.99
    assert list(model.feature_names_in_) == ["time", "mass"]


def test_the_front_is_a_front_and_holds_the_selected_formula():
    X, y = data()
    front = quick().fit(X, y).equations_
    assert {"formula", "length", "r2", "mse", "bic", "constants", "errors", "selected"} <= set(front.columns)
    assert front["selected"].sum() == 1
    assert (front["length"].diff().dropna() >= 0).all()
    inside = front[~front["selected"]]
    assert (inside["mse"].diff().dropna() <= 1e-12).all()
    chosen = front[front["selected"]].iloc[0]
    assert chosen["bic"] <= front["bic"].min() + 1e-9


def test_scaling_is_folded_back():
    rng = np.random.default_rng(1)
    X = pd.DataFrame({"p": rng.uniform(1e4, 9e4, 80), "q": rng.uniform(1e-4, 9e-4, 80)})
    y = 3.0 * X["p"].to_numpy() / X["q"].to_numpy()
    model = quick(rounds=2).fit(X, y)
    p, q = sympy.symbols("p q", real=True)
    got = float((model.sympy() / (3 * p / q)).subs({p: 2e4, q: 5e-4}))
    assert got == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(model.predict(X), y, rtol=1e-6)


def test_years_are_counted_from_a_round_one():
    year = np.linspace(1991, 2019, 60)
    X = pd.DataFrame({"year": year})
    y = 0.5 * np.sin(year - 1990) + 3
    model = quick(rounds=2).fit(X, y)
    assert model.formula_ == "0.5*sin(year - 1990) + 3"
    np.testing.assert_allclose(model.predict(X), y, atol=1e-8)
    assert regressor._origin(np.array([2.0, 2.2])) == 0  # wide enough to stay as it is
    assert regressor._origin(np.array([-301.25, -301.21])) == pytest.approx(-301.25)


def test_the_front_names_a_formula_once_and_nothing_below_the_mean():
    X, y = data(80, 0.05)
    front = quick().fit(X, y * 6.7).equations_
    chosen = front.loc[front["selected"], "formula"].iloc[0]
    assert (front["formula"] == chosen).sum() == 1
    assert (front["r2"] > 0).all()


def test_nothing_but_noise_is_said():
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="no formula describes the targets better than a constant"):
        quick().fit(rng.uniform(0, 4, (50, 1)), rng.normal(size=50))


def test_numbers_that_were_set_are_written_as_what_they_are():
    numbers = (np.pi / 2, 1 / 3, -4.0, 0.25)
    assert [str(evolve._exact(v)) for v in numbers] == ["pi/2", "1/3", "-4", "0.250000000000000"]
    x = np.linspace(0.1, 3, 60)[:, None]
    y = np.pi * x[:, 0] ** 2 * (1 + 0.001 * np.random.default_rng(1).normal(size=60))
    assert quick().fit(x, y).formula_ == "pi*x1**2"


def test_a_factor_is_a_number_however_little_time_there_is():
    x = np.linspace(0.1, 4, 50)[:, None]
    assert SymbolicRegressor(1e-6, network=None).fit(x, 2.3 * np.sin(x[:, 0])).formula_ == "2.3*sin(x1)"


def test_errors_of_constants_cover_the_truth():
    rng = np.random.default_rng(2)
    x = rng.uniform(0, 4, 300)
    inside = 0
    for k in range(10):
        y = 2.0 * np.exp(-0.7 * x) + 0.02 * np.random.default_rng(k).normal(size=300)
        got = score_formula("c*exp(c*x1)", x, y)
        assert list(got.constants) == ["c0", "c1"]
        (a, b), (ea, eb) = sorted(got.constants.values()), got.errors.values()
        inside += abs(b - 2.0) < 2 * ea and abs(a + 0.7) < 2 * eb
    assert inside >= 6
    assert 0.001 < ea < 0.02


def test_known_error_bars_change_the_answer():
    rng = np.random.default_rng(3)
    x = np.linspace(0.1, 3, 60)[:, None]
    sigma = np.where(np.arange(60) % 2, 0.01, 2.0)
    # the bad points are off by 1.5 on average: only their error bars say not to listen
    y = np.sin(x[:, 0]) + np.where(sigma > 1, 1.5, 0.0) + np.minimum(sigma, 0.3) * rng.normal(size=60)
    weighted = quick(noise="weights", rounds=2).fit(x, y, 1 / sigma**2)
    assert weighted.formula_ == "sin(x1)"
    assert quick(rounds=2).fit(x, y).formula_ != "sin(x1)"
    told = quick(noise=0.3).fit(x, y)
    assert len(told.sympy().free_symbols) <= 1
    with pytest.raises(ValueError, match="sample_weight"):
        quick(noise="weights").fit(x, y)


def test_it_repeats_itself_and_respects_the_clock():
    X, y = data(40)
    a, b = (quick(random_state=5).fit(X, y).equations_["formula"].tolist() for _ in range(2))
    assert a == b
    began = time.monotonic()
    model = SymbolicRegressor(1.0, network=None, rounds=1000).fit(*data(200, 0.2))
    assert time.monotonic() - began < 3.0  # a round in progress is finished
    assert model.formula_
    assert SymbolicRegressor(1e-6, network=None).fit(X, y).formula_  # a line at least


def test_the_shipped_network_loads_quickly_and_proposes():
    from companion.dncl import pretrained

    pretrained.load.cache_clear()
    began = time.process_time()
    net = pretrained.load()
    assert time.process_time() - began < 1.0
    assert sum(p.numel() for p in net.parameters()) > 1e5
    for path in pretrained.SHIPPED.glob("*.safetensors"):
        assert path.stat().st_size < 15 * 2**20
    X, y = data()
    model = SymbolicRegressor(None, rounds=0, beam=8, samples=8).fit(X, y)
    assert len(model.proposals_) > 5
    with pytest.raises(ValueError, match=r"nowhere\.json"):
        pretrained.load("nowhere.safetensors")


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.ones((10, 1)) * np.arange(10)[:, None], np.full(10, 3.0), "constant"),
        (np.arange(3.0)[:, None], np.arange(3.0), "n_samples=3"),
        (np.ones((1, 1)), np.ones(1), "n_samples=1"),
        (np.ones((50, 1)), np.arange(50.0) // 25, "2 different points"),
        (np.ones((10, 2)), np.arange(10.0), "every column"),
        (np.array([[np.nan]] * 10), np.arange(10.0), r"X is NaN in row 0, column 0 .*leave such points out"),
        (
            np.array([[1.0, -np.inf]] * 10),
            np.arange(10.0),
            r"X is infinite \(inf\) in row 0, column 1",
        ),
        (
            pd.DataFrame({"t": [*range(9), None], "p": range(10)}),
            np.arange(10.0),
            "X is NaN in row 9, column 't'",
        ),
        (np.arange(10.0)[:, None], np.array([1.0] * 4 + [np.nan] * 6), r"y is NaN in row 4 \("),
        (np.arange(10.0)[:, None], np.arange(10.0) * 1e200, "1e100"),
        (
            pd.DataFrame({"t": np.arange(10.0), "site": list("abababacac")}),
            np.arange(10.0),
            "'site' holds 'a'",
        ),
        (pd.DataFrame({"day": pd.date_range("2020", periods=10)}), np.arange(10.0), "'day' holds '2020"),
    ],
)
def test_bad_data_is_refused(X, y, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(X, y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": "none"}, "'none'"),
        ({"noise": -0.1}, "-0.1"),
        ({"max_seconds": 0}, "0"),
        ({"max_points": 2}, "2"),
        ({"noise": None}, "None"),
        ({"beam": -1}, "beam is -1; it is a whole number, 0 or more"),
        ({"beam": "a"}, "beam is 'a'; it is a whole number, 0 or more"),
        ({"max_seconds": "5"}, "max_seconds is '5'; choose a number above 0"),
        ({"max_points": None}, "max_points is None; it is a whole number, 4 or more"),
        ({"noise": True}, "noise is True"),
        ({"rounds": 1.5}, "rounds is 1.5; it is a whole number"),
        ({"token_price": "dear"}, "token_price is 'dear'; it is 0 or more"),
        ({"subsets": 0}, "subsets is 0; it is a whole number, 1 or more"),
        ({"rounds": -1}, "rounds is -1"),
        ({"token_price": -3}, "token_price is -3"),
        ({"selection": "aic"}, "'aic'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        quick(**settings).fit(*data())


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(3), r"shape \(3,\); it needs one number for each of the 60 points"),
        (np.full(60, -1.0), "negative or non-finite"),
        (np.full(60, np.nan), "negative or non-finite"),
        (np.zeros(60), "every sample_weight is zero"),
    ],
)
def test_bad_weights_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(*data(60), weight)


def test_many_columns_are_screened_and_said_so():
    X, y = data(120)
    wide = X.assign(a=np.linspace(0, 1, 120) ** 2, b=np.tile([0.0, 1.0], 60))
    with pytest.warns(UserWarning, match=r"only the 3 most relevant.*time, mass"):
        model = quick().fit(wide, y)
    assert {"time", "mass"} <= {list(wide.columns)[j] for j in model.used_}
    with pytest.raises(ValueError, match="4 varying columns"):
        quick(screen=False).fit(wide, y)


def test_a_million_points_are_subsampled_and_said_so():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 3, (1_000_000, 1))
    y = 2.5 * x[:, 0] + 0.1 * rng.normal(size=len(x))
    with pytest.warns(UserWarning, match="1000000 points: the search uses 500"):
        model = quick(rounds=0).fit(x, y)
    (c,) = model._best.constants
    assert c == pytest.approx(2.5, abs=0.005)  # fitted on 20 000 of them


def test_duplicate_columns_are_refused():
    X, y = data()
    X.columns = ["a", "a"]
    with pytest.raises(ValueError, match="duplicate columns a"):
        quick().fit(X, y)


@pytest.mark.filterwarnings("ignore:no formula describes")
@pytest.mark.parametrize("n", [4, 5, 6])
def test_a_handful_of_points_is_not_joined_up(n):
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 4, n))[:, None]
    with pytest.warns(UserWarning, match=f"{n} points are few"):
        model = quick().fit(x, 2.37 * x[:, 0] + 1.43 + 0.05 * rng.normal(size=n))
    for errors in model.equations_["errors"]:
        assert sum(e > 0 for e in errors.values()) <= n - 2
    assert model._best.free <= n - 2


def test_a_row_that_is_not_there_is_refused():
    model = quick().fit(*data())
    rows = len(model.equations_)
    for call in (model.sympy, model.latex, lambda k: model.predict(data()[0], k)):
        with pytest.raises(ValueError, match=f"no row 99 in equations_; its rows are 0 to {rows - 1}"):
            call(99)


def test_predictions_outside_the_domain_are_nan_with_a_warning():
    x = np.linspace(0.5, 4, 40)[:, None]
    model = quick(rounds=2).fit(x, np.log(x[:, 0]))
    with pytest.warns(UserWarning, match="1 predictions are not finite"):
        assert np.isnan(model.predict([[-1.0], [1.0]])).tolist() == [True, False]


def test_a_formula_of_ones_own():
    x = np.linspace(0, 6, 50)
    got = score_formula("c*sin(x1) + c", x, 2 * np.sin(x) + 1)
    assert got.formula == "2*sin(x1) + 1"
    assert got.r2 == pytest.approx(1)
    assert list(got.constants.values()) == pytest.approx([2, 1])
    X, y = data(eta=0.0)
    assert score_formula("c*mass*sin(time)", X, y).constants["c0"] == pytest.approx(1)
    assert score_formula(
        "mass**7*tanh(c*time)", X, X["mass"] ** 7 * np.tanh(2 * X["time"])
    ).r2 == pytest.approx(1)
    assert score_formula("mass**c", X, X["mass"] ** 0.4).constants["c0"] == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["lambda", "S", "mass (kg)", "c", "x2", "gamma"])
def test_any_column_may_stand_in_a_formula_of_ones_own(name):
    x = np.linspace(0.1, 3, 40)
    X = pd.DataFrame({"time": x[::-1] ** 2, name: x})
    got = score_formula(f"sin(2*{name}) + 3*time", X, np.sin(2 * x) + 3 * X["time"])
    assert got.r2 == pytest.approx(1)
    assert got.expression.free_symbols == {sympy.Symbol(n, real=True) for n in ("time", name)}


@pytest.mark.parametrize(
    ("formula", "message"),
    [("c*speed", "'speed'"), ("c*sin(", "not a formula"), ("c", "none of the columns"), ("gamma(c*mass)", "gamma"),
     ("log(-mass)*c", "not finite")],
)  # fmt: skip
def test_formulas_that_cannot_be_read_are_refused(formula, message):
    with pytest.raises(ValueError, match=message):
        score_formula(formula, *data())


@pytest.mark.parametrize(
    ("formula", "X", "y", "message"),
    [
        ("c*x1", np.arange(5.0), np.arange(4.0), "X has 5 points and y 4"),
        ("c*x1", np.array([1.0, np.nan, 2.0]), np.arange(3.0), "NaN or infinite"),
        ("c*x1 + c", np.arange(2.0), np.arange(2.0), "2 points for 2 constants"),
        ("x1 + x2 + x3 + x4", np.ones((9, 5)), np.arange(9.0), "uses 4 columns; 1 to 3"),
    ],
)
def test_data_that_a_formula_cannot_be_fitted_to_is_refused(formula, X, y, message):
    with pytest.raises(ValueError, match=message):
        score_formula(formula, X, y)


def test_the_command_line_says_what_is_wrong_in_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"nowhere\.csv"):
        regressor.main([str(tmp_path / "nowhere.csv")])
    path = tmp_path / "points.csv"
    path.write_text("x,y\n1,2\nnan,3\n")
    with pytest.raises(SystemExit, match="line 3, column x"):
        regressor.main([str(path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\nlow,3\n", r"line 3, column x: 'low' is text"),
        ("x,y\n1,2\n,3\n", r"line 3, column x: '' is empty"),
        ("x,y\n1,2\ninf,3\n", r"line 3, column x.*infinite"),
        ("x,x,y\n1,2,3\n", "duplicate columns x"),
        ("y\n1\n2\n", "at least one variable"),
        ("x,y\n1,2\n", "1 points"),
        ("x,dy,y\n1,0.1,2\n2,0,3\n", "line 3: an error bar of 0"),
        ("0.1,1.2\n0.2,1.3\n", "the first line is numbers"),
        (",x,y\n0,1,2\n1,2,3\n", "column 1 has no name"),
        ("x,y\n1,2,9\n2,3,9\n", "line 2: 3 cells; the header names 2"),
        ("x,y\n1,2\n\n3\n", "line 4: 1 cells"),
        ("x;y\n1,5;2\n2;3\n", "line 2, column x: '1,5' is text"),
        ("", "0 columns"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        regressor.read_points(path, sigma="dy" if "dy" in text else None)


def test_semicolons_tabs_empty_lines_and_comments_are_read(tmp_path):
    path = tmp_path / "points.csv"
    for mark in ";\t":
        path.write_text(f"# of Monday\nx{mark}y\n1{mark}2\n\n2{mark}3.5\n")
        X, y, sigma = regressor.read_points(path)
        assert (list(X.columns), X["x"].tolist(), y.tolist(), sigma) == (["x"], [1, 2], [2, 3.5], None)
    path.write_bytes("größe,y\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        regressor.read_points(path)


def test_a_file_is_read_and_fitted_from_the_command_line(tmp_path, capsys):
    X, y = data()
    path = tmp_path / "points.csv"
    X.assign(sigma=0.05, y=y).to_csv(path, index=False)
    regressor.main([str(path), "--target", "y", "--sigma", "sigma", "--seconds", "2"])
    assert "sin(time)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no column 'z'"):
        regressor.main([str(path), "--target", "z"])
