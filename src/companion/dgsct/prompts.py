"""Few-shot and zero-shot: CLIP's vision tower with CLAP's audio tower, class names as classifiers.

Both text encoders, both projections and the towers are frozen; trained are the DG-SCT units, four context vectors in
front of CLIP's class names, two CLIP-Adapters and one linear map for the contrastive term. Letters: B videos, T
segments, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.dgsct.model import PRESETS, DualGuidedEncoder, PromptConfig
from companion.dgsct.towers import CLIPTower, HTSATTower

CONTEXT = 4  # context vectors: the code means "a photo of a" and starts them at random
SLOT = "X"  # any one-token word; its embedding is replaced by a context vector


def class_texts(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """What CLIP's and CLAP's tokenizers are given for class names.

    >>> class_texts(["Bark"])
    (['X X X X Bark.'], ['The sounds of Bark'])
    """
    slots = " ".join([SLOT] * CONTEXT)
    return [f"{slots} {name}." for name in names], [f"The sounds of {name}" for name in names]


def tokenised(
    names: Sequence[str], clip_tokenizer: Callable, clap_tokenizer: Callable
) -> tuple[Tensor, dict]:
    """Token numbers of all classes for CLIP `[K, length]`, and CLAP's inputs, from two transformers tokenizers."""
    seen, heard = class_texts(names)
    clip = clip_tokenizer(seen, padding=True, return_tensors="pt")["input_ids"]
    clap = clap_tokenizer(heard, padding=True, return_tensors="pt")
    return clip, {k: clap[k] for k in ("input_ids", "attention_mask")}


class FewShotOutput(NamedTuple):
    """Fused logits and both parts `[B, T, K]`; video-level features for the contrastive term `[B, width]`."""

    logits: Tensor
    visual: Tensor
    audio: Tensor
    seen: Tensor
    heard: Tensor


class FewShotHead(nn.Module):
    """What is trained besides the units.

    Args:
        text: width of CLIP's token embeddings.
        width: width of both joint spaces (512).
        mix: share of the adapter's output (0.2).
    """

    def __init__(self, text: int = 512, width: int = 512, mix: float = 0.2) -> None:
        super().__init__()
        self.mix = mix
        self.context = nn.Parameter(0.02 * torch.randn(CONTEXT, text))
        self.adapt_visual, self.adapt_text = (
            nn.Sequential(nn.Linear(width, width // 4, bias=False), nn.ReLU(),
                          nn.Linear(width // 4, width, bias=False), nn.ReLU())
            for _ in range(2)
        )  # fmt: skip
        self.contrast = nn.Linear(width, width)

    def adapted(self, x: Tensor, adapter: nn.Module) -> Tensor:
        """`norm((1 - mix) x + mix adapter(x))`."""
        return F.normalize((1 - self.mix) * x + self.mix * adapter(x), dim=-1)


class FewShot(nn.Module):
    """The whole model: `images [B, T, 3, H, W]`, `logmels [B, T, 1, steps, mel]` -> `FewShotOutput`.

    Args:
        clip, clap: `transformers.CLIPModel` and `ClapModel` (any size; both joint spaces equally wide).
        names: K classes as `tokenised` gives them; replace them with `set_classes` for zero-shot transfer.
        config: the units' config; γ is the weight of their temporal map.
        fusion: "sum" (few-shot: twice each) or "ratio" (pre-training and zero-shot: each weighted by its own share,
            element by element).
        as_published: multiply CLAP's cosines by its raw log-scale, as the code does, which leaves the audio logits
            tiny beside CLIP's; otherwise by its exponential.
        units: False leaves the two encoders unguided (frozen CLIP and CLAP with the trained head).
    """

    def __init__(self, clip: nn.Module, clap: nn.Module, names: tuple[Tensor, Mapping[str, Tensor]],
                 config: PromptConfig = PRESETS["few-shot"], fusion: str = "sum", as_published: bool = False,
                 units: bool = True) -> None:  # fmt: skip
        super().__init__()
        if fusion not in ("sum", "ratio"):
            raise ValueError(f"fusion is {fusion!r}; choose sum or ratio")
        width, other = clip.visual_projection.out_features, clap.audio_projection.linear2.out_features
        if width != other:
            raise ValueError(
                f"CLIP's joint space is {width} wide, CLAP's {other}; the two must be equally wide"
            )
        for model in (clip, clap):
            model.requires_grad_(False).eval()
        self.clip, self.clap, self.fusion, self.as_published = clip, clap, fusion, as_published
        self.encoder = DualGuidedEncoder(
            CLIPTower(clip.vision_model), HTSATTower(clap.audio_model, final_norm=True), config, order="after",
            to_visual=units, to_audio=units)  # fmt: skip
        self.head = FewShotHead(clip.text_model.embeddings.token_embedding.embedding_dim, width)
        self.set_classes(names)

    def set_classes(self, names: tuple[Tensor, Mapping[str, Tensor]]) -> None:
        """Use other class names (`tokenised`); nothing that is trained depends on their number."""
        self._clip_ids, clap_ids = names
        with torch.no_grad():
            device = next(self.clap.parameters()).device
            pooled = self.clap.text_model(**{k: v.to(device) for k, v in clap_ids.items()}).pooler_output
            self._clap_text = F.normalize(self.clap.text_projection(pooled), dim=-1)  # [K, width]

    def train(self, mode: bool = True) -> FewShot:
        super().train(mode)
        self.clip.eval()
        self.clap.eval()
        return self

    def clip_text(self) -> Tensor:
        """CLIP's features of "[context] class name." `[K, width]`, with gradients to the context vectors."""

        def put(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            context = self.head.context.to(output).expand(len(output), -1, -1)
            return torch.cat([output[:, :1], context, output[:, 1 + CONTEXT :]], 1)

        handle = self.clip.text_model.embeddings.token_embedding.register_forward_hook(put)
        try:
            ids = self._clip_ids.to(self.head.context.device)
            return self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output)
        finally:
            handle.remove()

    def forward(self, images: Tensor, logmels: Tensor) -> FewShotOutput:
        b, t = images.shape[:2]
        out = self.encoder(images.flatten(0, 1), logmels.flatten(0, 1))
        seen = self.clip.visual_projection(out.visual[:, 0])  # class token [BT, width]
        heard = self.clap.audio_projection(out.audio.mean(1))
        scale = self.clip.logit_scale.exp()
        visual = scale * (self.head.adapted(seen, self.head.adapt_visual)
                          @ self.head.adapted(self.clip_text(), self.head.adapt_text).T)  # fmt: skip
        loud = self.clap.logit_scale_a if self.as_published else self.clap.logit_scale_a.exp()
        audio = loud * (F.normalize(heard, dim=-1) @ self._clap_text.to(heard).T)
        if self.fusion == "sum":
            logits = 2 * visual + 2 * audio
        else:
            share = visual / (visual + audio)
            logits = share * visual + (1 - share) * audio
        shape = (b, t, -1)
        means = [x.view(shape).mean(1) for x in (seen, self.head.contrast(heard))]
        return FewShotOutput(*(x.view(shape) for x in (logits, visual, audio)), *means)

    def loss(self, out: FewShotOutput, labels: Tensor, epoch: int) -> Tensor:
        """Cross-entropy plus two contrastive terms (video to sound and back, over the batch).

        Args:
            labels: `[B, T]` per segment (weights 500, then 5 after epoch 10; 2 and 1.5 for the contrastive terms) or
                `[B]` per video (mean of the segments' logits; the terms weigh themselves).
            epoch: from 1.
        """
        if epoch < 1:
            raise ValueError(f"epoch is {epoch}; epochs are counted from 1")
        scale = self.clip.logit_scale.exp()
        pairs = scale * F.normalize(out.heard, dim=-1) @ F.normalize(out.seen, dim=-1).T
        same = torch.arange(len(pairs), device=pairs.device)
        to_visual, to_audio = F.cross_entropy(pairs, same), F.cross_entropy(pairs.T, same)
        if labels.ndim == 2:
            weight = 500.0 if epoch <= 10 else 5.0
            segments = F.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
            return weight * segments + 2 * to_visual + 1.5 * to_audio
        terms = torch.stack([F.cross_entropy(out.logits.mean(1), labels), to_visual, to_audio])
        # published weights, gradients through them included
        return ((terms / (epoch + terms.sum()) + 1 / epoch) * terms).sum()

    def predict(self, out: FewShotOutput, segments: bool) -> Tensor:
        """Classes `[B, T]` per segment or `[B]` per video."""
        return (out.logits if segments else out.logits.mean(1)).argmax(-1)
