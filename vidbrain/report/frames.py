"""Frames as a page shows them: strips and short animations, every pixel kept, enlarged by the browser."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidbrain.report.html import Html, data_uri, image, tag

Video = NDArray[np.uint8]

_N_STRIP = 8
_FRAME_MS = 80
_GAP = 2


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How near frames are to the true ones, in decibels (peak signal to noise, peak 255); infinite where equal.

    Attributes
    ----------
    psnr_db
        Of the frames.
    baseline_db
        Of a guess without a model: the mean frame of the clip, or its last given frame held still.
    """

    psnr_db: float
    baseline_db: float

    @property
    def gain_db(self) -> float:
        """How much better than the guess."""
        return self.psnr_db - self.baseline_db


def psnr_db(truth: Video, other: NDArray[np.generic]) -> float:
    """Peak signal-to-noise ratio over all pixels and channels, in dB; infinite for equal arrays."""
    error = float(np.mean((truth.astype(np.float64) - other.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def reconstruction_fidelity(original: Video, reconstruction: Video) -> Fidelity:
    """Compare one clip (T, H, W, 3) with its reconstruction; the guess repeats the clip's mean frame."""
    mean = original.astype(np.float64).mean(axis=0, keepdims=True)
    return Fidelity(
        psnr_db=psnr_db(original, reconstruction),
        baseline_db=psnr_db(original, np.broadcast_to(mean, original.shape)),
    )


def continuation_fidelity(truth: Video, sampled: Video, prompt_frames: int) -> Fidelity:
    """Compare the sampled frames of one clip with what happened; the guess holds the last given frame still."""
    future = truth[prompt_frames:]
    held = np.broadcast_to(truth[max(prompt_frames - 1, 0)], future.shape)
    return Fidelity(psnr_db=psnr_db(future, sampled[prompt_frames:]), baseline_db=psnr_db(future, held))


def strip(video: Video, alt: str, *, n_frames: int = _N_STRIP) -> Html:
    """Lay frames side by side.

    Parameters
    ----------
    video : (T, H, W, 3)
        Frames; `n_frames` of them, equally spaced from first to last, are shown.
    alt
        What is seen.
    n_frames
        Frames shown, at most T.
    """
    chosen = video[frames_shown(len(video), n_frames)]
    count, height, width = chosen.shape[:3]
    row = np.zeros((height, count * (width + _GAP) - _GAP, 4), np.uint8)  # transparent between frames
    for i, frame in enumerate(chosen):
        place = slice(i * (width + _GAP), i * (width + _GAP) + width)
        row[:, place, :3], row[:, place, 3] = frame, 255
    return image(_webp([row]), alt, width=row.shape[1], height=row.shape[0], class_="pixels strip")


def frames_shown(n_frames: int, n_shown: int = _N_STRIP) -> NDArray[np.int64]:
    """Indices of the frames that a strip shows."""
    return np.unique(np.rint(np.linspace(0, n_frames - 1, min(n_shown, n_frames))).astype(np.int64))


def animation(video: Video, alt: str) -> Html:
    """Show a clip (T, H, W, 3) in a loop; a reader who asked for less motion sees its first frame."""
    height, width = video.shape[1:3]
    still = tag("source", srcset=data_uri(_webp([video[0]]), "image/webp"), media="(prefers-reduced-motion: reduce)")
    return tag("picture", still, image(_webp(list(video)), alt, width=width, height=height, class_="pixels"))


def _webp(frames: list[Video]) -> bytes:
    pictures = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    if len(pictures) == 1:
        pictures[0].save(buffer, "WEBP", lossless=True, quality=70, method=4)
    else:
        pictures[0].save(
            buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=_FRAME_MS, loop=0, lossless=True,
            quality=70, method=3,
        )  # fmt: skip
    return buffer.getvalue()
