"""ReactionT5 (Sagawa and Kojima, 2023/2025): a T5 pre-trained on molecules, then on reactions.

Rooms: `chemistry` (canonical SMILES, roles), `tokens` (tokenizers, span corruption, reaction strings), `model` (T5,
yield head), `beam` (batched beam search), `prediction` (a chemist's entry), `stages` (pre-training and fine-tuning on
your files), `data` and `ord` (public formats), `leakage`, `world` (the procedural reactions of the reduced scale),
`baselines`, `metrics`, `hub` (released checkpoints), `cost`. Names below are loaded when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "T5": "model",
    "T5Config": "model",
    "ReactionYield": "model",
    "ReactionT5": "hub",
    "predict": "prediction",  # not in a module of its own name, which would hide the function
    "predict_yield": "prediction",
    "predict_csv": "prediction",
    "pretrain_molecules": "stages",
    "train_reactions": "stages",
    "leakage_report": "leakage",
    "canonical": "chemistry",
    "PublishedTokenizer": "tokens",
    "AtomTokenizer": "tokens",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"companion.reactiont5 has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
