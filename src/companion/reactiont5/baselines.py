"""What yields are compared with: random forests on one-hot factors or on fingerprints (Morgan, DRFP), and the mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from companion.reactiont5.chemistry import Row


def one_hot(
    train: Sequence[tuple[str, ...]], test: Sequence[tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """0/1 codes of categorical factors, known from `train`; a level seen only in `test` is all zeros."""
    columns = [sorted({row[k] for row in train}) for k in range(len(train[0]))]

    def code(rows: Sequence[tuple[str, ...]]) -> np.ndarray:
        return np.concatenate([[[value == row[k] for value in levels] for row in rows]
                               for k, levels in enumerate(columns)], axis=1).astype(np.float32)  # fmt: skip

    return code(train), code(test)


def present(
    train: Sequence[tuple[str, ...]], test: Sequence[tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """0/1 codes of the molecules that take part, known from `train`: one-hot codes where the order of factors is not."""
    known = sorted({name for row in train for name in row})
    at = {name: k for k, name in enumerate(known)}

    def code(rows: Sequence[tuple[str, ...]]) -> np.ndarray:
        out = np.zeros((len(rows), len(known)), np.float32)
        for k, row in enumerate(rows):
            out[k, [at[name] for name in row if name in at]] = 1
        return out

    return code(train), code(test)


def varying(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the columns that are constant in `train`: no tree can split there."""
    keep = train.min(0) < train.max(0)
    return train[:, keep], test[:, keep]


_DRFP: dict[tuple[str, int], np.ndarray] = {}


def drfp(rows: Sequence[Row], bits: int = 2048) -> np.ndarray:
    """Differential reaction fingerprints (Probst et al. 2022): [rows, bits], everything before the arrow >> product.

    Raises ModuleNotFoundError that says how to get the package.
    """
    try:
        from drfp import DrfpEncoder
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "DRFP features need the package drfp: pip install --no-deps drfp (its encoder uses only rdkit, numpy, tqdm)"
        ) from None
    made = []
    for r in rows:
        text = f"{'.'.join(p for p in (r.reactant, r.conditions('yield')) if p)}>>{r.product}"
        if (text, bits) not in _DRFP:  # the ten random splits hold the same reactions
            _DRFP[text, bits] = DrfpEncoder.encode([text], n_folded_length=bits)[0].astype(np.uint8)
        made.append(_DRFP[text, bits])
    return np.stack(made).astype(np.float32)


@lru_cache(maxsize=20_000)
def _morgan(smiles: str, bits: int, radius: int) -> np.ndarray:
    from rdkit import Chem
    from rdkit.Chem import rdFingerprintGenerator

    maker = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(f"{smiles!r} cannot be read as a molecule")
    return maker.GetFingerprintAsNumPy(molecule).astype(np.float32)


def fingerprints(rows: Sequence[Row], bits: int = 300, radius: int = 2) -> np.ndarray:
    """Morgan fingerprints of reactants, conditions and product side by side: [rows, 3 · bits]."""
    blank = np.zeros(bits, np.float32)
    return np.stack([
        np.concatenate([_morgan(part, bits, radius) if part else blank
                        for part in (r.reactant, r.conditions("yield"), r.product)]) for r in rows
    ])  # fmt: skip


def random_forest(x: np.ndarray, y: np.ndarray, seed: int, trees: int = 100, depth: int | None = None):
    """scikit-learn's random forest, fitted; its other settings are the defaults."""
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(n_estimators=trees, max_depth=depth, random_state=seed).fit(x, y)
