"""Skeletons from a trained network for one set of points: beam and samples, over subsets of the points.

Several random subsets are encoded and their next-token log-probabilities averaged: each subset is another view of
the same formula. Every result is a complete formula by construction. Keys and values of the earlier tokens are kept.

Shape letters: E encodings, W hypotheses, L tokens, V vocabulary, n points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.dncl import constants as fitting
from companion.dncl import expressions as ex
from companion.dncl.model import DNCL
from companion.dncl.search import allowed
from companion.training import generator as random_stream

AT_ONCE = 64  # samples that are drawn side by side


@dataclass(frozen=True)
class DecodeConfig:
    """How skeletons are drawn."""

    beam: int = 32  # hypotheses of the beam; 0 leaves it out
    samples: int = 64  # draws; 0 leaves them out
    temperature: float = 1.0
    top_p: float = 0.95
    subsets: int = 4  # E; 1 encodes all points at once
    share: float = 0.7  # of the points in a subset
    most: int = 200  # points per encoding


@torch.no_grad()
def encodings(net: DNCL, points: Tensor, config: DecodeConfig, seed: int) -> Tensor:
    """`[E, k, d]` of points `[n, D + 1]`: all of them first (thinned to `most`), then random subsets."""
    n = len(points)
    rng = random_stream(seed, "subsets")
    rows = []
    for e in range(config.subsets):
        size = min(config.most, n if e == 0 else max(8, round(config.share * n)))
        pick = torch.randperm(n, generator=rng)[: min(size, n)]
        part = points[pick][None]
        rows.append(net.encode(part, torch.ones(part.shape[:2], dtype=torch.bool, device=points.device))[0])
    return torch.cat(rows)


@torch.no_grad()
def propose(net: DNCL, points: Tensor, variables: int, config: DecodeConfig, seed: int,
            until: float = math.inf) -> list[tuple[tuple[int, ...], float]]:  # fmt: skip
    """Distinct skeletons with their log-probabilities, most probable first.

    Args:
        points: `[n, D + 1]`, y last, D that of the network (absent variables 0).
        variables: how many of the columns are variables; later ones are not used.
        until: `constants.clock()` value after which no further token is drawn: the beam, or the 64 samples, under way
            then are lost, those before are kept.
    """
    memory = encodings(net, points.float(), config, seed)
    found: dict[tuple[int, ...], float] = {}
    rng = random_stream(seed, "samples")
    widths = [config.beam] * bool(config.beam)
    widths += [min(AT_ONCE, config.samples - done) for done in range(0, config.samples, AT_ONCE)]
    for k, width in enumerate(widths):
        draw = rng if k or not config.beam else None
        for ids, score in _search(net, memory, width, variables, config, draw, until):
            if ex.complete(list(ids)):
                found[ids] = max(score, found.get(ids, -math.inf))
    return sorted(found.items(), key=lambda kv: -kv[1])


def _search(net, memory, width, variables, config, rng, until):
    """Beam search without `rng`, samples with it; nothing where the time is up first."""
    device, length = memory.device, net.config.length
    E, draw = len(memory), rng is not None
    arity = ex.ARITY.to(device)
    tokens = torch.full((width if draw else 1, 1), ex.START, device=device)
    places = torch.ones(len(tokens), dtype=torch.long, device=device)
    score = torch.zeros(len(tokens), device=device)
    cache = net.decoder.start(memory)
    for _ in range(length + 1):
        if fitting.clock() > until:
            return
        logits = net.decoder.step(tokens[:, -1].expand(E, -1), cache).float()
        logp = logits.log_softmax(-1).mean(0)  # over the encodings
        ok = allowed(tokens, places, length, variables)
        logp = logp.masked_fill(~ok, -math.inf).log_softmax(-1).masked_fill(~ok, -math.inf)
        if draw:
            p = (logp / config.temperature).softmax(-1)
            value, order = p.sort(-1, descending=True)
            value = torch.where(value.cumsum(-1) - value > config.top_p, 0.0, value)
            token = order.gather(1, torch.multinomial(value.cpu(), 1, generator=rng).to(device))[:, 0]
            parent = torch.arange(len(tokens), device=device)
            score = score + logp.gather(1, token[:, None])[:, 0]
        else:
            total = (score[:, None] + logp).flatten()
            score, best = total.topk(min(width, int((total > -math.inf).sum())))
            parent, token = best // logp.shape[1], best % logp.shape[1]
        if not draw:
            cache.follow(parent)
        tokens = torch.cat([tokens[parent], token[:, None]], 1)
        places = places[parent] + torch.where(token > ex.END, arity[token] - 1, torch.zeros_like(token))
        if bool(((token == ex.END) | (token == ex.PAD)).all()):
            break
    for row, mark in zip(tokens.tolist(), score.tolist(), strict=True):
        yield tuple(t for t in row if t > ex.END), mark
