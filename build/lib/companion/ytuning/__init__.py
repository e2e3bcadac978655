"""Y-Tuning (Liu, An, Qiu 2022): representations of the labels are learned, the text's features stay frozen.

`model` is the method, `frozen` and `features` turn a pre-trained model into cached features, `classifier` puts
both together with `from_pretrained` and `save_pretrained`, `baselines` holds what it is compared with.
"""

_WHERE = {
    "YTuning": "model", "YTuningConfig": "model", "triplet_loss": "model",
    "FrozenEncoder": "frozen", "Features": "features", "extract": "features",
    "YTuningForSequenceClassification": "classifier",
}  # fmt: skip
__all__ = list(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
