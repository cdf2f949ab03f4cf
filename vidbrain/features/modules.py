"""Any network of torch as a source: activations are caught by forward hooks on its modules."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import ConfigError, ModelError
from vidbrain.features.networks import NetworkSource, clips_at_once
from vidbrain.features.sources import FeatureSource, Layer, choose_layers
from vidbrain.features.windows import Window
from vidbrain.models.digest import weights_fingerprint

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""By which most networks for natural video were trained to have their pixels in [0, 1] standardised."""

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True, kw_only=True)
class ClipInput:
    """What a network is shown of a clip.

    Attributes
    ----------
    n_frames
        Frames of a clip.
    step
        Source frames between them.
    size
        Rows and columns to which frames are scaled (bilinear, antialiased); None for those of the shards.
    layout
        Axes of the network's input: ``"BCTHW"`` (convolutions), ``"BTCHW"`` (Hugging Face), or ``"BCHW"`` for a network
        of images, which is shown every frame by itself.
    mean, std
        Of red, green, blue in [0, 1]; pixels are standardised by them.
    token_grid
        How tokens (B, N, C) lie: (t, h, w), or (h, w) of images. Tokens before them (class, registers) are left out.
        None where that is not known: then they are positions of the whole clip, or image.
    """

    n_frames: int = 16
    step: int = 4
    size: tuple[int, int] | None = None
    layout: Literal["BCTHW", "BTCHW", "BCHW"] = "BCTHW"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    token_grid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ConfigError(f"pixels cannot be divided by {self.std}", where="pixel-std")
        axes = 2 if self.layout == "BCHW" else 3
        if self.token_grid is not None and (len(self.token_grid) != axes or min(self.token_grid) < 1):
            named = "(h, w)" if axes == 2 else "(t, h, w)"
            raise ConfigError(f"a token grid of {self.layout} is {named}, not {self.token_grid}", where="token-grid")


def prepare(video: Tensor, shown: ClipInput) -> Tensor:
    """Turn uint8 (B, T, H, W, 3) into the float32 input of a network, on the device where it lies."""
    pixels = video.movedim(-1, 2).flatten(0, 1).float() / 255
    if shown.size is not None and tuple(pixels.shape[-2:]) != shown.size:
        pixels = F.interpolate(pixels, size=shown.size, mode="bilinear", antialias=True, align_corners=False)
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (shown.mean, shown.std))
    pixels = (pixels - mean) / std
    if shown.layout == "BCHW":
        return pixels
    clips = pixels.unflatten(0, (len(video), -1))
    return clips if shown.layout == "BTCHW" else clips.movedim(1, 2)


class _EnoughError(Exception):
    """Leaves a forward pass once the deepest layer has been caught."""


@contextmanager
def caught(network: nn.Module, layers: Mapping[str, str], last: str | None) -> Iterator[dict[str, list[Any]]]:
    """Catch what modules give during the body: by layer, one entry for each call.

    Parameters
    ----------
    network
        Whose forward pass the body runs.
    layers
        Path of the module (`nn.Module.get_submodule`) by layer.
    last
        The layer whose first call ends the forward pass, silently; None to run all of it.
    """
    found: dict[str, list[Any]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[..., None]:
        def catch(_: nn.Module, __: object, output: object) -> None:
            found[name].append(output)
            if name == last:
                raise _EnoughError

        return catch

    handles = [network.get_submodule(path).register_forward_hook(hook(name)) for name, path in layers.items()]
    try:
        yield found
    except _EnoughError:
        pass
    finally:
        for handle in handles:
            handle.remove()


class ModuleSource(NetworkSource):
    """A network, by forward hooks on its modules. It is put into evaluation mode, and run no deeper than needed.

    Layers are modules, by their path (``"encoder.layer.3"``). What they give becomes (B, t, h, w, C): features of
    convolutions (B, C, t, h, w) or (B, C, h, w), tokens (B, N, C), vectors (B, C); of a tuple the first tensor. Layers
    that differ in their slices along time are averaged to the largest number that divides all of them.

    Parameters
    ----------
    network
        Called with one tensor, `prepare` of the clips.
    layer_names
        Layers that are wanted; none for all of `named`.
    shown
        What it is shown of a clip.
    frame_size
        Height and width of the shards' frames.
    name
        Of the source.
    named
        Short names of modules; any other module can be asked for by its path. Default: the network's children.
    arguments
        Further arguments of the forward pass.
    settings
        What else names the network, as plain values.
    stride
        Source frames between clips; None for clips that do not overlap.

    Raises
    ------
    ModelError
        For an unknown layer, one that the forward pass does not call or calls more than once, or gives what is no
        tensor; or a network that cannot look at such clips.
    """

    def __init__(
        self,
        network: nn.Module,
        layer_names: Sequence[str] = (),
        *,
        shown: ClipInput,
        frame_size: tuple[int, int],
        name: str = "module",
        named: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.shown = name, shown
        paths = dict(named if named is not None else {child: child for child, _ in network.named_children()})
        known = paths | {path: path for path, _ in network.named_modules() if path and path not in paths.values()}
        self._paths = {layer: known[layer] for layer in choose_layers(layer_names or list(paths), list(known), name)}
        self._network = network.eval().to(self._device)
        self._arguments = dict(arguments or {})
        self._last: str | None = None
        self._grids: dict[str, tuple[int, ...]] = {}
        self._probe(frame_size)

        n_slices = math.gcd(shown.n_frames, *(grid[0] for grid in self._grids.values()))
        self.window = Window(n_frames=shown.n_frames, step=shown.step, n_slices=n_slices, stride=stride)
        # Images see their own frame; of anything else each position may see the whole clip.
        beyond = 0 if shown.layout == "BCHW" else self.window.covered - self.window.slice_frames
        self.layers = tuple(
            Layer(name=layer, grid=grid[1:-1], n_channels=grid[-1], sees_before=beyond, sees_after=beyond)
            for layer, grid in self._grids.items()
        )
        self.settings = {**to_mapping(shown), "network": fingerprint(str(network)), **(settings or {})}
        self.made_from = {"weights": weights_fingerprint(network)}
        self.clips_at_once = clips_at_once(self.window, self.layers)

    def extract(self, video: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Activations of the layers: uint8 (B, T, H, W, 3) -> float (B, t, *grid, C), on the device of the network."""
        with self._running(), caught(self._network, self._paths, self._last) as found:
            self._network(prepare(torch.from_numpy(video).to(self._device), self.shown), **self._arguments)
        made = {}
        for layer in self.layers:
            tokens = self._tokens(layer.name, found[layer.name][0], len(video))
            made[layer.name] = tokens.unflatten(1, (self.window.n_slices, -1)).mean(2)
        return made

    def _probe(self, frame_size: tuple[int, int]) -> None:
        """Look at one clip of zeros: learn the shapes of the layers, and which is called last."""
        video = torch.zeros(1, self.shown.n_frames, *frame_size, 3, dtype=torch.uint8, device=self._device)
        pixels = prepare(video, self.shown)
        called: list[str] = []
        try:
            with self._running(), caught(self._network, self._paths, None) as found, _order(self, called):
                self._network(pixels, **self._arguments)
        except Exception as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"{self.name} cannot look at clips of shape {tuple(pixels.shape)}, {self.shown.layout}: {first[0]}",
                where=self.name,
                likely="it was made for other frames, or for another order of axes",
                hint="give --clip-frames, --size and --layout as the network was trained",
            ) from error
        for layer, outputs in found.items():
            if len(outputs) != 1:
                calls = "takes no part in" if not outputs else f"is called {len(outputs)} times by"
                raise ModelError(
                    f"{layer} {calls} the forward pass of {self.name}", where=layer, hint="name another module"
                )
            tokens = self._tokens(layer, outputs[0], 1)
            self._grids[layer] = tuple(tokens.shape[1:])
        self._last = called[-1]

    def _tokens(self, layer: str, output: object, n_clips: int) -> Tensor:
        """What a module gave as (B, t, *grid, C)."""
        images = self.shown.layout == "BCHW"
        most = 4 if images else 5
        value = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(value, Tensor) or not value.is_floating_point() or not 2 <= value.ndim <= most:
            kind = (
                f"a tensor of {value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise ModelError(f"{layer} gives {kind}, not activations", where=layer, hint="name another module")
        n_looks = n_clips * self.shown.n_frames if images else n_clips
        if len(value) != n_looks:
            raise ModelError(f"{layer} gives {tuple(value.shape)} for {n_looks} inputs", where=layer)
        if value.ndim == 3:
            value = self._lay_out(layer, value)
        elif value.ndim > 3:
            value = value.movedim(1, -1)
        if images:
            return value.unflatten(0, (n_clips, -1))
        # Without an axis of time there is a single slice.
        return value if value.ndim == 5 else value[:, None]

    def _lay_out(self, layer: str, tokens: Tensor) -> Tensor:
        grid = self.shown.token_grid
        if grid is None:
            return tokens
        n_before = tokens.shape[1] - math.prod(grid)
        if n_before < 0:
            raise ModelError(
                f"{layer} gives {tokens.shape[1]} tokens, which cannot lie on a grid of {grid}",
                where=layer,
                hint="give another --token-grid, or none",
            )
        return tokens[:, n_before:].unflatten(1, grid)


@contextmanager
def _order(source: ModuleSource, called: list[str]) -> Iterator[None]:
    """Note in which order the layers are called."""
    handles = [
        source._network.get_submodule(path).register_forward_hook(lambda *_, layer=layer: called.append(layer))
        for layer, path in source._paths.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def load_factory(spec: str, *, trust: bool) -> nn.Module | FeatureSource:
    """Import and call ``package.module.factory``, which takes no argument and returns a network, or a source.

    Parameters
    ----------
    spec
        Its name.
    trust
        Whether the user said that its code may run; it can do anything that the user can.

    Raises
    ------
    ConfigError
        If the name is none, or is not trusted: then nothing has been imported.
    ModelError
        If it cannot be imported or called, or returns something else.
    """
    if not _FACTORY.fullmatch(spec):
        raise ConfigError(f"{spec!r} is not the name of a factory", hint="write module:package.module.factory")
    package, factory = spec.rsplit(".", 1)
    if not trust:
        raise ConfigError(
            f"module:{spec} imports {package} and calls {factory}() of it: code that can do anything you can",
            where=spec,
            hint="add --trust if you know this code",
        )
    try:
        made = getattr(importlib.import_module(package), factory)()
    except Exception as error:
        raise ModelError(
            f"{spec}() failed: {type(error).__name__}: {error}",
            where=spec,
            likely="the package is not on Python's path (PYTHONPATH), or the factory needs arguments",
        ) from error
    if not isinstance(made, nn.Module) and not (hasattr(made, "extract") and hasattr(made, "window")):
        raise ModelError(f"{spec}() gives a {type(made).__name__}, not a network of torch or a source", where=spec)
    return made


def open_module(
    spec: str,
    *,
    trust: bool,
    layers: Sequence[str] = (),
    shown: ClipInput,
    frame_size: tuple[int, int],
    stride: int | None = None,
) -> FeatureSource:
    """Open what a factory makes: a network, as a `ModuleSource`, or a source of its own, as it is.

    Parameters
    ----------
    spec, trust
        See `load_factory`.
    layers, shown, frame_size, stride
        See `ModuleSource`; a source of its own states all of them itself.

    Raises
    ------
    ConfigError, ModelError
        As `load_factory` and `ModuleSource` do.
    """
    made = load_factory(spec, trust=trust)
    if not isinstance(made, nn.Module):
        if layers or stride is not None:
            raise ConfigError(f"{spec}() states its own layers and clips", hint="leave out --layers and --stride")
        return made
    source = ModuleSource(
        made, layers, shown=shown, frame_size=frame_size, name=spec, settings={"factory": spec}, stride=stride
    )
    # What was trusted here is trusted by the workers of this command.
    arguments = {"spec": spec, "trust": trust, "layers": layers, "shown": shown, "frame_size": frame_size}
    source.opened_by(open_module, {**arguments, "stride": stride})
    return source
