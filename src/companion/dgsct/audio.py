"""Sound and frames as the published model takes them, with torchaudio and PyAV.

Waveform [32 kHz] -> STFT 1024 / hop 320, Hann, reflect -> power -> 64 Slaney mel bands, 50-14000 Hz -> 10 log10
-> `[N, 1, T, 64]`. `HTSATTower.image` then folds 1001 frames into the 256 x 256 image that HTS-AT sees.
"""

from __future__ import annotations

import math
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


def read_clip(path: Path | str, segments: int = 10, rate: int = RATE, allow_short: bool = False) -> Clip:
    """Frames at the middle of every second and mono sound of a video file.

    Args:
        allow_short: pad a sound that ends early with silence instead of refusing it.

    Raises:
        ValueError: no video, no sound, sound shorter than the clip, or a file that cannot be decoded; one sentence.
    """
    import av

    try:
        with av.open(str(path)) as file:
            if not file.streams.video:
                raise ValueError(f"{Path(path).name} has no video stream")
            if not file.streams.audio:
                raise ValueError(f"{Path(path).name} has no sound; audio-visual tasks need both")
            wanted = [k + 0.5 for k in range(segments)]
            frames, last = [], None
            for frame in file.decode(video=0):
                time = float(frame.pts * frame.time_base) if frame.pts is not None else 0.0
                last = frame
                while len(frames) < segments and time >= wanted[len(frames)] - 1e-6:
                    frames.append(frame.to_ndarray(format="rgb24"))
            if last is None:
                raise ValueError(f"{Path(path).name} holds no frame that can be decoded")
            frames += [last.to_ndarray(format="rgb24")] * (segments - len(frames))
            file.seek(0)
            original = file.streams.audio[0].rate
            to_mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
            parts = [
                part.to_ndarray().ravel()
                for frame in file.decode(audio=0)
                for part in to_mono.resample(frame)
            ]
            parts += [part.to_ndarray().ravel() for part in to_mono.resample(None)]
    except av.FFmpegError as error:
        raise ValueError(f"{Path(path).name} cannot be decoded ({error.strerror})") from None
    import numpy as np

    wave = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    need = segments * rate
    # an encoder may cut or pad a few milliseconds; half a second is not that
    if len(wave) < need - rate // 2 and not allow_short:
        raise ValueError(f"{Path(path).name}: sound lasts {len(wave) / rate:.1f} s of {segments} s; "
                         "pass allow_short=True to fill with silence")  # fmt: skip
    wave = np.pad(wave[:need], (0, max(0, need - len(wave)))).reshape(segments, rate)
    pictures = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    return Clip(pictures, torch.from_numpy(wave.astype(np.float32)), original if original != rate else None)
