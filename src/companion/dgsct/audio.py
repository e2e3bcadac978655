"""Sound and frames as the published model takes them, with torchaudio and PyAV.

Waveform [32 kHz] -> STFT 1024 / hop 320, Hann, reflect -> power -> 64 Slaney mel bands, 50-14000 Hz -> 10 log10
-> `[N, 1, T, 64]`. `HTSATTower.image` then folds 1001 frames into the 256 x 256 image that HTS-AT sees.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

RATE = 32_000


class LogMel(nn.Module):
    """Log-mel spectrogram of HTS-AT: waveforms `[N, samples]` -> `[N, 1, samples // hop + 1, mels]` in dB."""

    def __init__(self, rate: int = RATE, n_fft: int = 1024, hop: int = 320, mels: int = 64, low: float = 50.0,
                 high: float = 14_000.0, floor: float = 1e-10) -> None:  # fmt: skip
        super().__init__()
        import torchaudio

        self.floor = floor
        self.spectrogram = torchaudio.transforms.Spectrogram(
            n_fft, hop_length=hop, power=2, pad_mode="reflect"
        )
        self.mel = torchaudio.transforms.MelScale(
            mels, rate, low, high, n_fft // 2 + 1, norm="slaney", mel_scale="slaney"
        )

    def forward(self, waves: Tensor) -> Tensor:
        power = self.mel(self.spectrogram(waves)).transpose(1, 2)
        return 10 * torch.log10(power.clamp_min(self.floor))[:, None]


def repeat_to(waves: Tensor, samples: int) -> Tensor:
    """Repeat short sounds `[N, s]` until they last `samples`, as the published loaders do with one second.

    Raises ValueError for an empty sound.
    """
    if waves.shape[-1] == 0:
        raise ValueError("a sound of 0 samples cannot be repeated; give at least one sample")
    return waves.repeat(1, math.ceil(samples / waves.shape[-1]))[:, :samples]


def resample(wave: Tensor, rate: int, wanted: int = RATE) -> Tensor:
    """`wave [..., samples]` from `rate` to `wanted` samples per second."""
    import torchaudio

    return wave if rate == wanted else torchaudio.functional.resample(wave, rate, wanted)


@dataclass(frozen=True)
class Clip:
    """A decoded video: one frame and one second of sound per segment."""

    frames: Tensor  # [T, 3, H, W] uint8
    sounds: Tensor  # [T, rate] float
    resampled_from: int | None  # the file's rate where it was not the wanted one
    missing: float = 0.0  # seconds of silence that were added at the end
    repeated: int = 0  # frames at the end that repeat the last one, because the picture ended


def read_clip(path: Path | str, segments: int = 10, rate: int = RATE, allow_short: bool = False,
              stride: int = 1) -> Clip:  # fmt: skip
    """One frame from the middle of each kept second, and mono sound, of a video file.

    Args:
        segments: seconds that are kept.
        rate: samples per second of the result; a file with another rate is resampled, and `Clip.resampled_from` says so.
        allow_short: fill a sound that ends early with silence, and a picture with its last frame, instead of refusing them.
        stride: a second is kept every `stride` seconds.

    Raises:
        ValueError: no video, no sound, sound or picture shorter than the clip, a corrupt frame, or a file that cannot be
            decoded; one sentence.
    """
    import av
    import numpy as np

    if min(segments, stride) < 1:
        raise ValueError(f"segments is {segments}, stride {stride}; both start at 1")
    name, need = Path(path).name, ((segments - 1) * stride + 1) * rate
    wanted = [k * stride + 0.5 for k in range(segments)]
    frames, last, parts = [], None, []
    try:
        with av.open(str(path)) as file:
            if not file.streams.video:
                raise ValueError(f"{name} has no video stream")
            if not file.streams.audio:
                raise ValueError(f"{name} has no sound; audio-visual tasks need both")
            original = file.streams.audio[0].rate
            for frame in file.decode(video=0):
                if frame.is_corrupt:
                    raise ValueError(f"{name}: the frame at {frame.time or 0:.1f} s is corrupt")
                last = frame
                while len(frames) < segments and (frame.time or 0.0) >= wanted[len(frames)] - 1e-6:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == segments:
                    break
            file.seek(0)
            to_mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
            have = 0
            for frame in file.decode(audio=0):
                parts += [part.to_ndarray().ravel() for part in to_mono.resample(frame)]
                have += len(parts[-1]) if parts else 0
                if have > need + rate:
                    break
            parts += [part.to_ndarray().ravel() for part in to_mono.resample(None)]
    except av.FFmpegError as error:
        raise ValueError(f"{name} cannot be decoded ({error.strerror})") from None
    if last is None:
        raise ValueError(f"{name} holds no frame that can be decoded")
    repeated = segments - len(frames)
    # the last frame of a video that is whole may come a little before the middle of its last second
    if repeated and not allow_short and (repeated > 1 or wanted[-1] - (last.time or 0.0) > 0.5):
        raise ValueError(f"{name}: the picture ends at {last.time or 0:.1f} s of {need / rate:.0f} s; "
                         "pass allow_short=True to repeat its last frame")  # fmt: skip
    frames += [last.to_ndarray(format="rgb24")] * repeated
    wave = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    missing = max(0, need - len(wave))
    # an encoder may cut or pad a few milliseconds; half a second is not that
    if missing > rate // 2 and not allow_short:
        raise ValueError(f"{name}: sound lasts {len(wave) / rate:.1f} s of {need / rate:.0f} s; "
                         "pass allow_short=True to fill with silence")  # fmt: skip
    wave = np.pad(wave[:need], (0, missing)).astype(np.float32)
    kept = np.stack([wave[k * stride * rate :][:rate] for k in range(segments)])
    pictures = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    return Clip(pictures, torch.from_numpy(kept), original if original != rate else None, missing / rate,
                repeated)  # fmt: skip


def read_sound(path: Path | str, seconds: int, rate: int = RATE) -> Tensor:
    """Mono sound of an audio file as `[seconds, rate]`; up to half a second is filled.

    A file of another rate is resampled, with a warning (once per rate).

    Raises ValueError for a file that cannot be decoded or ends earlier than that.
    """
    import av
    import numpy as np

    name = Path(path).name
    try:
        with av.open(str(path)) as file:
            if not file.streams.audio:
                raise ValueError(f"{name} has no sound")
            original = file.streams.audio[0].rate
            to_mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
            parts = [p.to_ndarray().ravel() for f in file.decode(audio=0) for p in to_mono.resample(f)]
            parts += [p.to_ndarray().ravel() for p in to_mono.resample(None)]
    except av.FFmpegError as error:
        raise ValueError(f"{name} cannot be decoded ({error.strerror})") from None
    if original != rate:  # no name in it: Python shows an equal warning once
        warnings.warn(f"sound files of {original} Hz are resampled to {rate} Hz", stacklevel=2)
    wave, need = np.concatenate([np.zeros(0, np.float32), *parts]), seconds * rate
    if len(wave) < need - rate // 2:
        raise ValueError(f"{name}: sound lasts {len(wave) / rate:.1f} s of {seconds} s")
    wave = np.pad(wave[:need], (0, max(0, need - len(wave)))).astype(np.float32)
    return torch.from_numpy(wave).view(seconds, rate)
