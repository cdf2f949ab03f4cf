"""``vidbrain train``: models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from vidbrain.cli.console import Console, Flag
from vidbrain.storage.roots import data_root
from vidbrain.training.gpt import GPTTrainConfig, train_gpt
from vidbrain.training.vqvae import VQVAETrainConfig, train_vqvae

app = App(name="train", help="Train a VQ-VAE on clips, or a GPT on its codes.")


@app.command
def vqvae(
    data: str | None = None,
    /,
    *,
    out: Path | None = None,
    config: Annotated[VQVAETrainConfig, Parameter(name="*")] = VQVAETrainConfig(),  # noqa: B008 -- frozen
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Train a VQ-VAE on clips, or finish a training that was stopped.

    Example: `vidbrain train vqvae shards/demo/data --steps 2000 --model.n-hidden 64`

    With several GPUs: `torchrun --nproc-per-node 4 -m vidbrain train vqvae …`

    Parameters
    ----------
    data
        Data set of shards, a folder or a URL; default data in the data root.
    out
        Folder of the run; default runs/vqvae in the data root.
    config
        What decides the weights.
    device
        auto, cpu or cuda.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    root = data_root()
    console.print_result(
        train_vqvae(
            data or root / "data", out or root / "runs" / "vqvae", config, device=device, progress=console.progress()
        )
    )


@app.command
def gpt(
    codes: str | None = None,
    /,
    *,
    out: Path | None = None,
    vqvae: Path | None = None,
    game: Path | None = None,
    config: Annotated[GPTTrainConfig, Parameter(name="*")] = GPTTrainConfig(),  # noqa: B008 -- frozen
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Train a GPT on codes, or finish a training that was stopped.

    Example: `vidbrain train gpt shards/demo/codes --model.hidden 192 --model.n-heads 4`

    Parameters
    ----------
    codes
        Data set of codes, from `vidbrain tokenize`, a folder or a URL; default codes in the data root.
    out
        Folder of the run; default runs/gpt in the data root.
    vqvae
        The VQ-VAE that made the codes, for --model.embedding codebook.
    game
        What was sharded, for --model.condition actions.
    config
        What decides the weights.
    device
        auto, cpu or cuda.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    root = data_root()
    console.print_result(
        train_gpt(
            codes or root / "codes",
            out or root / "runs" / "gpt",
            config,
            vqvae=vqvae,
            game=game,
            device=device,
            progress=console.progress(),
        )
    )
