"""Task heads and losses on top of the paired encoders. Letters: B videos, T segments, C classes.

The main tasks' temporal attention lives here, after the encoders, not inside the units: the authors say the text's
"temporal-gated attention" is in the last layer only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TemporalGate(nn.Module):
    """One modality's temporal attention: BiLSTM, two post-norm transformer layers, one sigmoid per segment.

    `x [B, T, width]` -> gate `[B, T, 1]`, context `[B, T, hidden]`, recurrent features `[B, T, 2 * recurrent]`.
    """

    def __init__(self, width: int, recurrent: int, hidden: int) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(width, recurrent, batch_first=True, bidirectional=True)
        self.project = nn.Linear(2 * recurrent, hidden)
        layers = [nn.TransformerEncoderLayer(hidden, 4, 1024, 0.1, batch_first=True) for _ in range(2)]
        self.layers = nn.ModuleList(layers)
        self.score = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen, _ = self.recurrent(x)
        context = self.project(seen)
        for layer in self.layers:
            context = layer(context)
        return torch.sigmoid(self.score(context)), context, seen


class CrossDecoder(nn.Module):
    """Cross-attention to `[memory ; target]` along time, then a feed-forward layer; post-norm, no self-attention."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, hidden)
        self.attention = nn.MultiheadAttention(hidden, 4, 0.1, batch_first=True)
        self.up, self.down = nn.Linear(hidden, 1024), nn.Linear(1024, hidden)
        self.norm_1, self.norm_2, self.dropout = nn.LayerNorm(hidden), nn.LayerNorm(hidden), nn.Dropout(0.1)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = self.project(x)
        memory = torch.cat([memory, x], 1)
        x = self.norm_1(x + self.dropout(self.attention(x, memory, memory, need_weights=False)[0]))
        return self.norm_2(x + self.dropout(self.down(self.dropout(F.relu(self.up(x))))))


class AVEOutput(NamedTuple):
    """Event logit per segment `[B, T]`, class logits `[B, C]`, class-activation scores `[B, C]`, gates' product `[B, T]`."""

    event: Tensor
    category: Tensor
    activation: Tensor
    gate: Tensor


class AVEHead(nn.Module):
    """Supervised event localisation: temporal attention (γ gates the *other* modality) and the CMBS scores.

    Args:
        visual, audio: widths of the pooled features.
        gamma: weight of the temporal gates; 0 leaves them out.
        top: segments that the class-activation scores average over.
    """

    def __init__(self, visual: int = 1536, audio: int = 768, classes: int = 28, gamma: float = 0.1, hidden: int = 256,
                 top: int = 4) -> None:  # fmt: skip
        super().__init__()
        self.gamma, self.top = gamma, top
        self.from_visual, self.from_audio = nn.Linear(visual, 2 * hidden), nn.Linear(audio, hidden // 2)
        self.visual = TemporalGate(2 * hidden, hidden, hidden)
        self.audio = TemporalGate(hidden // 2, hidden // 2, hidden)
        self.ask_visual, self.ask_audio = CrossDecoder(2 * hidden, hidden), CrossDecoder(hidden, hidden)
        self.activation_visual, self.activation_audio = nn.Linear(hidden, classes), nn.Linear(hidden, classes)
        self.event, self.category = nn.Linear(hidden, 1), nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(0.2)

    def forward(self, visual: Tensor, audio: Tensor) -> AVEOutput:
        """`visual [B, T, visual]`, `audio [B, T, audio]`."""
        v, a = self.dropout(F.relu(self.from_visual(visual))), self.from_audio(audio)
        gate_v, context_v, seen_v = self.visual(v)
        gate_a, context_a, seen_a = self.audio(a)
        v = self.ask_visual(seen_v, context_a) * (1 + self.gamma * gate_a)
        a = self.ask_audio(seen_a, context_v) * (1 + self.gamma * gate_v)
        top = min(self.top, v.shape[1])
        scores = [s(x).topk(top, dim=1).values.mean(1) for s, x in
                  ((self.activation_visual, v), (self.activation_audio, a))]  # fmt: skip
        activation, joint = sum(scores) / 2, (v + a) / 2
        category = self.category(joint.amax(1)) + 0.3 * activation
        return AVEOutput(self.event(joint).squeeze(-1), category, activation, (gate_v * gate_a).squeeze(-1))

    def loss(self, out: AVEOutput, labels: Tensor, background: int = 28, as_published: bool = True) -> Tensor:
        """Sum of four terms. `labels [B, T]` with `background` where nothing happens.

        As published the gates' product, already a probability, goes through a second sigmoid; else it does not. A
        video without any event (AVE has one) has no class, and only the terms per segment.
        """
        present = (labels != background).float()
        category = labels.masked_fill(labels == background, -1).amax(1)
        gate = (F.binary_cross_entropy_with_logits(out.gate, present) if as_published
                else F.binary_cross_entropy(out.gate, present))  # fmt: skip
        loss = F.binary_cross_entropy_with_logits(out.event, present) + gate
        if (named := category >= 0).any():
            loss = loss + F.cross_entropy(out.category[named], category[named])
            loss = loss + F.cross_entropy(out.activation[named], category[named])
        return loss


class AVVPHead(nn.Module):
    """Weakly supervised parsing: temporal attention, then class-aware grouping (MGN) into one token per class.

    Published quirk kept by `as_published`: the temporally gated audio is thrown away, only vision is gated.
    """

    def __init__(self, visual: int = 1536, audio: int = 768, motion: int = 512, classes: int = 25, width: int = 128,
                 gamma: float = 0.05, as_published: bool = False, segments: int = 10) -> None:  # fmt: skip
        super().__init__()
        self.gamma, self.as_published = gamma, as_published
        self.from_audio, self.from_visual = nn.Linear(audio, width), nn.Linear(visual, width)
        self.from_motion, self.fuse = nn.Linear(motion, width), nn.Linear(2 * width, width)
        self.gate_audio, self.gate_visual = TemporalGate(width, 64, 64), TemporalGate(width, 64, 64)
        self.tokens_audio = nn.Parameter(torch.zeros(classes, width))
        self.tokens_visual = nn.Parameter(torch.zeros(classes, width))
        self.group_audio = Grouping(width, 3, classes, context=segments)
        self.group_visual = Grouping(width, 3, classes)
        self.group_both = Grouping(width, 6, classes)
        self.prob, self.prob_audio, self.prob_visual = (nn.Linear(width, 1) for _ in range(3))
        self.name_class = nn.Linear(width, classes)

    def forward(self, visual: Tensor, audio: Tensor, motion: Tensor) -> dict[str, Tensor]:
        """`[B, T, .]` features -> probabilities `both`, `audio`, `visual` `[B, C]` and `audio_frames`,
        `visual_frames` `[B, T, C]` (which can exceed 1: they carry a factor 1 + softmax)."""
        a, v = self.from_audio(audio), self.from_visual(visual)
        gate_a, gate_v = self.gate_audio(a)[0], self.gate_visual(v)[0]
        gated_a = a if self.as_published else a * (1 + self.gamma * gate_v)
        v = self.fuse(torch.cat([v * (1 + self.gamma * gate_a), self.from_motion(motion)], -1))
        per_visual, seen_v = self.group_visual(v, self.tokens_visual)
        per_audio, seen_a = self.group_audio(gated_a, self.tokens_audio, v)
        # the audio class tokens are the sequence and the visual ones the tokens that are grouped by
        per_both, _ = self.group_both(per_audio, per_visual)
        both, pa, pv = (torch.sigmoid(s(x)) for s, x in
                        ((self.prob, per_both), (self.prob_audio, per_audio), (self.prob_visual, per_visual)))  # fmt: skip
        return {"both": both.squeeze(-1), "audio": pa.squeeze(-1), "visual": pv.squeeze(-1),
                "audio_frames": (pa * seen_a).transpose(1, 2), "visual_frames": (pv * seen_v).transpose(1, 2)}  # fmt: skip

    def loss(self, out: dict[str, Tensor], labels: Tensor) -> Tensor:
        """`labels [B, C]` video-level multi-hot; the visual target is smoothed to 0.9 y + 0.05."""
        classes = torch.arange(labels.shape[1], device=labels.device)
        return (F.binary_cross_entropy(out["both"], labels) + F.binary_cross_entropy(out["audio"], labels)
                + F.binary_cross_entropy(out["visual"], 0.9 * labels + 0.05)
                + F.cross_entropy(self.name_class(self.tokens_audio), classes)
                + F.cross_entropy(self.name_class(self.tokens_visual), classes))  # fmt: skip

    @staticmethod
    def decide(out: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Binary (audio, visual) `[B, C, T]`: frame and video probabilities must both reach 0.5."""
        there = (out["both"] >= 0.5)[:, None]
        return tuple(
            ((out[k] >= 0.5) & there).transpose(1, 2).long() for k in ("audio_frames", "visual_frames")
        )


class _SelfBlock(nn.Module):
    """Pre-norm transformer block, 8 heads, MLP ratio 4, stochastic depth on both residuals."""

    def __init__(self, width: int, drop: float = 0.1) -> None:
        super().__init__()
        self.drop = drop
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 8, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def _keep(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop:
            return x
        return x * (torch.rand(len(x), 1, 1, device=x.device) >= self.drop) / (1 - self.drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        x = x + self._keep(self.attention(y, y, y, need_weights=False)[0])
        return x + self._keep(self.mlp(self.norm_2(x)))


class _Assign(nn.Module):
    """GroupViT's soft grouping: tokens `[B, S, C]` collect from a sequence `[B, L, C]`; a segment's weights over
    tokens sum to 1. Returns new tokens and 1 + softmax over the sequence of these weights `[B, S, L]`."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.norm_tokens, self.norm_x, self.norm_mixed, self.norm_new = (
            nn.LayerNorm(width) for _ in range(4)
        )
        half = width // 2
        self.mix_tokens = nn.Sequential(nn.Linear(count, half), nn.GELU(), nn.Linear(half, count))
        self.attention = nn.MultiheadAttention(width, 8, batch_first=True)
        self.norm_mlp, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens, x = self.norm_tokens(tokens), self.norm_x(x)
        tokens = self.norm_mixed(self.mix_tokens(tokens.transpose(1, 2)).transpose(1, 2))
        tokens = tokens + self.attention(tokens, x, x, need_weights=False)[0]
        tokens = self.norm_out(tokens + self.mlp(self.norm_mlp(tokens)))
        weight = torch.softmax(self.query(tokens) @ self.key(x).transpose(1, 2) * x.shape[-1] ** -0.5, 1)
        seen = 1 + torch.softmax(weight, -1)
        # GroupViT adds 1 to the sum, so a group that nobody chose stays near its token
        new = tokens + self.out(weight / (weight.sum(-1, keepdim=True) + 1) @ self.value(x))
        return new + self.channels(self.norm_new(new)), seen


class Grouping(nn.Module):
    """`depth` blocks over [sequence ; class tokens], then soft grouping; `context` segments of the other modality
    may regroup the sequence in between."""

    def __init__(self, width: int, depth: int, classes: int, context: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_SelfBlock(width) for _ in range(depth))
        self.context = _Assign(width, context) if context else None
        self.assign = _Assign(width, classes)

    def forward(self, x: Tensor, tokens: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
        length = x.shape[1]
        joint = torch.cat([x, tokens.expand(len(x), -1, -1)], 1)
        for block in self.blocks:
            joint = block(joint)
        x, tokens = joint[:, :length], joint[:, length:]
        if self.context is not None:
            x, _ = self.context(x, other)
        return self.assign(x, tokens)


class AVQAHead(nn.Module):
    """MUSIC-AVQA: spatial grounding by sound, question-queried attention over time, 42 answers.

    `visual [B, T, 36, D]`, `audio [B, T, audio]`, `question [B, length]` (word numbers).
    """

    def __init__(self, words: int = 93, answers: int = 42, visual: int = 1536, audio: int = 768) -> None:
        super().__init__()
        d = visual
        self.words, self.question = nn.Embedding(words, d), nn.LSTM(d, d)
        self.to_question = nn.Linear(2 * d, d)
        self.audio_1, self.audio_2 = nn.Linear(audio, d), nn.Linear(d, d)
        self.grounded = nn.Linear(2 * d, d)
        self.match = nn.Sequential(nn.Linear(2 * d, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
                                   nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 2))  # fmt: skip
        self.over_audio, self.over_visual = (
            nn.MultiheadAttention(d, 4, 0.1, batch_first=True) for _ in range(2)
        )
        self.feed_audio, self.feed_visual = (
            nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Dropout(0.1), nn.Linear(d, d)) for _ in range(2)
        )
        self.norm_audio, self.norm_visual = nn.LayerNorm(d), nn.LayerNorm(d)
        self.fuse, self.answer, self.dropout = nn.Linear(2 * d, d), nn.Linear(d, answers), nn.Dropout(0.1)

    def ground(self, visual: Tensor, audio: Tensor) -> Tensor:
        """One vector per segment `[B, T, D]`: mean of the frame beside what the sound points at."""
        v, a = F.normalize(visual, dim=-1), F.normalize(audio, dim=-1)
        weight = torch.softmax(v @ a[..., None], 2)  # [B, T, 36, 1]
        return self.grounded(torch.tanh(torch.cat([visual.mean(2), (weight * v).sum(2)], -1)))

    def matching(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Match logits `[B, T, 2]` of any frames `[B, T, 36, D]` with any sounds `[B, T, audio]`."""
        a = self.audio_2(F.relu(self.audio_1(audio)))
        return self.match(torch.cat([a, self.ground(visual, a)], -1))

    def forward(self, visual: Tensor, audio: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """Answer logits `[B, 42]` and match logits `[B, T, 2]` (does this sound belong to this frame?)."""
        _, (h, c) = self.question(torch.tanh(self.words(question)).transpose(0, 1))
        q = self.to_question(torch.tanh(torch.cat([h, c], -1).squeeze(0)))
        a = self.audio_2(F.relu(self.audio_1(audio)))
        v = self.ground(visual, a)
        match = self.match(torch.cat([a, v], -1))
        asked = []
        for x, attention, feed, norm in ((a, self.over_audio, self.feed_audio, self.norm_audio),
                                         (v, self.over_visual, self.feed_visual, self.norm_visual)):  # fmt: skip
            y = attention(q[:, None], x, x, need_weights=False)[0].squeeze(1)
            asked.append(norm(y + self.dropout(feed(y))) + x.mean(1))
        joint = self.fuse(torch.tanh(torch.cat(asked, -1)))
        return self.answer(torch.tanh(joint * q)), match

    @staticmethod
    def loss(answer: Tensor, match: Tensor, truth: Tensor, belongs: Tensor) -> Tensor:
        """CE(answer) + 0.5 CE(match); `belongs [B, T]` 1 where sound and frame are of one video."""
        return F.cross_entropy(answer, truth) + 0.5 * F.cross_entropy(match.flatten(0, 1), belongs.flatten())
