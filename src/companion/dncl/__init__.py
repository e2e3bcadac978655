"""DN-CL: symbolic regression that survives noise (Liu et al. 2024, arXiv 2406.14844).

    from companion.dncl import SymbolicRegressor, score_formula

Rooms of the method: `expressions` (prefix formulas and their tensor evaluator), `generator` (skeletons), `data`
(noise view, training batches), `model` (set encoder, skeleton decoder, losses), `search` (constrained beam search,
constants, selection), `metrics`, `cost`. Rooms of the regressor: `pools` (skeletons by the hundred thousand),
`pretrained` (recipe and shipped network), `decode` (proposals), `constants` (batched least squares), `evolve`
(refinement), `regressor` (the estimator), `suites` (benchmarks), `peers` (other systems), `limits` (why a formula was
not found), `card` (what a network is worth by itself).

The paper's body could not be read by us; this is a re-implementation in its spirit. Every choice that is not
the paper's is marked in the docstrings and on the book's page.
"""


def __getattr__(name: str):
    # on demand: the method's rooms do without scikit-learn
    if name in ("SymbolicRegressor", "score_formula", "read_points"):
        from companion.dncl import regressor

        return getattr(regressor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
