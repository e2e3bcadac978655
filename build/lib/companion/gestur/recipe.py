"""From a run's flat parameters to domains, backbone and protocol; the one place that knows their keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from companion import records, training
from companion.gestur import data, methods, nets, pretrain, protocol, world
from companion.gestur.methods import MethodConfig

# Settings found in the official repositories for ResNet-50 (of GESTUR, MIRO and SAGM).
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "gestur": {
        "pacs": {"lr": 5e-5, "dropout": 0.0, "weight_decay": 0.0, "lam": 0.01},
        "vlcs": {"lr": 5e-5, "dropout": 0.5, "weight_decay": 1e-4, "lam": 0.05},
        "officehome": {"lr": 5e-5, "dropout": 0.5, "weight_decay": 1e-6, "lam": 0.01},
        "terraincognita": {"lr": 5e-5, "dropout": 0.0, "weight_decay": 0.0, "lam": 0.01},
        "domainnet": {"lr": 5e-5, "dropout": 0.1, "weight_decay": 1e-4, "lam": 0.01},
    },
    "miro": {
        "pacs": {"lr": 3e-5, "dropout": 0.0, "weight_decay": 0.0, "miro": 0.01},
        "vlcs": {"lr": 1e-5, "dropout": 0.5, "weight_decay": 1e-6, "miro": 0.01},
        "officehome": {"lr": 3e-5, "dropout": 0.1, "weight_decay": 1e-6, "miro": 0.1},
        "terraincognita": {"lr": 3e-5, "dropout": 0.0, "weight_decay": 1e-4, "miro": 0.1},
        "domainnet": {"lr": 3e-5, "dropout": 0.1, "weight_decay": 0.0, "miro": 0.1},
    },
    "sagm": {
        "pacs": {"lr": 3e-5, "dropout": 0.5, "weight_decay": 1e-4, "match": 1e-3},
        "vlcs": {"lr": 1e-5, "dropout": 0.5, "weight_decay": 1e-4, "match": 1e-3},
        "officehome": {"lr": 1e-5, "dropout": 0.5, "weight_decay": 1e-4, "match": 5e-4},
        "terraincognita": {"lr": 1e-5, "dropout": 0.5, "weight_decay": 1e-4, "match": 1e-3},
        "domainnet": {"lr": 3e-5, "dropout": 0.5, "weight_decay": 1e-6, "match": 5e-4},
    },
}
MIRO_LAMBDA = {"clip-vit-b16": dict.fromkeys(data.SETS, 1.0),
               "swag-regnety-16gf": dict(zip(data.SETS, (0.1, 0.01, 0.1, 0.01, 0.1), strict=True))}  # fmt: skip


def method_config(p: Mapping[str, Any]) -> MethodConfig:
    """The method's settings: the run's parameters, and with `published = true` what the repositories list."""
    found = dict(p)
    if p.get("memory"):  # the moving average remembers a fixed share of the run, as 0.999 does of 5000 steps
        found["decay"] = 1 - p["memory"] / p["steps"]
    if p.get("published"):
        if p.get("backbone") == "resnet50":
            found |= PUBLISHED.get(p["method"], {}).get(p["data"], {})
        elif p["method"] == "miro":
            found["miro"] = MIRO_LAMBDA.get(p["backbone"], {}).get(p["data"], found.get("miro", 0.1))
    return MethodConfig.of(found)


def settings(config: MethodConfig) -> str:
    """The settings that differ from the defaults, as `lr=0.001, lam=0.1`."""
    plain = MethodConfig()
    return ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in vars(config).items()
                     if v != getattr(plain, k) and k != "method")  # fmt: skip


def protocol_config(p: Mapping[str, Any], seed: int) -> protocol.ProtocolConfig:
    """Steps, checkpoints, batch; the run's seed is DomainBed's trial seed (the split) and the seed of the batches."""
    long = p["data"] == "domainnet"
    tolerance = 0.2 if p["data"] == "vlcs" else 0.3
    return protocol.ProtocolConfig(
        steps=15001 if long else p["steps"], every=1000 if long else p["every"], batch=p["batch"], trial=seed, seed=seed,
        swad=(3, 6, tolerance) if p.get("swad") else None)  # fmt: skip


def targets(p: Mapping[str, Any]) -> list[str]:
    """The domains that are left out in turn: all, or those named in `targets` (comma-separated)."""
    known = sorted(_names(p["data"]))
    wanted = [name for name in str(p.get("targets", "")).split(",") if name] or known
    if bad := [name for name in wanted if name not in known]:
        raise ValueError(f"target {bad[0]!r} is not a domain of {p['data']}; choose {', '.join(known)}")
    return wanted


def _names(name: str) -> list[str]:
    """The domains of the data set `name`. Raises ValueError for an unknown one."""
    found = {"glyphs": list(world.STYLES), "digits": list(world.STYLES), "pacs-small": list(data.SETS["pacs"].domains),
             "rotated-digits": [f"{a:02d}" for a in data.ANGLES],
             "coloured-digits": [f"agree-{a:.1f}" for a in data.AGREE],
             **{k: list(s.domains) for k, s in data.SETS.items()}}  # fmt: skip
    if name not in found:
        raise ValueError(f"data {name!r} does not exist; choose {', '.join(found)}")
    return found[name]


@lru_cache(maxsize=1)
def _fixed(name: str, size: int, seed: int) -> list[Any]:
    """Domains that are the same whatever is left out; kept, because reading them takes longer than training."""
    if name == "pacs-small":
        return data.pacs_small(size)
    if name == "rotated-digits":
        return data.rotated_digits(seed)
    if name == "coloured-digits":
        return data.coloured_digits(seed)
    return data.image_set(name)


def domains(p: Mapping[str, Any], target: str, seed: int, strength: float = 0.0) -> list[Any]:
    """The domains of one training, in sorted order.

    `glyphs` and `digits` (real MNIST digits) are painted anew for every target and seed; the others are what they are.
    Raises ValueError for an unknown name in `data`.
    """
    if p["data"] in ("glyphs", "digits"):
        config = world.WorldConfig(size=p["size"], images=p["images"], strength=strength)
        ink = data.mnist() if p["data"] == "digits" else None
        painted = world.domains(config, target, seed, ink)
        return [protocol.Domain(name, x, y, shift=1) for name, (x, y) in painted.items()]
    _names(p["data"])
    return _fixed(p["data"], p.get("size", 224), seed)


def backbone(p: Mapping[str, Any]) -> nets.Backbone:
    """The pre-trained featurizer: a name that `nets.full` knows, or the name of weights stored with the package."""
    if nets.is_full(p["backbone"]):
        return nets.full(p["backbone"], pretrained=True)
    return pretrain.load(p["backbone"])[0]


def probe(net: nets.Backbone, parts: list[Any], target: str, config: protocol.ProtocolConfig) -> nn.Linear:
    """A head fitted on the frozen features of the sources' `in` parts (for lp-ft and wise-ft)."""
    chosen = [
        (d, torch.as_tensor(protocol.split(len(d), config.trial, k)[0]))
        for k, d in enumerate(parts)
        if d.name != target
    ]
    x, y = torch.cat([d.get(i) for d, i in chosen]), torch.cat([d.labels[i] for d, i in chosen])
    return methods.fit_probe(net, x, y, int(y.max()) + 1)


def build(p: Mapping[str, Any], net: nets.Backbone, parts: list[Any], target: str, seed: int, **changes: Any):
    """The run's algorithm for one target; `changes` replace settings."""
    config = method_config({**p, **changes})
    rules = protocol_config(p, seed)
    classes = protocol.check_domains(parts)
    head = probe(net, parts, target, rules) if config.method in ("lp-ft", "wise-ft") else None
    return methods.build(config, net, classes, seed=seed, example=parts[0].get(torch.arange(2)), probe=head,
                         steps=rules.steps)  # fmt: skip


def trial(p: Mapping[str, Any], net: nets.Backbone, parts: list[Any], target: str, seed: int, strength: float = 0.0, *,
          device: Any = "cpu", **changes: Any) -> protocol.Trial:  # fmt: skip
    """One training of one method with `target` left out; `changes` replace settings.

    A finished training is kept in the cache folder under everything that decides it (settings, data, seed, code), so
    that tables share it and a stopped run goes on. Small networks are always averaged densely, too: it costs nothing
    there and gives "+ SWAD" for every method.
    """
    small = not nets.is_full(p["backbone"])
    config = protocol_config({**p, "swad": small or p.get("swad", False)}, seed)
    key = [repr(method_config({**p, **changes})), repr(config), p["data"], p.get("size"), p.get("images"), p["backbone"],
           strength, target]  # fmt: skip
    folder = training.cache_folder("gestur", *key)
    if (done := folder / "trial.json").is_file():
        return protocol.Trial(**json.loads(done.read_text(encoding="utf-8")))
    algorithm = build(p, net, parts, target, seed, **changes).to(device)
    number = [d.name for d in parts].index(target)
    found = protocol.train(
        algorithm, parts, [number], config, device=device, folder=None if small else folder
    )
    shutil.rmtree(folder, ignore_errors=True)  # the finished training's checkpoint
    records.write_json(done, asdict(found))
    return found


def variants(text: str) -> dict[str, dict[str, Any]]:
    """Settings per variant: `"erm: method=erm|lam=0.1"` -> {"erm": {"method": "erm"}, "lam=0.1": {"lam": 0.1}}.

    A variant is named before a colon, or by its settings. Raises ValueError for an unknown setting or a double name.
    """
    found: dict[str, dict[str, Any]] = {}
    for part in text.split("|"):
        name, colon, rest = part.partition(":")
        name = name.strip()
        if name in found:
            raise ValueError(f"variant {name!r} is there twice")
        found[name] = changes(rest if colon else part)
    return found


def changes(variant: str) -> dict[str, Any]:
    """Settings out of text: `"norm=none lam=0.5"` -> {"norm": "none", "lam": 0.5}.

    Raises ValueError for an unknown setting.
    """
    found: dict[str, Any] = {}
    for part in variant.split():
        name, _, value = part.partition("=")
        if name not in MethodConfig.__dataclass_fields__ and name != "memory":
            raise ValueError(f"variant {variant!r}: {name!r} is no setting; choose from "
                             f"{', '.join(MethodConfig.__dataclass_fields__)}, memory")  # fmt: skip
        if value in ("true", "false"):
            found[name] = value == "true"
        else:
            try:
                found[name] = float(value)
            except ValueError:
                found[name] = value
    return found
