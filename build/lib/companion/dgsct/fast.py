"""The same unit with the guide's re-mapping fused into what it is used for.

A unit uses the re-mapped guide `h = (W_tok g + b 1ᵀ) W_chᵀ + 1 cᵀ` `[L, C]` twice: the latent tokens P `[M, C]` attend to it, and its
mean is the guide vector. With few latent tokens neither needs `h` itself (Q = P W_ch, A the attention):

    P hᵀ   = (W_tok (g Qᵀ))ᵀ + (Q 1) bᵀ + const      the constant leaves the softmax over L
    A h    = ((A W_tok) g + (A b) 1ᵀ) W_chᵀ + 1 cᵀ     the rows of A sum to 1
    mean h = (mean_L(W_tok) g + mean(b) 1ᵀ) W_chᵀ + cᵀ

The two products with W_tok then cost 2 M per pair of tokens in place of D, and the `[L, D] x [D, C]` product falls away.
Outputs are those of `CrossModalPrompt` up to rounding; the names of the parameters are the same.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from companion.dgsct.model import PRESETS, CrossModalPrompt, Maps, PromptConfig


class FastPrompt(CrossModalPrompt):
    """`CrossModalPrompt` for learned re-mapping with latent tokens; faster where M is small beside L and D (`fits`)."""

    def __init__(self, length: int, width: int, guide_length: int, guide_width: int,
                 config: PromptConfig = PRESETS["ave"], gated: bool = True) -> None:  # fmt: skip
        if config.remap != "conv" or not config.latent:
            raise ValueError(
                f"remap is {config.remap!r} and latent {config.latent}; fusing needs remap 'conv' and latent tokens"
            )
        super().__init__(length, width, guide_length, guide_width, config, gated)
        self.config = replace(config, latent=False)  # the latent tokens are dealt with here

    def remapped(self, g: Tensor) -> Tensor:
        """The first row only: `forward` passes the guide vector in every row."""
        return g[:, :1]

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Maps]:
        """As `CrossModalPrompt.forward`."""
        if x.shape[1] != self.length or g.shape[1] != self.guide_length:
            raise ValueError(f"this unit maps {self.guide_length} guide tokens to {self.length}; "
                             f"it was given {g.shape[1]} and {x.shape[1]}")  # fmt: skip
        W, b = self.remap_tokens.weight, self.remap_tokens.bias  # [L, K], [L]
        short = self.latents @ self.remap_width.weight  # Q [M, D]
        scores = (W @ (g @ short.T)).transpose(1, 2) + torch.outer(short.sum(1), b)  # [N, M, L]
        weight = torch.softmax(scores, -1)
        tokens = self.latents + self.remap_width((weight @ W) @ g + (weight @ b)[..., None])  # R [N, M, C]
        x = x + self.latent_gate * (torch.softmax(x @ tokens.transpose(1, 2), -1) @ tokens)
        guide = self.remap_width(W.mean(0) @ g + b.mean())  # [N, C]
        return super().forward(x, guide[:, None].expand(-1, self.guide_length, -1))


def fits(config: PromptConfig, length: int, guide_width: int) -> bool:
    """Whether fusing applies, and saves more than the product P W_ch, made once per batch, costs."""
    many = 2 * config.tokens < guide_width and 4 * config.tokens <= length
    return config.remap == "conv" and config.latent and many


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
