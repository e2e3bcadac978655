"""Training on the public sets: every task with its head, loss, metric and protocol, from files to test numbers.

What the published scripts do differently is off by default and one switch each (`Published`). The towers and the front
end are arguments, so that the same loops run on small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from companion import datasets, training
from companion.dgsct import checkpoints, media, memory, metrics
from companion.dgsct.cost import build
from companion.dgsct.data import AVE_CLASSES, LLP_CLASSES
from companion.dgsct.model import PRESETS, DualGuidedEncoder
from companion.dgsct.prompts import FewShot, tokenised


@dataclass(frozen=True)
class Protocol:
    """How a task is trained. Adam, no weight decay; every number is the published one."""

    epochs: int
    batch: int
    lr: float
    metric: str  # what the epoch is chosen by
    seed: int
    every: int = 0  # epochs between drops of the learning rate (0: none)
    milestones: tuple[int, ...] = ()  # or the epochs where it drops
    factor: float = 1.0  # of a drop
    patience: int = 0  # epochs without improvement until the end (0: all epochs)
    clip: float = 0.0  # largest gradient norm (0: none)
    limit: int = 0  # batches per epoch (0: all); for trials

    def rate(self, epoch: int) -> float:
        """Learning rate in `epoch` (from 1)."""
        drops = (epoch - 1) // self.every if self.every else sum(epoch > m for m in self.milestones)
        return self.lr * self.factor**drops


_FEW = Protocol(200, 2, 3e-4, "accuracy", 43, milestones=(10, 20, 30), factor=0.5, patience=50, clip=0.5)
PROTOCOLS: Mapping[str, Protocol] = {
    "ave": Protocol(50, 8, 5e-4, "accuracy", 43, every=3, factor=0.35, patience=20),
    "avvp": Protocol(40, 8, 3e-4, "segment-Type", 1, every=10, factor=0.1),
    "avs-s4": Protocol(15, 8, 3e-4, "m_j", 123),
    "avs-ms3": Protocol(30, 2, 1.5e-4, "m_j", 123),
    "avqa": Protocol(80, 8, 1e-4, "Avg", 1, every=8, factor=0.1, patience=3),
    "few-shot-ave": _FEW, "few-shot": _FEW, "zero-shot": _FEW,
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """What the published scripts do and this one does not, unless asked."""

    select_on_test: bool = False  # AVE, AVS, few-shot: the epoch with the best test result is the result
    towers_in_training_mode: bool = False  # drop-path on, running statistics of HTS-AT's BatchNorm move
    train_hearing: bool = False  # S4: only Swin is frozen, HTS-AT is trained
    # AVE: gradients are cleared every batch, the optimiser steps every second
    throw_away_gradients: bool = False
    double_sigmoid: bool = (
        False  # AVE: the gates' product, a probability, goes through another sigmoid in the loss
    )
    mixup: bool = False  # AVVP, AVS, AVQA: each spectrogram mixed with the reversed batch's, labels unmixed
    ungated_audio: bool = False  # AVVP: the temporally gated sound is thrown away
    raw_clap_scale: bool = False  # few- and zero-shot: CLAP's cosines times the logarithm of its scale


# --- models: one class per kind of head, each with `loss` and `read` -----------------------------------


class Model(nn.Module):
    """Encoder and head. `loss(batch, epoch)` for training, `read(batch)` for what a metric needs."""

    def __init__(self, encoder: DualGuidedEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def pooled(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Vision and sound pooled by the map, `[B, T, C]` each."""
        images, sounds = batch["images"], batch["sounds"]
        v, a = self.encoder(images.flatten(0, 1), sounds.flatten(0, 1)).pooled("map")
        shape = (*images.shape[:2], -1)
        return v.view(shape), a.view(shape)


class AVEModel(Model):
    """Event localisation; `labels [B, T]` with 28 as background."""

    background = len(AVE_CLASSES)
    as_published = False

    def loss(self, batch: Mapping[str, Tensor], epoch: int) -> Tensor:
        out = self.head(*self.pooled(batch))
        return self.head.loss(out, batch["labels"], self.background, self.as_published)

    def read(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = self.head(*self.pooled(batch))
        return {
            "said": metrics.ave_predict(out.event, out.category, self.background),
            "true": batch["labels"],
        }

    @staticmethod
    def score(found: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        said, true = (torch.cat([x[k] for x in found]) for k in ("said", "true"))
        return {"accuracy": metrics.accuracy(said, true)}


class AVVPModel(Model):
    """Parsing from video-level labels; scored against second-level labels of both modalities."""

    def loss(self, batch: Mapping[str, Tensor], epoch: int) -> Tensor:
        return self.head.loss(self.head(*self.pooled(batch), batch["motion"]), batch["weak"])

    def read(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        audio, visual = self.head.decide(self.head(*self.pooled(batch), batch["motion"]))
        return {
            "said_audio": audio,
            "said_visual": visual,
            "audio": batch["audio"],
            "visual": batch["visual"],
        }

    @staticmethod
    def score(found: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        def pairs(first: str, second: str) -> list[tuple[np.ndarray, np.ndarray]]:
            return [(a, v) for x in found
                    for a, v in zip(x[first].cpu().numpy(), x[second].cpu().numpy(), strict=True)]  # fmt: skip

        return metrics.avvp_scores(pairs("said_audio", "said_visual"), pairs("audio", "visual"))


class AVSModel(Model):
    """Masks. S4 trains on the first mask of a clip, MS3 on all five with the matching term."""

    def __init__(self, encoder: DualGuidedEncoder, head: nn.Module, task: str) -> None:
        super().__init__(encoder, head)
        self.first_only, self.match = (True, 0.0) if task == "avs-s4" else (False, 0.5)

    def masks(self, batch: Mapping[str, Tensor]) -> Any:
        images, sounds = batch["images"], batch["sounds"]
        out = self.encoder(images.flatten(0, 1), sounds.flatten(0, 1), keep_stages=True)
        return self.head(out.stages, out.pooled("map")[1])

    def loss(self, batch: Mapping[str, Tensor], epoch: int) -> Tensor:
        truth = batch["masks"][:, 0] if self.first_only else batch["masks"].flatten(0, 1)
        return self.head.loss(self.masks(batch), truth, self.first_only, self.match)

    def read(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, truth = self.masks(batch).logits, batch["masks"].flatten(0, 1).float()
        return {"iou": torch.tensor([metrics.mean_iou(logits, truth)]),
                "f": torch.tensor([metrics.best_f(logits, truth)]), "n": torch.tensor([len(logits)])}  # fmt: skip

    @staticmethod
    def score(found: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """M_J over frames; M_F as published, the mean over batches of each batch's best."""
        n, iou, f = (torch.cat([x[k] for x in found]).double() for k in ("n", "iou", "f"))
        return {"m_j": float((n * iou).sum() / n.sum()), "m_f": float(f.mean())}


class AVQAModel(Model):
    """Question answering with the matching term on frames of other videos, which pass the un-adapted vision tower."""

    def inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        images, sounds = batch["images"], batch["sounds"]
        out = self.encoder(images.flatten(0, 1), sounds.flatten(0, 1))
        a = out.pooled("map")[1].view(*images.shape[:2], -1)
        return out.visual.view(*images.shape[:2], *out.visual.shape[1:]), a

    def loss(self, batch: Mapping[str, Tensor], epoch: int) -> Tensor:
        v, a = self.inputs(batch)
        answer, match = self.head(v, a, batch["question"])
        belongs = torch.ones(match.shape[:2], dtype=torch.long, device=match.device)
        if "other" in batch:
            with torch.no_grad():
                other = self.encoder.visual(batch["other"].flatten(0, 1)).view(v.shape)
            match = torch.cat([match, self.head.matching(other, a)])
            belongs = torch.cat([belongs, torch.zeros_like(belongs)])
        return self.head.loss(answer, match, batch["answer"], belongs)

    def ground(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The first stage's loss: do frames and sound belong together, on frozen features of both towers?"""
        with torch.no_grad():
            shape = batch["images"].shape[:2]
            v, other = (self.encoder.visual(batch[k].flatten(0, 1)) for k in ("images", "other"))
            a = self.encoder.audio(batch["sounds"].flatten(0, 1)).mean(1).view(*shape, -1)
        v, other = (x.view(*shape, *x.shape[1:]) for x in (v, other))
        match = torch.cat([self.head.matching(v, a), self.head.matching(other, a)]).flatten(0, 1)
        half = len(match) // 2
        return F.cross_entropy(match, torch.tensor([1] * half + [0] * half, device=match.device))

    def read(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        answer, _ = self.head(*self.inputs(batch), batch["question"])
        return {"right": answer.argmax(-1) == batch["answer"]}


class PromptModel(nn.Module):
    """Few- and zero-shot. `segments`: labels per second, else one per video."""

    def __init__(self, model: FewShot, segments: bool) -> None:
        super().__init__()
        self.model, self.segments = model, segments

    def _truth(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["labels" if self.segments else "video_label"]

    def loss(self, batch: Mapping[str, Tensor], epoch: int) -> Tensor:
        return self.model.loss(self.model(batch["images"], batch["sounds"]), self._truth(batch), epoch)

    def read(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = self.model(batch["images"], batch["sounds"])
        return {"said": self.model.predict(out, self.segments), "true": self._truth(batch)}

    score = staticmethod(AVEModel.score)


AMPLE = 72  # GiB; eight videos with all their activations should fit, extrapolated from one


# --- the loop ----------------------------------------------------------------------------------------


def _on(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {k: v.to(device) for k, v in batch.items()}


@torch.no_grad()
def assess(model: nn.Module, source: Any, batch: int, score: Callable | None = None) -> dict[str, float]:
    """The task's metrics on a whole set, in evaluation mode."""
    was, device = model.training, next(model.parameters()).device
    model.eval()
    found = [{k: v.cpu() for k, v in model.read(_on(source.batch(part), device)).items()}
             for part in torch.arange(len(source)).split(batch)]  # fmt: skip
    model.train(was)
    return (score or model.score)(found)


def mixed(sounds: Tensor, weight: Tensor) -> Tensor:
    """Spectrograms `[B, T, ...]` mixed with those of the reversed order of all segments; `weight [B * T]`."""
    flat = sounds.flatten(0, 1)
    w = weight.view(-1, *[1] * (flat.ndim - 1))
    return (w * flat + (1 - w) * flat.flip(0)).view(sounds.shape)


def train(model: nn.Module, data: Any, protocol: Protocol, check: Callable[[nn.Module], Mapping[str, float]],
          test: Callable[[nn.Module], Mapping[str, float]], published: Published = Published(), *, seed: int = 0,
          folder: Path | None = None, device: str = "", recompute: bool | None = None) -> dict[str, Any]:  # fmt: skip
    """Train epoch by epoch; the test result is that of the epoch with the best `protocol.metric` in `check`.

    Args:
        check: metrics that choose the epoch (validation split); `test`: metrics that are reported.
        folder: checkpoints after every epoch; an interrupted training goes on from there.
        recompute: compute activations again in the backward pass (`companion.dgsct.memory`): the same numbers, in less
            memory and more time; by default on a GPU with less than `AMPLE` GiB.

    Returns:
        A dictionary with `test` (metrics), `best_epoch` and `curves`.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(place)
    if recompute is None:
        recompute = (
            place.type == "cuda" and torch.cuda.get_device_properties(place).total_memory < AMPLE * 2**30
        )
    if recompute:
        memory.checkpoint_activations(model)
    tuned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(tuned, protocol.lr)
    out: dict[str, Any] = {
        "test": {},
        "best": -math.inf,
        "best_epoch": 0,
        "curves": {"loss": [], "check": []},
    }
    start = 1
    if folder and (state := training.load_checkpoint(folder)):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        out, start = state["out"], state["epoch"] + 1
    per_epoch = max(1, len(data) // protocol.batch)
    if protocol.limit:
        per_epoch = min(per_epoch, protocol.limit)
    for epoch in range(start, protocol.epochs + 1):
        if protocol.patience and epoch - out["best_epoch"] > protocol.patience and out["best_epoch"]:
            break
        for group in optimizer.param_groups:
            group["lr"] = protocol.rate(epoch)
        model.train()
        order = torch.randperm(len(data), generator=training.generator(seed, "epoch", epoch))
        total = 0.0
        for k in tqdm(range(per_epoch), desc=f"epoch {epoch}", unit="batch", mininterval=2.0, leave=False):
            batch = _on(data.batch(order[k * protocol.batch : (k + 1) * protocol.batch]), place)
            if published.mixup:
                n = batch["sounds"].shape[0] * batch["sounds"].shape[1]
                weight = np.random.default_rng([seed, epoch, k]).beta(0.5, 0.5, n)
                batch["sounds"] = mixed(
                    batch["sounds"], torch.tensor(weight, dtype=torch.float32, device=place)
                )
            loss = model.loss(batch, epoch)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"loss is {float(loss)} in epoch {epoch}, batch {k}; lower lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if protocol.clip:
                nn.utils.clip_grad_norm_(tuned, protocol.clip)
            if not published.throw_away_gradients or k % 2:
                optimizer.step()
            total += float(loss.detach()) / per_epoch
        found = dict((test if published.select_on_test else check)(model))
        out["curves"]["loss"].append([epoch, total])
        out["curves"]["check"].append([epoch, found[protocol.metric]])
        if found[protocol.metric] > out["best"]:
            out |= {"best": found[protocol.metric], "best_epoch": epoch}
            out["test"] = found if published.select_on_test else dict(test(model))
        if folder:
            training.save_checkpoint(folder, epoch, {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                                                     "out": out, "epoch": epoch})  # fmt: skip
    return out


# --- from a table's cell to a result -----------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What a run is made of; the defaults are the paper's."""

    front: media.FrontEnd
    encoder: Callable[[], tuple[DualGuidedEncoder, nn.Module]] | None = None  # small ones in tests
    clip: Callable[[], tuple[nn.Module, nn.Module, Callable, Callable]] | None = None


def weights(encoder: DualGuidedEncoder, visual: str, audio: str) -> None:
    """Put pre-trained weights into both towers.

    Args:
        visual: file below COMPANION_DATA (timm's `swinv2_large_window12_192_22k`), or a name of the hub.
        audio: file below COMPANION_DATA (`HTSAT_AudioSet_Saved_1.ckpt`), or a CLAP checkpoint of the hub.
    """
    from companion.dgsct.towers import htsat_tower, swinv2_tower

    if "." in visual.rpartition("/")[2]:
        checkpoints.load_timm_swinv2(encoder.visual.model, checkpoints.read(media.find(visual)))
    else:
        encoder.visual.load_state_dict(_from_hub(swinv2_tower, visual).state_dict())
    if "." in audio.rpartition("/")[2]:
        checkpoints.load_htsat(encoder.audio.encoder, checkpoints.read(media.find(audio)))
    else:
        encoder.audio.load_state_dict(_from_hub(htsat_tower, audio).state_dict())


def _from_hub(make: Callable, name: str) -> Any:
    try:
        return make(name)
    except OSError:
        raise datasets.DataMissing(
            f"weights {name!r} are not in the hub's cache and cannot be fetched here; download them first "
            "(huggingface-cli download), or give a checkpoint file below COMPANION_DATA"
        ) from None


def hub_clip(clip: str, clap: str) -> tuple[nn.Module, nn.Module, Callable, Callable]:
    """CLIP, CLAP and their tokenizers from the hub. Raises DataMissing where they are not there."""
    from transformers import AutoTokenizer, ClapModel, CLIPModel

    return (_from_hub(CLIPModel.from_pretrained, clip), _from_hub(ClapModel.from_pretrained, clap),
            _from_hub(AutoTokenizer.from_pretrained, clip), _from_hub(AutoTokenizer.from_pretrained, clap))  # fmt: skip


def run(task: str, variant: str = "dg-sct", *, seed: int = 0, shots: int = 0, target: str = "", data: str = "ave",
        published: Published = Published(), protocol: Protocol | None = None, parts: Parts | None = None,
        visual: str = "microsoft/swinv2-large-patch4-window12-192-22k", audio: str = "av/HTSAT_AudioSet_Saved_1.ckpt",
        clip: str = "openai/clip-vit-base-patch32", clap: str = "laion/clap-htsat-fused",
        folder: Path | None = None, recompute: bool | None = None) -> dict[str, Any]:  # fmt: skip
    """Train and test one cell of the paper's tables.

    Args:
        task: a key of `PROTOCOLS`.
        variant: "dg-sct", "lavish", "late-fusion", "no-spatial", "no-channel" or "no-temporal".
        shots, data: few-shot: videos per class, of "ave" or "llp".
        target: zero-shot: "ave", "ave-class" or "llp-class", tested after training on VGG-Sound(40K).
        recompute: see `train`.

    Raises:
        ValueError for names that do not exist, DataMissing where data or weights are missing.
    """
    if task not in PROTOCOLS:
        raise ValueError(f"task is {task!r}; choose {', '.join(PROTOCOLS)}")
    protocol = protocol or PROTOCOLS[task]
    training.seed_everything(seed)
    if task in ("few-shot-ave", "few-shot", "zero-shot"):
        return _prompted(
            task,
            variant,
            seed,
            shots,
            target,
            data,
            published,
            protocol,
            parts,
            clip,
            clap,
            folder,
            recompute,
        )
    front = parts.front if parts else media.FrontEnd(samples=160_000 if task.startswith("avs") else 320_000)
    kind = {"ave": media.AVE, "avvp": media.LLP, "avqa": media.AVQA}.get(task)
    if kind:
        splits = {s: kind(s, front) for s in ("train", "val", "test")}
    else:
        splits = {s: media.AVSBench(task.removeprefix("avs-"), s, front) for s in ("train", "val", "test")}
    encoder, head = parts.encoder() if parts and parts.encoder else build(task, variant)
    if not (parts and parts.encoder):
        weights(encoder, visual, audio)
    encoder.towers_in_training_mode = published.towers_in_training_mode
    make = {"ave": AVEModel, "avvp": AVVPModel, "avqa": AVQAModel}.get(task)
    model = make(encoder, head) if make else AVSModel(encoder, head, task)
    if task == "ave":
        model.as_published = published.double_sigmoid
    if task == "avvp":
        head.as_published = published.ungated_audio
    if task == "avs-s4" and published.train_hearing:
        encoder.audio.requires_grad_(True)
    if task == "avqa":
        splits["train"].negatives = True
        _ground(model, splits["train"], seed, protocol)
    batch = 4 if task.startswith("avs") else protocol.batch  # M_F depends on it; 4 as published

    def on(split: str) -> Callable[[nn.Module], dict[str, float]]:
        if task == "avqa":
            kinds = [q.kind for q in splits[split].questions]
            return lambda m: assess(m, splits[split], batch, lambda found: metrics.avqa_scores(
                kinds, torch.cat([x["right"] for x in found]).tolist()))  # fmt: skip
        return lambda m: assess(m, splits[split], batch)

    return train(model, splits["train"], protocol, on("val"), on("test"), published, seed=seed, folder=folder,
                 recompute=recompute)  # fmt: skip


def _ground(model: AVQAModel, data: media.AVQA, seed: int, protocol: Protocol, epochs: int = 30, batch: int = 128,
            lr: float = 3e-4) -> None:  # fmt: skip
    """Stage one of question answering: the grounding layers learn on frozen features which frames a sound belongs to."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(place)
    parts = (model.head.audio_1, model.head.audio_2, model.head.grounded, model.head.match)
    optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()], lr)
    batch = min(batch, len(data))
    per_epoch = min(len(data) // batch, protocol.limit or len(data))
    index = training.epochs(len(data), batch, seed)
    for k in range(min(epochs, protocol.epochs) * per_epoch):
        optimizer.param_groups[0]["lr"] = lr * 0.1 ** (k // per_epoch // 8)
        loss = model.ground(_on(data.batch(index(k)), torch.device(place)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def _prompted(task: str, variant: str, seed: int, shots: int, target: str, data: str, published: Published,
              protocol: Protocol, parts: Parts | None, clip: str, clap: str, folder: Path | None,
              recompute: bool | None) -> dict[str, Any]:  # fmt: skip
    front = parts.front if parts else media.FrontEnd(size=224)
    if variant not in ("dg-sct", "late-fusion"):
        raise ValueError(f"variant is {variant!r}; the CLIP tasks have dg-sct and late-fusion")
    if data not in ("ave", "llp"):
        raise ValueError(f"data is {data!r}; choose ave or llp")
    names: Sequence[str]
    segments = task != "few-shot"
    if task == "zero-shot":
        if target not in ("ave", "ave-class", "llp-class"):
            raise ValueError(f"target is {target!r}; choose ave, ave-class or llp-class")
        source = media.VGGSound40K("train", front)
        val: Any = media.VGGSound40K("val", front)
        names = [*source.categories, "background"]
    elif shots < 1:
        raise ValueError(f"shots is {shots}; few-shot training needs at least 1 video per class")
    elif task == "few-shot-ave" or data == "ave":
        source, val = media.AVE("train", front, shots), media.AVE("val", front)
        names = [*AVE_CLASSES, *(["background"] if segments else [])]
    else:
        source = media.LLP("train", front, motion=False, shots=shots)
        val, names = media.LLP("val", front, motion=False), LLP_CLASSES
    seen, heard, clip_words, clap_words = parts.clip() if parts and parts.clip else hub_clip(clip, clap)
    model = FewShot(seen, heard, tokenised(names, clip_words, clap_words), PRESETS[task],
                    fusion="ratio" if task == "zero-shot" else "sum", as_published=published.raw_clap_scale,
                    units=variant == "dg-sct")  # fmt: skip
    wrapped = PromptModel(model, segments)

    def test(m: nn.Module) -> dict[str, float]:
        if task != "zero-shot":
            split = media.AVE("test", front) if data == "ave" else media.LLP("test", front, motion=False)
            return assess(m, split, protocol.batch)
        llp = target == "llp-class"
        split = media.LLP("test", front, motion=False) if llp else media.AVE("test", front)
        # "ave": 28 prompts, none for background, against labels with background: 82.2 % at most
        m.model.set_classes(tokenised(LLP_CLASSES if llp else AVE_CLASSES, clip_words, clap_words))
        m.segments = target == "ave"
        try:
            return assess(m, split, protocol.batch)
        finally:
            m.model.set_classes(tokenised(names, clip_words, clap_words))
            m.segments = segments

    return train(wrapped, source, protocol, lambda m: assess(m, val, protocol.batch), test, published, seed=seed,
                 folder=folder, recompute=recompute)  # fmt: skip
