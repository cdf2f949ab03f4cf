"""Samples as a film: originals, reconstructions and continuations side by side, as GIF or MP4."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidbrain.errors import ConfigError, ModelError
from vidbrain.storage.atomic import replacing
from vidbrain.training.samples import SAMPLES

COLUMNS = ("original", "reconstruction", "sampled")
GAP = 2
"""Pixels between pictures, dark; those around a continuation turn light when the prompt has ended."""
DARK, LIGHT = 24, 200


def tile(samples: dict[str, NDArray[np.uint8]], prompt_frames: int, *, scale: int = 3) -> NDArray[np.uint8]:
    """Lay clips out: a row a clip, a column each of what there is of originals, reconstructions, continuations.

    Parameters
    ----------
    samples
        Arrays (N, T, H, W, 3) uint8 by name.
    prompt_frames
        Frames of a continuation that were given.
    scale
        Screen pixels a pixel, along each side.

    Returns
    -------
    (T, height, width, 3) uint8
        Height and width are even, as H.264 wants them.
    """
    columns = [name for name in COLUMNS if name in samples]
    n, t, h, w, _ = samples[columns[0]].shape
    h, w = h * scale, w * scale
    height, width = n * (h + GAP) + GAP, len(columns) * (w + GAP) + GAP
    film = np.full((t, height + height % 2, width + width % 2, 3), DARK, np.uint8)
    for column, name in enumerate(columns):
        left = GAP + column * (w + GAP)
        if name == "sampled":
            film[prompt_frames:, :height, left - GAP : left + w + GAP] = LIGHT
        for row in range(n):
            top = GAP + row * (h + GAP)
            clip = samples[name][row].repeat(scale, axis=1).repeat(scale, axis=2)
            film[:, top : top + h, left : left + w] = clip
    return film


def write_film(folder: str | Path, path: str | Path, *, fps: float = 15.0) -> Path:
    """Write the samples of a folder as a film.

    Parameters
    ----------
    folder
        Where `write_samples` has written.
    path
        Ends in ``.gif`` or ``.mp4``.
    fps
        Frames a second; the study's clips have 15.

    Raises
    ------
    ConfigError
        For another ending.
    ModelError
        If there are no samples.
    """
    source, path = Path(folder) / SAMPLES, Path(path)
    if path.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"a film ends in .gif or .mp4, not {path.suffix!r}", where=path)
    if not source.is_file():
        raise ModelError("there are no samples", where=source, hint="write them first: vidbrain sample")
    with np.load(source, allow_pickle=False) as found:
        given = int(found["prompt_frames"]) if "prompt_frames" in found else 0
        film = tile({name: found[name] for name in COLUMNS if name in found}, given)
    with replacing(path) as part:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(part, film, fps)
    return path


def _write_gif(path: Path, film: NDArray[np.uint8], fps: float) -> None:
    pictures = [Image.fromarray(frame) for frame in film]
    # A GIF counts time in hundredths of a second.
    each_ms = max(20, round(100 / fps) * 10)
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=each_ms, loop=0)


def _write_mp4(path: Path, film: NDArray[np.uint8], fps: float) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = film.shape[1], film.shape[2], "yuv420p"
        for frame in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
