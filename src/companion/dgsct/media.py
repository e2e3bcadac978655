"""The public sets as tensors: annotation files beside extracted frames and waves (`companion.dgsct.extract`).

Everything lies below `COMPANION_DATA/av`: `annotations/AVE`, `annotations/LLP`, `annotations/MUSIC-AVQA` and the folders
`AVE`, `LLP`, `MUSIC-AVQA`, `VGGSound40K` with `frames/<video>/*.jpg` and `waves/<video>.npy`; `AVSBench` keeps its own
layout. A set has a length and `item(k)`, a dictionary of tensors; `batch(index)` stacks several.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from companion import datasets
from companion.dgsct import data
from companion.dgsct.audio import RATE, LogMel, read_sound, repeat_to

SOURCES = {
    "AVE": "videos and annotations: github.com/YapengTian/AVE-ECCV18",
    "LLP": "videos, features and annotations: github.com/YapengTian/AVVP-ECCV20",
    "AVSBench": "on request: avlbench.opennlplab.cn/download",
    "MUSIC-AVQA": "videos and questions: gewu-lab.github.io/MUSIC-AVQA",
    "VGGSound40K": "labels: github.com/haoyi-duan/DG-SCT, videos: github.com/hche11/VGGSound",
    "HTSAT_AudioSet_Saved_1.ckpt": "weights: github.com/RetroCirce/HTS-Audio-Transformer",
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FrontEnd:
    """From decoded frames and seconds of sound to what the towers take."""

    size: int = 192  # side of the images: 192 for Swin-V2-L, 224 for CLIP
    samples: int = 320_000  # a second is repeated to this length (AVS: 160 000)
    rate: int = RATE
    logmel: LogMel = field(default_factory=LogMel)

    def images(self, frames: Tensor) -> Tensor:
        """`[T, 3, H, W]` uint8 -> normalised `[T, 3, size, size]`, bicubic, no crop."""
        x = frames.float() / 255
        x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        return (x - mean) / std

    def sounds(self, waves: Tensor) -> Tensor:
        """`[T, rate]` -> log-mels `[T, 1, steps, mels]` of each second, repeated."""
        with torch.no_grad():
            return self.logmel(repeat_to(waves, self.samples))


def find(name: str) -> Path:
    """`datasets.find`, with the set's own source in the sentence where `name` is missing."""
    try:
        return datasets.find(name)
    except datasets.DataMissing:
        source = next((f" ({text})" for part, text in SOURCES.items() if part in name.split("/")), "")
        raise datasets.DataMissing(
            f"{name} is needed{source}; set COMPANION_DATA to the folder that holds {name}"
        ) from None


def picture(path: Path, mode: str = "RGB") -> np.ndarray:
    """An image file as uint8 `[H, W, 3]` (or `[H, W]` in mode "L"). Raises ValueError when it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise datasets.DataMissing(f"{path} is missing; extract the videos first (companion.dgsct.extract)")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(
            f"frame {path.name} of {path.parent.name} cannot be read ({error}); extract it again"
        ) from None


def array(path: Path, hint: str = "extract the videos first (companion.dgsct.extract)") -> np.ndarray:
    """A `.npy` file of real numbers as float32. Raises DataMissing, or ValueError where it holds anything else."""
    if not path.is_file():
        raise datasets.DataMissing(f"{path} is missing; {hint}")
    try:
        found = np.load(path)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read ({error}); extract it again") from None
    if found.dtype.kind != "f":
        raise ValueError(f"{path.name} holds {found.dtype}; float32 is expected (sound between -1 and 1)")
    if not np.isfinite(found).all():
        raise ValueError(f"{path.name} holds values that are not finite; extract it again")
    return found.astype(np.float32)


class Extracted:
    """`frames/<video>/*.jpg` and `waves/<video>.npy` below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def frames(self, video: str, count: int) -> Tensor:
        """`count` frames spread over those that are there, `[count, 3, H, W]` uint8."""
        found = sorted((self.root / "frames" / video).glob("*.jpg"))
        if not found:
            raise datasets.DataMissing(
                f"{self.root / 'frames' / video} holds no frames; extract the videos first (companion.dgsct.extract)"
            )
        if len(found) < count:
            raise ValueError(
                f"{video} has {len(found)} frames; {count} segments need {count}; extract it again"
            )
        at = np.linspace(1, len(found), count, dtype=int) - 1
        shown = [picture(found[k]) for k in at]
        if len(sizes := sorted({x.shape[:2] for x in shown})) > 1:
            raise ValueError(
                f"frames of {video} differ in size ({sizes[0]} and {sizes[1]}); extract it again"
            )
        return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)

    def waves(self, video: str, count: int, rate: int = RATE) -> Tensor:
        """Seconds of sound `[count, rate]`. Raises ValueError when the file holds another number of samples."""
        path = self.root / "waves" / f"{video}.npy"
        wave = array(path).reshape(-1)
        if len(wave) != count * rate:
            raise ValueError(
                f"{path.name} holds {len(wave)} samples; {count} seconds at {rate} Hz need {count * rate}"
            )
        return torch.from_numpy(wave).view(count, rate)


class _Set:
    front: FrontEnd

    def item(self, k: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def batch(self, index: Iterable[int]) -> dict[str, Tensor]:
        """Items of `index`, stacked."""
        items = [self.item(int(k)) for k in index]
        return {name: torch.stack([x[name] for x in items]) for name in items[0]}

    def _seen_and_heard(self, media: Extracted, video: str, segments: int) -> dict[str, Tensor]:
        return {"images": self.front.images(media.frames(video, segments)),
                "sounds": self.front.sounds(media.waves(video, segments, self.front.rate))}  # fmt: skip


class AVE(_Set):
    """AVE: `labels [10]`, class per second, 28 = background. `shots` keeps the first videos of each class."""

    def __init__(self, split: str, front: FrontEnd, shots: int = 0) -> None:
        notes = find("av/annotations/AVE/Annotations.txt")
        self.media, self.front = Extracted(find("av/AVE")), front
        events = data.read_ave_split(notes, notes.with_name(f"{split}_order.h5"))
        self.events = data.few_shot_ave(events, shots) if shots else events
        if not shots:
            data.class_missing((e.label for e in events), data.AVE_CLASSES, split)

    def __len__(self) -> int:
        return len(self.events)

    def item(self, k: int) -> dict[str, Tensor]:
        event = self.events[k]
        labels = torch.from_numpy(event.segments())
        return self._seen_and_heard(self.media, event.video, data.SEGMENTS) | {
            "labels": labels, "video_label": torch.tensor(event.label)}  # fmt: skip


class LLP(_Set):
    """LLP: `weak [25]`; with `dense` also `audio` and `visual` `[25, 10]`; `motion [10, 512]` unless left out.

    Videos are stored under the first eleven characters of the annotation's name, YouTube's identifier.
    """

    FILES = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}  # noqa: RUF012

    def __init__(self, split: str, front: FrontEnd, motion: bool = True, shots: int = 0) -> None:
        notes = find(f"av/annotations/LLP/{self.FILES[split]}")
        self.root, self.front, self.motion = find("av/LLP"), front, motion
        self.media, self.weak = Extracted(self.root), data.read_llp_weak(notes)
        if shots:
            chosen = data.few_shot_llp(self.weak, shots)
            self.weak = {video: self.weak[video] for video in chosen}
        else:
            found = (int(k) for weak in self.weak.values() for k in np.flatnonzero(weak))
            data.class_missing(found, data.LLP_CLASSES, split)
        self.names = list(self.weak)
        self.dense = {}
        if split != "train":
            self.dense = {side: data.read_llp_dense(notes.with_name(f"AVVP_eval_{side}.csv"))
                          for side in ("audio", "visual")}  # fmt: skip

    def __len__(self) -> int:
        return len(self.names)

    def item(self, k: int) -> dict[str, Tensor]:
        name, none = self.names[k], np.zeros((len(data.LLP_CLASSES), data.SEGMENTS))
        weak = self.weak[name]
        out = self._seen_and_heard(self.media, name[:11], data.SEGMENTS)
        out |= {
            "weak": torch.from_numpy(weak).float(),
            "video_label": torch.tensor(int(data.llp_single_label(weak))),
        }
        out |= {side: torch.from_numpy(truth.get(name, none)) for side, truth in self.dense.items()}
        if self.motion:
            path = self.root / "st" / f"{name[:11]}.npy"
            motion = array(path, "LLP's R(2+1)D features are st_dir of github.com/YapengTian/AVVP-ECCV20")
            at = np.linspace(0, len(motion) - 1, data.SEGMENTS).round().astype(int)
            out["motion"] = torch.from_numpy(motion[at])
        return out


class AVSBench(_Set):
    """AVSBench-object, "s4" or "ms3": `masks [n, H, W]`, n = 1 for S4's training clips, else 5."""

    def __init__(self, task: str, split: str, front: FrontEnd) -> None:
        source, folder = {"s4": ("Single-source", "s4_data"), "ms3": ("Multi-sources", "ms3_data")}[task]
        table = find(f"av/AVSBench/{source}/{task}_meta_data.csv")
        self.items = [x for x in data.read_avs(table, table.parent / folder, task) if x.split == split]
        if not self.items:
            raise ValueError(f"{table.name} has no clip of the {split} split")
        self.front = front

    def __len__(self) -> int:
        return len(self.items)

    def item(self, k: int) -> dict[str, Tensor]:
        clip = self.items[k]
        frames = torch.from_numpy(np.stack([picture(p) for p in clip.frames])).permute(0, 3, 1, 2)
        masks = np.stack([picture(p, "L") > 0 for p in clip.masks])
        waves = read_sound(clip.wave, len(clip.frames), self.front.rate)
        return {"images": self.front.images(frames), "sounds": self.front.sounds(waves),
                "masks": torch.from_numpy(masks)}  # fmt: skip


class AVQA(_Set):
    """MUSIC-AVQA: `question [14]`, `answer`; with `negatives` also `other`, frames of another video."""

    def __init__(self, split: str, front: FrontEnd, negatives: bool = False, seed: int = 0) -> None:
        self.media, self.front, self.negatives = Extracted(find("av/MUSIC-AVQA")), front, negatives
        self.questions = data.read_avqa(self._notes(split))
        known = self.questions if split == "train" else data.read_avqa(self._notes("train"))
        self.vocabulary = data.Vocabulary(known)
        self.answers = sorted({q.answer for q in known})
        if unseen := sorted({q.answer for q in self.questions} - set(self.answers)):
            raise ValueError(f"answer {unseen[0]!r} of the {split} split does not occur in the train split")
        self.videos = sorted({q.video for q in self.questions})
        if negatives and len(self.videos) < 2:
            raise ValueError(f"the {split} split has {len(self.videos)} video; negatives need another one")
        self.random = np.random.default_rng(seed)

    @staticmethod
    def _notes(split: str) -> Path:
        folder = find("av/annotations/MUSIC-AVQA")
        for name in (f"avqa-{split}.json", f"avqa-{split}.json.gz"):
            if (folder / name).is_file():
                return folder / name
        return find(f"av/annotations/MUSIC-AVQA/avqa-{split}.json")

    def __len__(self) -> int:
        return len(self.questions)

    def item(self, k: int) -> dict[str, Tensor]:
        q = self.questions[k]
        out = self._seen_and_heard(self.media, q.video, data.SEGMENTS)
        out |= {"question": torch.from_numpy(self.vocabulary.encode(q.text)),
                "answer": torch.tensor(self.answers.index(q.answer))}  # fmt: skip
        if self.negatives:
            others = [v for v in self.random.choice(self.videos, 2, replace=False) if v != q.video]
            out["other"] = self.front.images(self.media.frames(str(others[0]), data.SEGMENTS))
        return out


class VGGSound40K(_Set):
    """VGG-Sound(40K): `labels [10]`, class per second; the last number is background."""

    def __init__(self, split: str, front: FrontEnd) -> None:
        table = find("av/VGGSound40K/vggsound-avel40k_labels.csv")
        names = table.with_name("VggsoundAVEL40kCategories.txt")
        items = data.read_vggsound40k(table, names)
        self.categories = [x.strip() for x in names.read_text(encoding="utf-8-sig").splitlines() if x.strip()]
        self.items = [x for x in items if x.split == split]
        if not self.items:
            raise ValueError(f"{table.name} has no video of the {split} split")
        if split == "train":
            known = {name: k for k, name in enumerate(self.categories)}
            data.class_missing((known[x.category] for x in self.items), tuple(self.categories), split)
        self.media, self.front = Extracted(table.parent), front

    def __len__(self) -> int:
        return len(self.items)

    def item(self, k: int) -> dict[str, Tensor]:
        one = self.items[k]
        return self._seen_and_heard(self.media, one.video, data.SEGMENTS) | {
            "labels": torch.tensor(one.labels)}  # fmt: skip
