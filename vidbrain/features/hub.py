"""Networks of transformers (V-JEPA 2, VideoMAE) and of timm, from folders on disk. Nothing is fetched."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidbrain.errors import MissingExtraError, ModelError
from vidbrain.features.modules import IMAGENET_MEAN, IMAGENET_STD, ClipInput, ModuleSource
from vidbrain.features.sources import sampling_step
from vidbrain.storage.atomic import read_json

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class _Family:
    """Where a family of video models keeps what we ask for."""

    n_frames: str
    size: str
    embeddings: str
    blocks: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


_DECLARED = torch.library.Library("torchvision", "FRAGMENT")
"""Held as long as this module is: what it declares goes with it."""

FAMILIES = {
    "videomae": _Family("num_frames", "image_size", "embeddings", "encoder.layer"),
    "vjepa2": _Family("frames_per_clip", "crop_size", "encoder.embeddings", "encoder.layer", {"skip_predictor": True}),
}
"""Video models of transformers, by ``model_type``."""


def open_hf(
    folder: str | Path,
    *,
    frame_size: tuple[int, int],
    fps: float,
    sample_hz: float,
    layers: Sequence[str] = (),
    stride: int | None = None,
    untrained: bool = False,
    seed: int = 0,
) -> ModuleSource:
    """Open a video model of transformers.

    Layers are ``hidden_0`` (the embeddings) and ``hidden_k``, the residual stream after k blocks, as
    ``output_hidden_states`` numbers them; other modules by their path. Frames are scaled to the model's size without
    keeping their aspect, and standardised as the folder's processor says, or else by ImageNet's mean and deviation.

    Parameters
    ----------
    folder
        With ``config.json`` and ``model.safetensors``, as `save_pretrained` or ``hf download`` leaves them.
    frame_size
        Height and width of the shards' frames.
    fps, sample_hz
        Source frames per second, and how many of them the model is shown, about.
    layers
        Wanted; none for every ``hidden_k``.
    stride
        Source frames between clips; None for clips that do not overlap.
    untrained, seed
        Fresh weights of the same configuration.

    Raises
    ------
    MissingExtraError
        Without transformers.
    ModelError
        If the folder holds no such model, lacks weights of it, or there is no such layer.
    """
    folder = Path(folder)
    record = _config(folder)
    kind = record.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(
            f"{kind!r} is not a video model that is known here: {', '.join(FAMILIES)}",
            where=folder,
            hint="write a factory that returns the network, and give module:package.factory",
        )
    family = FAMILIES[kind]
    mend_torchvision()
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise MissingExtraError("hf: needs transformers", hint="pip install 'vidbrain[hf]'") from error
    with _quiet():
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if untrained:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = AutoModel.from_config(config, trust_remote_code=False).float()
        else:
            network = _trained(AutoModel, folder)
    n_frames, side = getattr(config, family.n_frames), getattr(config, family.size)
    patches = side // config.patch_size
    mean, std = _standard(folder)
    shown = ClipInput(
        n_frames=n_frames, step=sampling_step(fps, sample_hz), size=(side, side), layout="BTCHW", mean=mean, std=std,
        token_grid=(n_frames // config.tubelet_size, patches, patches),
    )  # fmt: skip
    blocks = {f"hidden_{k + 1}": f"{family.blocks}.{k}" for k in range(config.num_hidden_layers)}
    source = ModuleSource(
        network, layers, shown=shown, frame_size=frame_size, name=f"untrained-{kind}" if untrained else kind,
        named={"hidden_0": family.embeddings, **blocks}, arguments=family.arguments, stride=stride,
    )  # fmt: skip
    arguments = {"folder": folder, "frame_size": frame_size, "fps": fps, "sample_hz": sample_hz, "layers": layers}
    source.opened_by(open_hf, {**arguments, "stride": stride, "untrained": untrained, "seed": seed})
    return source


def open_timm(
    folder: str | Path,
    *,
    frame_size: tuple[int, int],
    fps: float,
    sample_hz: float,
    layers: Sequence[str] = (),
    untrained: bool = False,
    seed: int = 0,
) -> ModuleSource:
    """Open an image model of timm, which is shown every sampled frame by itself.

    Layers are the modules that the model's own ``feature_info`` lists, shallowest first; other modules by their path.

    Parameters
    ----------
    folder
        With ``config.json`` and ``model.safetensors``, as `timm.models.save_for_hf` or ``hf download`` leaves them.
    frame_size, fps, sample_hz, layers, untrained, seed
        See `open_hf`.

    Raises
    ------
    MissingExtraError
        Without timm, or without torchvision, which it needs.
    ModelError
        If the folder holds no such model, or there is no such layer.
    """
    folder = Path(folder)
    _config(folder)
    mend_torchvision()
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            f"timm: needs timm and a torchvision of torch {torch.__version__}: {error}",
            hint="pip install 'vidbrain[timm]'",
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = timm.create_model(f"local-dir:{folder}", pretrained=not untrained)
        except Exception as error:
            raise ModelError(f"timm cannot open it: {type(error).__name__}: {error}", where=folder) from error
    facts = network.pretrained_cfg
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    _, height, width = facts["input_size"]
    shown = ClipInput(
        n_frames=16, step=sampling_step(fps, sample_hz), size=(height, width), layout="BCHW",
        mean=tuple(facts["mean"]), std=tuple(facts["std"]), token_grid=None if grid is None else tuple(grid),
    )  # fmt: skip
    name = str(facts.get("architecture") or type(network).__name__)
    modules = [str(stage["module"]) for stage in network.feature_info]
    source = ModuleSource(
        network, layers, shown=shown, frame_size=frame_size, name=f"untrained-{name}" if untrained else name,
        named={path: path for path in modules},
    )  # fmt: skip
    arguments = {"folder": folder, "frame_size": frame_size, "fps": fps, "sample_hz": sample_hz, "layers": layers}
    source.opened_by(open_timm, {**arguments, "untrained": untrained, "seed": seed})
    return source


def mend_torchvision() -> None:
    """Make torchvision importable where its compiled part cannot be loaded; timm and transformers import it.

    Its wheels are built for a torch with CUDA. Beside one without, its Python code stops at operators that it finds
    undeclared. They are of object detection, and no network here calls them: declared, they do no harm.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            return  # whoever needs it will meet the same error
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            _DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _config(folder: Path) -> dict[str, Any]:
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(
                f"there is no {name}",
                where=folder,
                hint="fetch the model first: hf download NAME --local-dir FOLDER (weights as safetensors)",
            )
    record = read_json(folder / "config.json")
    if not isinstance(record, dict):
        raise ModelError("config.json is not the configuration of a model", where=folder)
    return record


def _trained(auto: Any, folder: Path) -> nn.Module:  # noqa: ANN401 -- AutoModel
    try:
        network, report = auto.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the model cannot be loaded: {error}", where=folder) from error
    # transformers would draw them at random, and say so in a log.
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if missing:
        raise ModelError(
            f"the weights lack {len(missing)} tensors of the model: {', '.join(missing[:3])}",
            where=folder / WEIGHTS,
            likely="the file belongs to another configuration",
        )
    found: nn.Module = network
    return found


def _standard(folder: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        path = folder / name
        facts = json.loads(path.read_text()) if path.is_file() else {}
        if "image_mean" in facts and "image_std" in facts:
            return tuple(facts["image_mean"]), tuple(facts["image_std"])
    return IMAGENET_MEAN, IMAGENET_STD


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
