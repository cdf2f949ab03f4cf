"""``vidbrain tokenize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vidbrain.cli.console import Console, Flag
from vidbrain.storage.roots import data_root
from vidbrain.training.tokenize import TokenizeConfig
from vidbrain.training.tokenize import tokenize as tokenize_clips


def tokenize(
    data: Path | None = None,
    /,
    *,
    vqvae: Path | None = None,
    out: Path | None = None,
    config: Annotated[TokenizeConfig, Parameter(name="*")] = TokenizeConfig(),  # noqa: B008 -- frozen
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Turn clips into codes with a trained VQ-VAE, in the layout of the shards.

    Example: `vidbrain tokenize shards/demo/data --vqvae shards/demo/runs/vqvae --out shards/demo/codes`

    Parameters
    ----------
    data
        Data set of shards; default data in the data root.
    vqvae
        A finished training; default runs/vqvae in the data root.
    out
        Data set of codes to write; default codes in the data root.
    config
        Which clips.
    device
        auto, cpu or cuda.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    root = data_root()
    out = out or root / "codes"
    record = tokenize_clips(
        data or root / "data",
        vqvae or root / "runs" / "vqvae",
        out,
        config,
        device=device,
        progress=console.progress(),
    )
    names = ("n_clips", "grid", "tokens_per_clip", "n_codes", "n_bytes", "fingerprint")
    console.print_result({"root": str(out), **{name: record[name] for name in names}})
