"""GESTUR: fine-tuning a pre-trained model with an estimate of the gradient of unseen domains (arXiv 2302.01497).

`Gestur` is the method; `companion.gestur.baselines` holds what it is compared with, all with the same two methods
(`update(batches)`, `predict(x)`); `companion.gestur.protocol` is DomainBed's way of training and reporting;
`companion.gestur.world` makes the styled glyphs of the reduced scale; `companion.gestur.data` reads the public sets.
"""

_PLACES = {"Gestur": "model", "GesturConfig": "model", "Erm": "model", "Network": "model", "adam": "model"}


def __getattr__(name: str):
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(f"companion.gestur.{_PLACES[name]}"), name)
    raise AttributeError(f"companion.gestur has no {name!r}; it has {', '.join(_PLACES)}")


__all__ = sorted(_PLACES)
