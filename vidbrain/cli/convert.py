"""``vidbrain convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vidbrain.cli.console import Console, Flag
from vidbrain.storage.roots import data_root
from vidbrain.training.convert import ConvertConfig
from vidbrain.training.convert import convert as convert_checkpoint


def convert(
    checkpoint: Path,
    /,
    *,
    out: Path | None = None,
    config: Annotated[ConvertConfig, Parameter(name="*")] = ConvertConfig(),  # noqa: B008 -- frozen
    json: Flag = False,
) -> None:
    """Turn a checkpoint of VideoGPT into folders that tokenize, train gpt and features read.

    Example: `vidbrain convert epoch=79-step=115999.ckpt --out shards/videogpt`

    Parameters
    ----------
    checkpoint
        As PyTorch Lightning wrote it; no code in it is run.
    out
        Folder to write; default runs/videogpt in the data root.
    config
        What the checkpoint does not say.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    console.print_result(convert_checkpoint(checkpoint, out or data_root() / "runs" / "videogpt", config))
