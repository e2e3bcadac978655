"""Rule-driven news captioning (Xu, Zhang, Tian and Liu, 2024): a rule that steers BART.

`rule` holds frames, entities and rules; `model` the prefixes in BART's encoder; `frontend` the stages from an
image and an article to a rule; `pipeline` all of it behind `caption(image, article)`; `metrics` the caption and
entity scores; `data` the readers of the public sets; `world` the small news world of the reduced scale.
"""

from importlib import import_module

_WHERE = {
    "Entity": "rule", "Frames": "rule", "Rule": "rule", "fill_roles": "rule",
    "RuleBart": "model", "RulePrefixConfig": "model",
    "NewsCaptioner": "pipeline", "Article": "data",
}  # fmt: skip
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(f"companion.newscap.{_WHERE[name]}"), name)
    raise AttributeError(f"companion.newscap has no {name!r}; it exports {', '.join(__all__)}")
