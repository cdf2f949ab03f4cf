"""Toy videos: real files, made in a moment, whose frames are known."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def toy_frames(n_frames: int, *, height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Moving squares on a gradient: flat like console graphics, different at every frame.

    Returns
    -------
    (n_frames, height, width, 3) uint8
    """
    rng = np.random.default_rng(seed)
    frames = np.zeros((n_frames, height, width, 3), np.uint8)
    frames[..., 2] = np.linspace(0, 90, width, dtype=np.uint8)
    side = max(2, height // 6)
    for _ in range(4):
        colour = rng.integers(80, 255, 3, dtype=np.uint8)
        place, speed = rng.uniform(0, 1, 2), rng.uniform(0.002, 0.02, 2)
        for t in range(n_frames):
            top, left = (np.abs((place + speed * t) % 2 - 1) * [height - side, width - side]).astype(int)
            frames[t, top : top + side, left : left + side] = colour
    return frames


def write_video(path: str | Path, frames: NDArray[np.uint8], *, fps: int = 60) -> None:
    """Write frames (n, H, W, 3) as H.264 4:4:4 without B-frames, nearly lossless."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv444p"
        stream.options = {"crf": "4", "preset": "ultrafast", "bf": "0"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
