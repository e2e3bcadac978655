"""The scores of a trained network by itself, for its model card: no search, only its proposals.

    python -m companion.dncl.card small.safetensors

adds "card" to small.json, which `export` wrote beside it, and writes the model card itself, README.md.

On new draws of the training structures, on structures that were held back, and on the benchmark suites. A proposal counts
as right where it is the true form but for its numbers, with a factor and a summand around it; the formula that is judged is the proposal of shortest description
with its constants fitted (`SymbolicRegressor` with `rounds=0`).
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from companion import records
from companion.dncl import expressions as ex
from companion.dncl import limits, metrics, peers, pools, pretrained, suites
from companion.dncl.data import Problem
from companion.dncl.model import ModelConfig
from companion.dncl.regressor import SymbolicRegressor

ETAS = (0.0, 0.1)
SUITES = {
    "Nguyen": ("nguyen",),
    "Constant": ("constant",),
    "six others": ("keijzer", "livermore", "r", "jin", "neat", "koza"),
}


def drawn(size: pretrained.Size, pool: pools.SkeletonPool, number: int, eta: float) -> list[Problem]:
    """`number` data sets as the network was trained on, of the pool's structures; the clean targets are the test targets."""
    stream = pretrained.Stream(pool, size.stream, size.model.variables, size.model.length)
    found = []
    for k in range(number):  # one at a time: the number of points differs between draws
        views = stream.draw(1, np.random.default_rng([size.seed, 98, k]), eta)
        ids = [t for t in views.tokens[0].tolist() if t > ex.END]
        d = max(t - ex.FIRST_VARIABLE + 1 for t in ids if ex.FIRST_VARIABLE <= t < ex.FIRST_UNARY)
        clean, noisy = views.clean[0].double(), views.noisy[0].double()
        found.append(
            Problem(f"{k}", ex.to_sympy(ids), noisy[:, :d], noisy[:, -1], clean[:, :d], clean[:, -1])
        )
    return found


def score(network: Path, problems: Iterable[Problem], seed: int, title: str) -> dict[str, float]:
    """What `network` makes of `problems`, in percent of them.

    - proposed: the true form is among its proposals;
    - chosen: it is also the one of shortest description;
    - accurate: R^2 > 0.99 on the clean test targets (see `Problem`).
    """
    lines = []
    for problem in tqdm(list(problems), desc=title, unit="problem"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few points, predictions that are not defined
            model = SymbolicRegressor(None, rounds=0, network=network, random_state=seed)
            model.fit(problem.x.numpy(), problem.y.numpy())
            predicted = model.predict(problem.test_x.numpy())
        right = limits.proposed(model.proposals_, problem, model)
        lines.append((right, right and peers.same_form(model.sympy(), problem),
                      metrics.r2(problem.test_y, torch.as_tensor(predicted)) > 0.99))  # fmt: skip
    return dict(zip(("proposed", "chosen", "accurate"), (100 * np.mean(lines, 0)).tolist(), strict=True)) | {
        "problems": len(lines)
    }


def scores(network: Path, number: int = 200, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """`{set of problems: {"eta 0": score, ...}}` for training structures, unseen ones and the suites.

    Args:
        network: a `.safetensors` with its `.json` beside it.
        number: data sets of training structures and of unseen ones, per noise level.

    Raises:
        ValueError: where one of the two files is missing, or the recipe of that name is another one now.
    """
    network = Path(network)
    pretrained.load(network)  # a missing file is said before the pool is made
    about = json.loads(network.with_suffix(".json").read_text(encoding="utf-8"))["recipe"]
    size = pretrained.SIZES[about["name"]]
    if ModelConfig(**about["model"]) != size.model:
        raise ValueError(
            f"{network.name} was trained by another recipe {about['name']!r} than this version's"
        )
    seen, held = pretrained.pool_of(size.pool, about["skeletons"], about["seed"])
    out: dict[str, dict[str, dict[str, float]]] = {}
    for eta in ETAS:
        sets = {"training structures, new draws": drawn(size, seen, number, eta),
                "unseen structures": drawn(size, held, number, eta)}  # fmt: skip
        sets |= {
            title: [suites.problem(e, eta, seed, points=200, most=200) for e in suites.choose(names)]
            for title, names in SUITES.items()
        }
        for title, problems in sets.items():
            out.setdefault(title, {})[f"eta {eta:g}"] = score(
                network, problems, seed, f"{title}, eta {eta:g}"
            )
    return out


def text(about: Mapping[str, Any]) -> str:
    """The model card (Markdown) of a record with "card" in it; every number is the record's."""
    recipe, curves, card = about["recipe"], about["curves"], about["card"]
    stream, pool = recipe["stream"], recipe["pool"]
    whole = lambda n: f"{n:,}"  # noqa: E731
    percent = {k: f"{v:.1f}" for k, v in about["scores"].items()}
    points = curves["unseen_token_accuracy_0"]
    late = [v for _, v in points]
    half = ([v for step, v in points if step <= about["steps"] / 2] or late)[-1]
    low, high = stream["points"]
    table = "".join(
        f"| {title} | {line['eta 0']['problems']} | "
        + " | ".join(" / ".join(f"{line[f'eta {e:g}'][k]:.0f}" for k in ("proposed", "chosen", "accurate")) for e in ETAS)
        + " |\n" for title, line in card.items()
    )  # fmt: skip
    return f"""# Model card: `{recipe["name"]}`

A set encoder and a skeleton decoder ({whole(about["parameters"])} parameters, float16 safetensors) that propose formula skeletons
in x1, x2, x3 for noisy points. Its record, with the whole recipe and all curves, is `{recipe["name"]}.json`; this page is made from it.

| | |
|---|---|
| Trained on | {whole(about["skeletons"]["training"])} made-up skeletons ({pool["operators"][0]} to {pool["operators"][1]} operators, at most {pool["constants"]} constants and {pool["length"]} tokens, no benchmark structure); constants, points and noise new in every batch; {low} to {high} points, x within (-{stream["radius"][1]:g}, {stream["radius"][1]:g}), y + noise of eta ~ U(0, {stream["eta"]:g}), {100 * stream["zero"]:.0f} % without noise |
| Objective | cross-entropy on the noisy view only (noise augmentation), not the contrastive loss: at equal cost noise augmentation is ahead in the table "noise" |
| Steps | {whole(about["steps"])} of {recipe["batch"]} data sets ({whole(recipe["hold"]["steps"])} at a constant rate of {recipe["hold"]["lr"]:g} after a warm-up, then {whole(recipe["cool"]["steps"])} linearly to 0), EMA {recipe["hold"]["ema"]:g}; {"finished" if about["finished"] else "stopped before its end"} |
| Hardware | {f"{about['gpu']['name']}" if about["gpu"] else f"no GPU; {about['threads']} threads of a CPU ({about['processor']})"}, {about["training_seconds"] / 60:.0f} minutes of steps |
| Date | {about["date"]} |
| Curve | tokens right on unseen structures without noise: {late[0]:.1f} % at the first evaluation, {half:.1f} % half-way, {late[-1]:.1f} % at the end |

**On unseen structures, every token predicted from the true ones before it** (2,048 data sets): {percent["unseen_token_accuracy_0"]} % of tokens
right without noise, {percent["unseen_token_accuracy_0.1"]} % at eta = 0.1; a whole skeleton right in {percent["unseen_exact_0"]} % and {percent["unseen_exact_0.1"]} %.

**By itself, without any search**, in percent: the true form is among its proposals / is also the one of shortest description / the chosen
formula has R² > 0.99 on clean points (those of the data set itself for structures, test points for the benchmarks). One seed.

| problems | number | eta = 0 | eta = 0.1 |
|---|---|---|---|
{table}
**What it is not.** A symbolic regressor by itself: most formulas are not among its proposals. Whether it adds anything to the regressor's
search is asked by the row "the same without the network" of the tables of peers and suites.

Licence: the repository's.
"""


def main(arguments: list[str] | None = None) -> None:
    """The command line in this module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m companion.dncl.card", description=__doc__.split("\n")[0])
    parser.add_argument("network", type=Path)
    parser.add_argument("--number", type=int, default=200, help="data sets of each kind of structures")
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        found = scores(a.network, a.number)
    except ValueError as error:
        parser.error(str(error))
    path = a.network.with_suffix(".json")
    about = json.loads(path.read_text(encoding="utf-8")) | {"card": found}
    records.write_json(path, about)
    (path.parent / "README.md").write_text(text(about), encoding="utf-8")
    for title, line in found.items():
        print(title, {k: {n: round(v, 1) for n, v in s.items()} for k, s in line.items()})


if __name__ == "__main__":
    main()
