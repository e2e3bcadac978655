"""Videos to frames and waveforms, once, for every later epoch.

    python -m companion.dgsct.extract VIDEOS OUT [--segments 10] [--stride 1] [--jobs 4] [--allow-short] [--verify]

Every `VIDEOS/<name>.mp4` (also .mkv, .webm, .avi) becomes `OUT/frames/<name>/00000001.jpg ...`, one frame from the middle of each
second, and `OUT/waves/<name>.npy`, float32 of segments x 32 000 samples, which is what the published loaders read.
`OUT/manifest.jsonl` has one line per finished video with the SHA-256 of the video and of its results; a video is
only listed when all its files are written, so that a killed extraction goes on where it stopped. `OUT/failed.jsonl` has one
sentence per video that could not be used.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
    return _digest(content)


def one(video: Path, out: Path, segments: int, stride: int, allow_short: bool) -> dict[str, Any]:
    """Extract one video; returns its line of the manifest. Raises ValueError as `read_clip` does."""
    from PIL import Image

    from companion.dgsct.audio import read_clip

    clip = read_clip(video, segments, allow_short=allow_short, stride=stride)
    files = {}
    for k, frame in enumerate(clip.frames, 1):
        picture = io.BytesIO()
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(picture, "JPEG", quality=95)
        name = f"frames/{video.stem}/{k:08d}.jpg"
        files[name] = _write(out / name, picture.getvalue())
    wave = io.BytesIO()
    np.save(wave, clip.sounds.reshape(-1).numpy())
    name = f"waves/{video.stem}.npy"
    files[name] = _write(out / name, wave.getvalue())
    return {"video": video.name, "sha256": _digest(video.read_bytes()), "segments": segments, "stride": stride,
            "resampled_from": clip.resampled_from, "silence_s": round(clip.missing, 3),
            "repeated_frames": clip.repeated, "files": files}  # fmt: skip


def manifest(out: Path) -> dict[str, dict[str, Any]]:
    """What `OUT/manifest.jsonl` lists, by video file name; a line cut off by a kill is ignored."""
    found: dict[str, dict[str, Any]] = {}
    path = out / "manifest.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[entry["video"]] = entry
    return found


def intact(entry: dict[str, Any], out: Path, contents: bool = False) -> bool:
    """Whether all files of a manifest line are there and, with `contents`, have their checksums."""
    for name, digest in entry["files"].items():
        path = out / name
        if not path.is_file() or (contents and _digest(path.read_bytes()) != digest):
            return False
    return True


def extract(videos: Path | str, out: Path | str, segments: int = 10, stride: int = 1, jobs: int = 1,
            allow_short: bool = False, verify: bool = False) -> dict[str, Any]:  # fmt: skip
    """Extract every video of a folder that is not done yet.

    Args:
        segments: seconds that are kept, one frame each.
        stride: a second is kept every `stride` seconds (6 spreads ten over a minute; which ten seconds of
            MUSIC-AVQA's minutes the authors kept is unknown).
        allow_short: fill sounds that end early with silence, and pictures with their last frame.
        verify: check the contents of finished videos by their checksums, not only that files exist.

    Returns:
        A dictionary with `done` (names), `there` (how many were), `failed` (name to sentence) and `resampled` (how many).

    Raises:
        ValueError: no videos in the folder, two of the same name, or a number that makes no sense.
    """
    videos, out = Path(videos), Path(out)
    if min(segments, stride, jobs) < 1:
        raise ValueError(f"segments is {segments}, stride {stride}, jobs {jobs}; all start at 1")
    found = sorted(p for p in videos.iterdir() if p.suffix.lower() in SUFFIXES) if videos.is_dir() else []
    if not found:
        raise ValueError(f"{videos} holds no video ({', '.join(SUFFIXES)})")
    stems = Counter(p.stem for p in found)
    if twice := [p.name for p in found if stems[p.stem] > 1]:
        raise ValueError(f"{' and '.join(twice[:2])} would be extracted to the same folder; rename one")
    known = manifest(out)
    wanted = {"segments": segments, "stride": stride}
    todo = []
    for path in found:
        entry = known.get(path.name)
        if (
            entry is None
            or {k: entry[k] for k in wanted} != wanted
            or not intact(entry, out, verify)
            or (verify and entry["sha256"] != _digest(path.read_bytes()))
        ):
            todo.append(path)
    out.mkdir(parents=True, exist_ok=True)
    listed = out / "manifest.jsonl"
    if listed.is_file() and not listed.read_bytes().endswith(
        b"\n"
    ):  # killed inside a line: leave it alone there
        with open(listed, "a", encoding="utf-8") as log:
            log.write("\n")
    done, failed, resampled = [], {}, 0
    with (
        open(listed, "a", encoding="utf-8") as log,
        tqdm(total=len(todo), desc="extraction", unit="video", mininterval=1.0, disable=None) as bar,
    ):

        def finish(path: Path, result: Callable[[], dict[str, Any]]) -> None:
            nonlocal resampled
            try:
                entry = result()
            except ValueError as error:
                failed[path.name] = str(error)
            else:
                resampled += entry["resampled_from"] is not None
                log.write(json.dumps(entry) + "\n")
                log.flush()
                done.append(entry["video"])
            bar.update()

        options = (out, segments, stride, allow_short)
        if jobs == 1:
            for path in todo:
                finish(path, lambda path=path: one(path, *options))
        else:
            with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
                running = {pool.submit(one, path, *options): path for path in todo}
                for future in as_completed(running):
                    finish(running[future], future.result)
    lines = "".join(json.dumps({"video": k, "why": v}) + "\n" for k, v in sorted(failed.items()))
    _write(out / "failed.jsonl", lines.encode())
    return {"done": sorted(done), "there": len(found) - len(todo), "failed": failed, "resampled": resampled}


def main(argv: list[str] | None = None) -> int:
    """The command; exit status 1 when some video failed, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.dgsct.extract", description=__doc__.splitlines()[0]
    )
    parser.add_argument("videos", type=Path, help="folder of videos")
    parser.add_argument("out", type=Path, help="folder for frames/, waves/ and manifest.jsonl")
    parser.add_argument("--segments", type=int, default=10, help="seconds to keep per video")
    parser.add_argument("--stride", type=int, default=1, help="keep a second every STRIDE seconds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--allow-short",
        action="store_true",
        help="fill short sounds with silence and short pictures with their last frame",
    )
    parser.add_argument("--verify", action="store_true", help="check finished videos by their checksums")
    args = parser.parse_args(argv)
    try:
        result = extract(args.videos, args.out, args.segments, args.stride, args.jobs, args.allow_short,
                         args.verify)  # fmt: skip
    except ValueError as error:
        print(f"extract: {error}", file=sys.stderr)
        return 2
    print(f"{len(result['done'])} videos extracted, {result['there']} were there, {len(result['failed'])} failed"
          + (f"; {result['resampled']} sounds were resampled to 32 kHz" if result["resampled"] else ""))  # fmt: skip
    for name, why in sorted(result["failed"].items()):
        print(f"FAILED {name}: {why}")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
