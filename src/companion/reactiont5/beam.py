"""Batched beam search with a cache: the same answers as transformers' `generate`, many inputs at a time.

Scores are sums of log-probabilities divided by the number of generated tokens (</s> included), as in
`generate(num_beams=K, length_penalty=1.0, early_stopping=False)`. A finished input leaves the batch, so that a
long one does not keep the others waiting; beams of one input share its encoder keys instead of copying them.
"""

from __future__ import annotations

import torch

from companion.reactiont5.model import EOS, NEVER, PAD, T5, blocked


class _Cache:
    """Keys and values of the decoder: per block self-attention [B, K, h, T, d_kv] and memory [B, h, L, d_kv]."""

    def __init__(self, model: T5, states: torch.Tensor, mask: torch.Tensor, beams: int) -> None:
        c = model.config
        self.memory, self.blocked = model.memory(states), blocked(mask)
        empty = states.new_zeros(len(states), beams, c.heads, 0, c.d_kv)
        self.own = [(empty, empty) for _ in model.decoder.block]

    def pick(self, beam: torch.Tensor) -> None:
        """Keep for every new beam the cache of the beam it grew from; beam: [B, K]."""
        where = beam[:, :, None, None, None]
        self.own = [tuple(x.gather(1, where.expand(-1, -1, *x.shape[2:])) for x in kv) for kv in self.own]

    def keep(self, alive: torch.Tensor) -> None:
        """Drop the inputs that are done; alive: [B] of bool."""
        self.own = [(k[alive], v[alive]) for k, v in self.own]
        self.memory = [(k[alive], v[alive]) for k, v in self.memory]
        self.blocked = self.blocked[alive]


def _step(model: T5, token: torch.Tensor, cache: _Cache) -> torch.Tensor:
    """token: [B, K], the newest token of every beam -> log-probabilities of the next one [B, K, v]."""
    c, (b, k) = model.config, token.shape
    x = model.shared(token)  # [B, K, d]
    at = torch.arange(cache.own[0][0].shape[3] + 1, device=token.device)
    bias = model.decoder.relative.distance_bias(at[-1:], at, both=False)[0, :, 0]  # [h, T]
    for n, block in enumerate(model.decoder.block):
        own, cross, last = block.layer
        attend, inside = own.SelfAttention, own.layer_norm(x)
        heads = (b, k, c.heads, 1, c.d_kv)
        keys = torch.cat((cache.own[n][0], attend.k(inside).view(heads)), 3)
        values = torch.cat((cache.own[n][1], attend.v(inside).view(heads)), 3)
        cache.own[n] = keys, values
        logits = (attend.q(inside).view(heads) @ keys.transpose(-1, -2)) + bias[:, None]
        x = x + attend.o((torch.softmax(logits, -1) @ values).reshape(b, k, -1))
        # beams stand where tokens would: [B, h, K, d_kv] queries against one copy of the memory
        x = x + cross.EncDecAttention(cross.layer_norm(x), *cache.memory[n], cache.blocked)
        x = x + last.DenseReluDense(last.layer_norm(x))
    return torch.log_softmax(model.lm_head(model.decoder.final_layer_norm(x)).float(), -1)


@torch.no_grad()
def beam_search(model: T5, ids: torch.Tensor, beams: int = 5, most: int = 300) -> tuple[list, list]:
    """The `beams` best answers for every input.

    Args:
        model: in eval mode.
        ids: [B, L], padded at the end; moved to the model's device.
        beams: K; 1 is greedy decoding.
        most: longest answer in tokens, start token included (transformers' `max_length`).

    Returns:
        (sequences, scores): per input a list of K token lists without start, </s> and padding, best first, and
        a list of K scores. Answers that ran into `most` have no </s> but are returned like the others.
    """
    if beams < 1 or most < 2:
        raise ValueError(
            f"beams is {beams} and most {most}; beams start at 1, most at 2 (start token and one more)"
        )
    ids = ids.to(model.shared.weight.device)
    mask = ids.ne(PAD)
    cache = _Cache(model, model.encode(ids, mask), mask, beams)
    n, k, v, device = len(ids), beams, model.config.vocab, ids.device
    alive = torch.arange(n, device=device)  # inputs still searched
    tokens = torch.zeros(n, k, 0, dtype=torch.long, device=device)
    running = torch.full((n, k), NEVER, device=device)
    running[:, 0] = 0.0  # all beams start equal: only one may grow at first
    done_scores = torch.full((n, k), NEVER, device=device)
    done_tokens = torch.zeros(n, k, most - 1, dtype=torch.long, device=device)
    last = torch.zeros(n, k, dtype=torch.long, device=device)  # start token = padding's id
    for length in range(1, most):
        total = running[..., None] + _step(model, last, cache)
        # one token can end a beam, so twice as many candidates always leave K that go on
        scores, where = total.flatten(1).topk(2 * k)
        beam, token = where // v, where % v
        grown = torch.cat((tokens.gather(1, beam[..., None].expand(-1, -1, length - 1)), token[..., None]), 2)
        ended = token.eq(EOS) | (length == most - 1)
        # only the K best candidates may become answers
        finals = torch.where(ended & (torch.arange(2 * k, device=device) < k), scores / length, NEVER)
        merged = torch.cat((done_scores[alive], finals), 1)
        best, pick = merged.topk(k)
        filled = torch.nn.functional.pad(grown, (0, most - 1 - length))
        pool = torch.cat((done_tokens[alive], filled), 1)
        done_scores[alive] = best
        done_tokens[alive] = pool.gather(1, pick[..., None].expand(-1, -1, most - 1))
        running, go = torch.where(ended, NEVER, scores).topk(k)
        beam, last = beam.gather(1, go), token.gather(1, go)
        tokens = grown.gather(1, go[..., None].expand(-1, -1, length))
        # stop an input when its best open beam cannot beat its worst answer (transformers' heuristic)
        open_ = (running[:, 0] / length > best.min(1).values) | (best.min(1).values <= NEVER / 2)
        cache.pick(beam)
        if not bool(open_.all()):
            cache.keep(open_)
            alive, tokens, running, last = alive[open_], tokens[open_], running[open_], last[open_]
            if not len(alive):
                break
    sequences = [[_trim(s) for s in group] for group in done_tokens.tolist()]
    return sequences, done_scores.tolist()


def _trim(sequence: list[int]) -> list[int]:
    """Up to the first </s>, without trailing padding."""
    if EOS in sequence:
        return sequence[: sequence.index(EOS)]
    while sequence and sequence[-1] == PAD:
        sequence = sequence[:-1]
    return sequence
