"""The public sets in their real layouts, PACS at 64 pixels, digits of scikit-learn, MNIST and Omniglot as ink.

A domain is anything with `name`, `labels` [N] and `get(index, augment) -> x [n, 3, H, W]`; `protocol.Domain` is the
one in memory, `FolderDomain` the one on disk.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from companion import datasets
from companion.gestur.protocol import Domain, check_domains
from companion.training import generator

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".pgm")


@dataclass(frozen=True)
class ImageSet:
    """One of the five sets: its folder as DomainBed's download script makes it, number of classes, images per domain
    (None where no count was found)."""

    folder: str
    classes: int
    domains: dict[str, int | None]


SETS = {
    "pacs": ImageSet("PACS", 7, {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929}),
    "vlcs": ImageSet("VLCS", 5, dict.fromkeys(("Caltech101", "LabelMe", "SUN09", "VOC2007"))),
    "officehome": ImageSet("office_home", 65, dict.fromkeys(("Art", "Clipart", "Product", "Real World"))),
    "terraincognita": ImageSet(
        "terra_incognita", 10, dict.fromkeys(("location_100", "location_38", "location_43", "location_46"))
    ),
    "domainnet": ImageSet(
        "domain_net", 345, dict.fromkeys(("clipart", "infograph", "painting", "quickdraw", "real", "sketch"))
    ),
}


def image_set(name: str, root: Path | str | None = None) -> list[FolderDomain]:
    """The domains of one of `SETS`, in sorted order.

    Args:
        root: the folder that holds e.g. `PACS/`; default: `dg/` of COMPANION_DATA.

    Raises:
        ValueError: for an unknown set, or a tree that does not fit.
        companion.datasets.DataMissing: where the folder is not there.
    """
    if name not in SETS:
        raise ValueError(f"data set {name!r} does not exist; choose {', '.join(SETS)}")
    known = SETS[name]
    folder = Path(root) / known.folder if root else datasets.find(f"dg/{known.folder}")
    if not folder.is_dir():
        raise datasets.DataMissing(
            f"{known.folder} is not in {root}; DomainBed's domainbed.scripts.download makes this folder"
        )
    domains = image_folders(folder)
    if missing := sorted(set(known.domains) - {d.name for d in domains}):
        raise ValueError(
            f"{folder.name} has no domain folder {missing[0]!r}; {name} has {', '.join(known.domains)}"
        )
    if (n := len(domains[0].classes)) != known.classes:
        raise ValueError(
            f"{folder.name} has {n} classes; {name} has {known.classes}, some are missing or too many"
        )
    return domains


def image_folders(folder: Path | str, size: int = 224) -> list[FolderDomain]:
    """A tree `domain/class/image` as domains, sorted; every domain must have the same classes.

    Raises ValueError when there is no such folder, there are fewer than two domains, or a class is missing in one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; a folder with the tree domain/class/image is needed")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise ValueError(f"{folder.name} has {len(names)} domain folder; at least two domains are needed")
    classes: list[str] = []
    found = []
    for name in names:
        here = sorted(p.name for p in (folder / name).iterdir() if p.is_dir())
        classes = classes or here
        if odd := sorted(set(classes) ^ set(here)):
            where = "lacks" if odd[0] in classes else "alone has"
            raise ValueError(
                f"domain {name} {where} class {odd[0]!r}; all domains must have the same classes"
            )
        paths, labels = [], []
        for k, one in enumerate(classes):
            # torchvision's ImageFolder order: sorted walk, sorted file names
            for base, _, files in sorted(os.walk(folder / name / one)):
                for file in sorted(files):
                    if file.lower().endswith(ENDINGS):
                        paths.append(Path(base) / file)
                        labels.append(k)
        found.append(FolderDomain(name, paths, torch.tensor(labels), tuple(classes), size))
    check_domains(found, len(classes))
    return found


@dataclass(frozen=True)
class Augmentation:
    """One draw of DomainBed's training augmentation: torchvision's random resized crop, mirror, colours.

    As in torchvision, ten shapes of the crop are tried and the first that fits into the image counts.
    """

    shapes: tuple[tuple[float, float], ...]  # (share of the image's area, width over height)
    x: float
    y: float
    mirror: bool
    colours: tuple[float, float, float, float]  # brightness, contrast, saturation factors and hue shift
    order: tuple[int, ...]
    grey: bool

    @classmethod
    def draw(cls, g: torch.Generator) -> Augmentation:
        area = (0.7 + 0.3 * torch.rand(10, generator=g)).tolist()
        ratio = torch.exp(math.log(3 / 4) + math.log(16 / 9) * torch.rand(10, generator=g)).tolist()
        u = torch.rand(8, generator=g).tolist()
        colours = (*(1 + 0.3 * (2 * v - 1) for v in u[2:5]), 0.3 * (2 * u[5] - 1))
        return cls(tuple(zip(area, ratio, strict=True)), u[0], u[1], u[6] < 0.5, colours,
                   tuple(torch.randperm(4, generator=g).tolist()), u[7] < 0.1)  # fmt: skip

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the crop."""
        for area, ratio in self.shapes:
            w = round(math.sqrt(width * height * area * ratio))
            h = round(math.sqrt(width * height * area / ratio))
            if w <= width and h <= height:
                return int(self.y * (height - h + 1)), int(self.x * (width - w + 1)), h, w
        # an image too long or too high for all of them: the largest centred crop with an allowed ratio
        w, h = min(width, round(height * 4 / 3)), min(height, round(width / (3 / 4)))
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(self, image, size: int):
        """PIL image -> PIL image of `size` x `size`."""
        from torchvision.transforms import functional as T

        image = T.resized_crop(image, *self.box(*image.size), [size, size])
        image = T.hflip(image) if self.mirror else image
        changes = (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue)
        for k in self.order:
            image = changes[k](image, self.colours[k])
        return T.to_grayscale(image, 3) if self.grey else image


class FolderDomain:
    """Images of one domain on disk, read by threads when asked for. `get` -> x [n, 3, size, size], ImageNet's scale."""

    def __init__(
        self, name: str, paths: Sequence[Path], labels: Tensor, classes: tuple[str, ...], size: int = 224
    ) -> None:
        self.name, self.paths, self.labels, self.classes, self.size = name, list(paths), labels, classes, size

    def __len__(self) -> int:
        return len(self.paths)

    def get(self, index: Tensor, augment: torch.Generator | None = None) -> Tensor:
        draws = [Augmentation.draw(augment) if augment else None for _ in index]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.stack(list(pool.map(self._read, index.tolist(), draws)))

    def _read(self, i: int, augmentation: Augmentation | None) -> Tensor:
        from PIL import Image
        from torchvision.transforms import functional as T

        try:
            with Image.open(self.paths[i]) as file:
                image = file.convert("RGB")
        except (
            Exception
        ) as error:  # on broken bytes decoders raise whatever they stumble over, SyntaxError included
            raise ValueError(
                f"{'/'.join(self.paths[i].parts[-3:])} cannot be read as an image ({type(error).__name__})"
            ) from None
        image = augmentation(image, self.size) if augmentation else T.resize(image, [self.size, self.size])
        return T.normalize(T.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)


# --- small public sets in memory ----------------------------------------------------------------------


def pacs_small(size: int = 32) -> list[Domain]:
    """All of PACS from the 64-pixel archive, resized, as four domains in memory (uint8)."""
    from PIL import Image

    path = datasets.find("dg/pacs64_jpeg.zip")
    images: dict[str, list[np.ndarray]] = {}
    labels: dict[str, list[str]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(n for n in archive.namelist() if n.lower().endswith(ENDINGS)):
            domain, kind = name.split("/")[-3:-1]
            image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            image = image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BOX)
            images.setdefault(domain, []).append(np.asarray(image).transpose(2, 0, 1))
            labels.setdefault(domain, []).append(kind)
    classes = sorted({kind for part in labels.values() for kind in part})
    return [
        Domain(name, torch.from_numpy(np.stack(images[name])), torch.tensor([classes.index(k) for k in labels[name]]),
               shift=size // 16, flip=True)
        for name in sorted(images)
    ]  # fmt: skip


ANGLES = (0, 15, 30, 45, 60, 75)
AGREE = (0.9, 0.8, 0.1)


def _digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 digits, enlarged: ink [N, 1, 24, 24] in [0, 1], labels [N]."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    ink = torch.from_numpy(x).float().reshape(-1, 1, 8, 8) / 16
    ink = F.interpolate(ink, size=(18, 18), mode="bicubic", align_corners=False).clamp(0, 1)
    return F.pad(ink, (3, 3, 3, 3)), torch.from_numpy(y).long()


def rotated_digits(seed: int = 0) -> list[Domain]:
    """RotatedMNIST's recipe on scikit-learn's digits: the digits are dealt out to six angles."""
    from torchvision.transforms import functional as T

    ink, labels = _digits()
    order = torch.randperm(len(ink), generator=generator(seed, "rotated digits"))
    found = []
    for k, angle in enumerate(ANGLES):
        part = order[k :: len(ANGLES)]
        turned = T.rotate(ink[part], angle, interpolation=T.InterpolationMode.BILINEAR)
        found.append(Domain(f"{angle:02d}", turned.expand(-1, 3, -1, -1), labels[part]))
    return found


def coloured_digits(seed: int = 0, agree: Sequence[float] = AGREE, noise: float = 0.25) -> list[Domain]:
    """ColoredMNIST's recipe on scikit-learn's digits: label = digit below 5, flipped with probability `noise`; the
    colour agrees with the label with probability `agree[k]` in domain k."""
    ink, digits = _digits()
    g = generator(seed, "coloured digits")
    order = torch.randperm(len(ink), generator=g)
    found = []
    for k, share in enumerate(agree):
        part = order[k :: len(agree)]
        labels = (digits[part] < 5).long()
        labels = torch.where(torch.rand(len(part), generator=g) < noise, 1 - labels, labels)
        colour = torch.where(torch.rand(len(part), generator=g) < share, labels, 1 - labels)
        images = torch.zeros(len(part), 3, *ink.shape[2:])
        images[torch.arange(len(part)), colour] = ink[part, 0]
        found.append(Domain(f"agree-{share:.1f}", images, labels))
    return found


def mnist() -> tuple[Tensor, Tensor]:
    """The 10,000 MNIST test digits: ink [N, 1, 28, 28] in [0, 1], labels [N]."""
    with gzip.open(datasets.find("dg/t10k-images-idx3-ubyte.gz")) as file:
        raw = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(datasets.find("dg/t10k-labels-idx1-ubyte.gz")) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.from_numpy(raw.copy()).float() / 255, torch.from_numpy(labels.astype(np.int64))


def omniglot(size: int = 28) -> tuple[Tensor, Tensor]:
    """Both small background sets of Omniglot: ink [5840, 1, size, size], labels [5840].

    242 characters; the 50 that are in both sets have a label for each, so there are 292 labels of 20 drawings.
    """
    from PIL import Image

    images, kinds = [], []
    for part in ("small1", "small2"):
        with zipfile.ZipFile(datasets.find(f"dg/omniglot_images_background_{part}.zip")) as archive:
            for name in sorted(n for n in archive.namelist() if n.endswith(".png")):
                image = Image.open(io.BytesIO(archive.read(name))).convert("L")
                images.append(
                    1 - np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32) / 255
                )
                kinds.append(part + "/" + "/".join(name.split("/")[-3:-1]))
    ink = torch.from_numpy(np.stack(images))[:, None]
    known = {kind: k for k, kind in enumerate(sorted(set(kinds)))}
    return (ink * 2).clamp(0, 1), torch.tensor([known[k] for k in kinds])
