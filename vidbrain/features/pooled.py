"""A source as it is written to disk: every layer pooled to a vector, every row at its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import ConfigError, ModelError
from vidbrain.features.pooling import Pooling, default_pooling, pool
from vidbrain.features.sources import FeatureSource, Layer, PlacedSource
from vidbrain.features.windows import Places, Window

RowTime = Literal["centre", "end"]


@dataclass(frozen=True)
class Pooled:
    """A source, how its positions become vectors, and which frames a row stands for.

    Attributes
    ----------
    source
        Gives activations.
    pooling
        Of every layer; None for `default_pooling` of each.
    time
        "centre": a row stands for the frames of its slice, which lie in the middle of what it sees. "end": the slices
        of a clip are averaged (for pooling "last" the last is taken), and the row stands for the `stride` frames that
        were new when the clip ended: it sees nothing after them.

    Raises
    ------
    ModelError
        For a pooling grid that a layer does not have.
    ConfigError
        For "end" where rows see no more than their frames, or as much after them as before.
    """

    source: FeatureSource
    pooling: Pooling | None = None
    time: RowTime = "centre"

    def __post_init__(self) -> None:
        for layer in self.source.layers:
            self.poolings[layer.name].check(layer.name, layer.grid)
        window = self.source.window
        if self.time == "end" and (window.margin or not any(layer.sees_before for layer in self.source.layers)):
            raise ConfigError(
                f"rows of {self.name} have a time of their own: the middle of what they see",
                hint="leave out --time",
            )

    @property
    def name(self) -> str:
        """Of the source."""
        return self.source.name

    @property
    def in_process(self) -> bool:
        """Whether the source must stay in this process."""
        return self.source.in_process

    @cached_property
    def poolings(self) -> dict[str, Pooling]:
        """Of each layer."""
        return {
            layer.name: self.pooling or default_pooling(layer.grid, layer.n_channels) for layer in self.source.layers
        }

    @cached_property
    def window(self) -> Window:
        """The clips, and the frames that each row stands for."""
        window = self.source.window
        if self.time == "centre":
            return window
        return replace(window, n_slices=1, stride=window.stride or window.slice_frames, time="end")

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The source's layers, with the receptive field of their rows."""
        if self.time == "centre":
            return self.source.layers
        before, clip = self.window.covered - self.window.row_frames, self.source.window
        # What a layer sees before its clip, it sees before every row of it.
        return tuple(
            replace(
                layer, sees_before=before + max(0, layer.sees_before - clip.covered + clip.slice_frames), sees_after=0
            )
            for layer in self.source.layers
        )

    @cached_property
    def n_features(self) -> dict[str, int]:
        """Length of each layer's rows."""
        return {layer.name: self.poolings[layer.name].n_features(layer.grid, layer.n_channels) for layer in self.layers}

    def record(self, layer: Layer) -> dict[str, Any]:
        """What a layer is, as plain values."""
        facts = {name: value for name, value in to_mapping(layer).items() if name != "weights"}
        return {**facts, "n_features": self.n_features[layer.name], "pooling": _told(self.poolings[layer.name])}

    def fingerprint(self, layer: Layer) -> str:
        """Name the rows of a layer by what decides them, but for the video: weights, settings, window, pooling."""
        weights = {k: v for k, v in self.source.made_from.items() if layer.weights is None or k in layer.weights}
        return fingerprint(self.name, self.window.record(), self.record(layer), self.source.settings, weights)

    def rows(self, video: NDArray[np.uint8], places: Places | None = None) -> dict[str, NDArray[np.float32]]:
        """Rows of each layer.

        Parameters
        ----------
        video : (B, n_input, H, W, 3) uint8
            Clips of the window.
        places
            Where they lie, for a source that wants to know.

        Returns
        -------
        dict
            By layer, (B, rows a clip, n_features) float32.

        Raises
        ------
        ModelError
            If the clips are not of the window, or the source gives other layers than it stated.
        """
        n_input = self.window.n_input
        if video.dtype != np.uint8 or video.ndim != 5 or video.shape[1] != n_input or video.shape[-1] != 3:
            raise ModelError(
                f"{self.name} looks at clips of {n_input} frames, uint8 (B, {n_input}, H, W, 3), not at "
                f"{video.dtype} {video.shape}"
            )
        parts: dict[str, list[NDArray[np.float32]]] = {layer.name: [] for layer in self.layers}
        for first in range(0, len(video), self.source.clips_at_once):
            clips = video[first : first + self.source.clips_at_once]
            if places is not None and isinstance(self.source, PlacedSource):
                found = self.source.extract_at(clips, places[first : first + len(clips)])
            else:
                found = self.source.extract(clips)
            self._check(found, len(clips))
            for name, kept in parts.items():
                kept.append(_as_array(self._row(found[name], self.poolings[name])))
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _row(self, tokens: Any, pooling: Pooling) -> Any:  # noqa: ANN401 -- an array or a tensor
        if self.time == "end":
            tokens = tokens[:, -1:] if pooling.kind == "last" else tokens.mean(1)[:, None]
        return pool(tokens, pooling)

    def _check(self, found: Mapping[str, Any], n_clips: int) -> None:
        for layer in self.source.layers:
            stated = (n_clips, self.source.window.n_slices, *layer.grid, layer.n_channels)
            given = tuple(found[layer.name].shape) if layer.name in found else "nothing"
            if given != stated:
                raise ModelError(
                    f"{self.name} stated that {layer.name} is {stated}, and gives {given}",
                    where=layer.name,
                    likely="it was opened for frames of another size, or its layers are not what it says",
                )


def _told(pooling: Pooling) -> dict[str, Any]:
    """Settings of a pooling that have a meaning for its kind."""
    means = {"grid": ("grid",), "projection": ("n_out", "seed")}.get(pooling.kind, ())
    return {"kind": pooling.kind, **{name: getattr(pooling, name) for name in means}}


def _as_array(rows: Any) -> NDArray[np.float32]:  # noqa: ANN401 -- an array or a tensor
    if not isinstance(rows, np.ndarray):
        rows = rows.float().cpu().numpy()
    return np.asarray(rows, np.float32)
