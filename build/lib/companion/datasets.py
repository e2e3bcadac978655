"""Where data lives: the user's own folder (`COMPANION_DATA`) first, then a cache that fetches with checksums.

Nothing public is redistributed with the package. `SETS` says, for every public set that a table can use,
which folder it lies in, where it is had and under which licence; `find` gives a path or stops with one
sentence that says how to get the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


class DataMissing(FileNotFoundError):
    """Data or weights that this machine does not have; the message says how to get them."""


@dataclass(frozen=True)
class PublicSet:
    """A public data set: `folder` below COMPANION_DATA, `probe` a file that shows it is there."""

    folder: str
    probe: str
    title: str
    source: str
    licence: str
    papers: tuple[str, ...]


SETS = (
    PublicSet("sr", "feynman_clean.csv", "symbolic-regression benchmarks: DSO, Feynman, ODE-Strogatz",
              "github.com/dso-org/deep-symbolic-optimization, github.com/EpistasisLab/pmlb", "BSD-3, MIT", ("dncl",)),
    PublicSet("glue", "CoLA/train.tsv", "GLUE: CoLA, SST-2, MRPC, RTE as TSV", "gluebenchmark.com/tasks",
              "each task's own terms; research use", ("ytuning",)),
    PublicSet("text_open", "blimp/BLiMP.zip", "BLiMP minimal pairs", "github.com/alexwarstadt/blimp", "CC BY 4.0",
              ("ytuning",)),
    PublicSet("dg", "pacs64_jpeg.zip", "PACS at 64 pixels, MNIST test digits, Omniglot background sets",
              "github.com/facebookresearch/DomainBed, github.com/brendenlake/omniglot", "see its README", ("gestur",)),
    PublicSet("reactions", "uspto50k_bigchem_train.smi", "USPTO-50k, USPTO-MIT, Buchwald-Hartwig and Suzuki yields",
              "github.com/rxn4chemistry/rxn_yields, github.com/bigchem/retrosynthesis", "see its README",
              ("reactiont5",)),
    PublicSet("av", "fsdd.tar.xz", "spoken digits (FSDD); annotations of AVE, LLP, MUSIC-AVQA",
              "github.com/Jakobovski/free-spoken-digit-dataset", "CC BY-SA 4.0; see its README", ("dgsct",)),
    PublicSet("newscap", "verb_indices.txt", "imSitu/SWiG verbs and roles", "github.com/jhcho99/CoFormer",
              "Apache-2.0; none stated for imSitu", ("newscap",)),
)  # fmt: skip


def data_folder() -> Path | None:
    """The user's data folder (`$COMPANION_DATA`) or None. Raises DataMissing when it is set but not there."""
    named = os.environ.get("COMPANION_DATA")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise DataMissing(
            f"COMPANION_DATA is {named!r}, which is not a folder; point it at your data or unset it"
        )
    return folder


def cache() -> Path:
    """Folder for fetched files: `$COMPANION_CACHE`, else the operating system's cache folder."""
    import pooch

    return Path(os.environ.get("COMPANION_CACHE") or pooch.os_cache("companion"))


def present(public: PublicSet) -> bool:
    """Whether `public` lies in the user's data folder."""
    base = data_folder()
    return base is not None and (base / public.folder / public.probe).exists()


def find(name: str) -> Path:
    """Path of `folder/file` below COMPANION_DATA.

    Raises:
        DataMissing: where it is not there, with the set's source.
    """
    base = data_folder()
    if base is not None and (base / name).exists():
        return base / name
    known = next((s for s in SETS if name.split("/")[0] == s.folder), None)
    where = f" ({known.title}; from {known.source}, {known.licence})" if known else ""
    hint = f"it is not in {base}" if base else "COMPANION_DATA is not set"
    raise DataMissing(
        f"{name} is needed{where} but {hint}; set COMPANION_DATA to the folder that holds {name}"
    )


def fetch(url: str, sha256: str, name: str) -> Path:
    """Download `url` once into the cache as `name`, resumable by repeating; the checksum must match.

    Raises:
        DataMissing: where the address cannot be reached.
    """
    import pooch

    try:
        return Path(
            pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=name, path=cache(), progressbar=True)
        )
    except OSError as error:
        raise DataMissing(
            f"{name} could not be fetched from {url} ({error}); fetch it by hand into {cache()}"
        ) from None
