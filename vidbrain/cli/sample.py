"""``vidbrain sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vidbrain.cli.console import Console, Flag
from vidbrain.storage.roots import data_root
from vidbrain.training.film import write_film
from vidbrain.training.samples import SamplesConfig, write_samples


def sample(
    data: Path | None = None,
    /,
    *,
    vqvae: Path | None = None,
    gpt: Path | None = None,
    out: Path | None = None,
    game: Path | None = None,
    film: Path | None = None,
    config: Annotated[SamplesConfig, Parameter(name="*")] = SamplesConfig(),  # noqa: B008 -- frozen
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Let a GPT continue held-out clips, and write what it dreams as arrays and as a film.

    Example: `vidbrain sample shards/demo/data --vqvae shards/demo/runs/vqvae --gpt shards/demo/runs/gpt`

    Parameters
    ----------
    data
        Data set of shards; default data in the data root.
    vqvae
        A finished training; default runs/vqvae in the data root.
    gpt
        A finished training on its codes; default runs/gpt in the data root.
    out
        Folder of samples.npz; default runs/samples in the data root.
    game
        What was sharded, for a GPT that is told actions.
    film
        GIF or MP4 to write; default samples.gif beside the arrays.
    config
        What is drawn.
    device
        auto, cpu or cuda.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    root = data_root()
    out = out or root / "runs" / "samples"
    record = write_samples(
        vqvae or root / "runs" / "vqvae",
        gpt or root / "runs" / "gpt",
        data or root / "data",
        out,
        config,
        game=game,
        device=device,
        progress=console.progress(),
    )
    shown = write_film(out, film or out / "samples.gif")
    console.print_result({"samples": str(out), "film": str(shown), "n_clips": record["n_clips"]})
