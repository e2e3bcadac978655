"""The same unit with its products bracketed so that no large intermediate is formed that only a small one depends on.

**The guide.** A unit uses the re-mapped guide `h = (W_tok g + b 1ᵀ) W_chᵀ + 1 cᵀ` `[L, C]` twice: the latent tokens P
`[M, C]` attend to it, and its mean is the guide vector. With few latent tokens neither needs `h` itself (Q = P W_ch, A
the attention):

    P hᵀ   = (W_tok (g Qᵀ))ᵀ + (Q 1) bᵀ + const      the constant leaves the softmax over L
    A h    = ((A W_tok) g + (A b) 1ᵀ) W_chᵀ + 1 cᵀ     the rows of A sum to 1
    mean h = (mean_L(W_tok) g + mean(b) 1ᵀ) W_chᵀ + cᵀ

The two products with W_tok then cost 2 M per pair of tokens in place of D, and the `[L, D] x [D, C]` product falls away.
The mean is one more row of A, a constant one, so that W_tok gets its gradient from two products and nothing else of its
size is made.

**Scalars and channels.** What scales all of `[N, L, C]` scales a smaller factor instead: γ_av the latent tokens, the
gate the last LayerNorm's weight and bias, and, where there are more tokens than channels, `1 + m_c` the columns of W_x2.

Outputs are those of `CrossModalPrompt` up to rounding; the names of the parameters are the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.dgsct.model import PRESETS, CrossModalPrompt, GroupedLinear, Maps, PromptConfig


class FastPrompt(CrossModalPrompt):
    """`CrossModalPrompt`, faster where there are many tokens (`fits`). It takes the arguments of that class."""

    def __init__(self, length: int, width: int, guide_length: int, guide_width: int,
                 config: PromptConfig = PRESETS["ave"], gated: bool = True) -> None:  # fmt: skip
        super().__init__(length, width, guide_length, guide_width, config, gated)
        self.short = config.latent and fits(config, length, guide_width)  # whether h is never formed
        if config.remap == "bicubic":
            rows = F.interpolate(
                torch.eye(int(guide_length**0.5))[:, None, :, None], (int(length**0.5), 1), mode="bicubic"
            )
            self.register_buffer("resize", rows.squeeze().T.contiguous(), persistent=False)

    def _spread(self, s: Tensor) -> Tensor:
        """`s W_tokᵀ + b`-free: rows over guide tokens `[R, K]` to rows over tokens `[R, L]`. Bicubic's W_tok is the
        product of one small matrix per axis."""
        if self.config.remap == "conv":
            return F.linear(s, self.remap_tokens.weight)
        side = self.resize.shape[1]
        return (self.resize @ s.view(-1, side, side) @ self.resize.T).flatten(1)

    def _gather(self, A: Tensor) -> Tensor:
        """`A W_tok`: rows over tokens `[R, L]` to rows over guide tokens `[R, K]`."""
        if self.config.remap == "conv":
            return A @ self.remap_tokens.weight
        side = self.resize.shape[0]
        return (self.resize.T @ A.view(-1, side, side) @ self.resize).flatten(1)

    def guided(self, g: Tensor) -> tuple[Tensor | None, Tensor]:
        """Steps 1 to 3: latent tokens R `[N, M, C]` (None without them) and the guide vector `[N, C]` of `g [N, K, D]`."""
        if not self.short:
            g = self.remapped(g)
            if not self.config.latent:
                return None, g.mean(1)
            return self.latents + torch.softmax(self.latents @ g.transpose(1, 2), -1) @ g, g.mean(1)
        n, m, length = len(g), len(self.latents), self.length
        bias = self.remap_tokens.bias if self.config.remap == "conv" else g.new_zeros(length)  # b [L]
        Q = self.latents @ self.remap_width.weight  # [M, D]
        asked = F.linear(g, Q).transpose(1, 2).reshape(n * m, -1)  # [N M, K]
        A = torch.softmax(self._spread(asked) + torch.outer(Q.sum(1), bias).repeat(n, 1), -1)  # [N M, L]
        rows = torch.cat([A, A.new_full((1, length), 1 / length)])
        on_guide, shift = self._gather(rows), rows @ bias  # [N M + 1, K], [N M + 1]
        read = on_guide[:-1].view(n, m, -1) @ g + shift[:-1].view(n, m, 1)  # [N, M, D]
        return self.latents + self.remap_width(read), self.remap_width(on_guide[-1] @ g + shift[-1])

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Maps]:
        """As `CrossModalPrompt.forward`."""
        c = self.config
        self.check(x, g)
        tokens, guide = self.guided(g)
        if tokens is not None:
            x = torch.baddbmm(x, torch.softmax(x @ tokens.transpose(1, 2), -1), self.latent_gate * tokens)
        weight, channel, spatial, temporal = None, None, None, None
        pool = x.new_full((len(x), 1, self.length), 1 / self.length)
        if c.channel:
            # the sum's gradient is a view of one row, the mean's a copy per token
            seen = F.relu_(self.channel_input(x)).sum(1) / self.length
            joint = F.relu(self.channel_guide(guide)) * seen
            channel = torch.sigmoid(self.channel_up(F.relu(self.channel_down(joint))))[:, None]
            weight = c.alpha * channel
        if c.spatial:
            key = F.relu(self.spatial_guide(guide)) * self.spatial_score.weight
            score = F.relu_(self._spatial_input(x, channel)) @ key[:, :, None] + self.spatial_score.bias
            spatial = torch.sigmoid(score)
            pool = torch.softmax(torch.tanh(score).transpose(1, 2), -1)
        if c.gamma:
            temporal = torch.sigmoid(self.temporal(guide))[:, None]
        # all that does not depend on the channel first: [N, L, 1]
        rest = 1.0 - (c.alpha if c.channel else 0.0)
        for factor, part in ((c.beta, spatial), (c.gamma, temporal)):
            rest = rest if part is None else rest + factor * part
        if weight is not None or spatial is not None or temporal is not None:
            x = x * (rest if weight is None else weight + rest)
        return self._bottleneck(x), Maps(pool, channel, spatial, temporal)

    def _spatial_input(self, x: Tensor, channel: Tensor | None) -> Tensor:
        """`W_x2 (x ⊙ (1 + m_c))` `[N, L, C / 2]`."""
        layer = self.spatial_input
        if channel is None:
            return layer(x)
        if self.length <= layer.in_features:
            return layer(x * (1 + channel))
        return torch.baddbmm(layer.bias, x, (layer.weight * (1 + channel)).transpose(1, 2))

    def _bottleneck(self, x: Tensor) -> Tensor:
        """Steps 9 and 10."""
        shape = x.shape
        if self.norm_before is not None:
            x = self.norm_before(x)
        z = _dense(self.down, x.reshape(-1, shape[-1]))
        z = F.relu(z if self.norm_down is None else self.norm_down(z))
        o = _dense(self.up, z)
        o = (o if self.norm_up is None else self.norm_up(o)).view(shape)
        last, gate = self.norm_after, 1.0 if self.gate is None else self.gate
        if self.config.gate_last:
            return F.layer_norm(o, last.normalized_shape, last.weight * gate, last.bias * gate, last.eps)
        return last(gate * o)


def _dense(layer: GroupedLinear, x: Tensor) -> Tensor:
    """A grouped map as one product with a block-diagonal matrix: more multiplications, no copies of `x`."""
    return F.linear(x, torch.block_diag(*layer.weight.chunk(layer.groups)))


def fits(config: PromptConfig, length: int, guide_width: int) -> bool:
    """Whether a fused unit is the faster one: many tokens, or many beside the latent ones."""
    return 2 * config.tokens < guide_width and 4 * config.tokens <= length


def fuse(model: nn.Module) -> nn.Module:
    """Replace every unit of `model` that fusing pays for, weights kept; do it before the optimiser is made."""
    for name, part in list(model.named_children()):
        if type(part) is CrossModalPrompt and fits(part.config, part.length, part.remap_width.in_features):
            width, guide_width = part.remap_width.out_features, part.remap_width.in_features
            new = FastPrompt(
                part.length, width, part.guide_length, guide_width, part.config, part.gate is not None
            )
            new.load_state_dict(part.state_dict())
            weight = part.remap_width.weight
            setattr(model, name, new.to(weight.device, weight.dtype).train(part.training))
        else:
            fuse(part)
    return model
