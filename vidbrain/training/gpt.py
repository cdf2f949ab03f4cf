"""Trains the GPT on codes, and judges it on the codes of held-out recordings."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it

from vidbrain.config import fingerprint
from vidbrain.errors import ModelError
from vidbrain.models.flops import count_gpt, gpt_flops
from vidbrain.models.gpt import GPT, GPTConfig
from vidbrain.models.presets import preset_of
from vidbrain.models.pretrained import load_vqvae
from vidbrain.progress import SILENT, Progress
from vidbrain.records import World
from vidbrain.sharding.manifest import open_manifest
from vidbrain.stream.batch import CodesBatch
from vidbrain.stream.codes import CodesSource, CodesTable, load_codes
from vidbrain.stream.loader import Loader
from vidbrain.training.conditions import Buttons, Told, pairs, read_buttons
from vidbrain.training.cost import ClipCost
from vidbrain.training.guesses import bigram_nats, unigram_nats
from vidbrain.training.loop import train
from vidbrain.training.resident import resident_codes
from vidbrain.training.settings import LoopConfig
from vidbrain.training.tokenizer import check_tokenizer, tokenizer_of


@dataclass(frozen=True, kw_only=True)
class GPTTrainConfig(LoopConfig):
    """Settings of a GPT's training."""

    model: GPTConfig = field(default_factory=GPTConfig)
    """Its shape."""


def train_gpt(
    codes_root: str | Path,
    out: Path,
    config: GPTTrainConfig = GPTTrainConfig(),
    *,
    vqvae: str | Path | None = None,
    game: str | Path | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train a GPT on a data set of codes, or finish what a killed call began.

    Parameters
    ----------
    codes_root
        Data set of codes, as `tokenize` writes it; a folder or a URL.
    out
        Folder of the run, as `train_vqvae` lays it out.
    config
        What decides the weights.
    vqvae
        The tokenizer that made the codes: needed where the GPT embeds its code vectors; refused if it is another.
    game
        What was sharded, with the buttons: needed where the GPT is told actions.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``.

    Returns
    -------
    dict
        The summary. ``held_out`` holds, in nats per token of held-out codes, the cross-entropy ``loss``, and
        ``loss_later``, that of time slices after the first (null where there is one). Beside it stand the levels that
        they are to be compared with, all on the same clips: ``unigram_entropy``, the entropy of the training codes
        without regard to position; ``unigram_loss``, the cross-entropy of the held-out codes under that distribution
        (add-one smoothed); ``bigram_loss`` and ``bigram_loss_later``, the cross-entropies of a guess by the code at
        the same place one slice before (see `vidbrain.training.guesses`).

    Raises
    ------
    ModelError, ShardError, StorageError, ConfigError, ResumeError
        For bad codes, bad settings, another run in `out`, or a loss that is no longer a number.
    """
    manifest = open_manifest(codes_root, kind="codes")

    def task_of(world: World, device: torch.device) -> GPTTask:
        return GPTTask(codes_root, config, world, device, vqvae=vqvae, game=game)

    _n_codes(manifest.info, codes_root)
    return train(task_of, config, Path(out), device=device, progress=progress)


class GPTTask:
    """A GPT in training: see `vidbrain.training.loop.Task`."""

    kind = "gpt"

    def __init__(
        self,
        codes_root: str | Path,
        config: GPTTrainConfig,
        world: World,
        device: torch.device,
        *,
        vqvae: str | Path | None = None,
        game: str | Path | None = None,
    ) -> None:
        manifest = open_manifest(codes_root, kind="codes")
        self._config, self._device = config, device
        inputs = manifest.info["made_from"]
        self.made_from = {"codes": manifest.fingerprint, "vqvae": str(inputs["vqvae"]), **tokenizer_of(inputs)}
        self._n_codes = _n_codes(manifest.info, codes_root)
        train_table = load_codes(codes_root, split="train")
        held_out = bool((manifest.segments["split"] == "val").any())
        val_table = load_codes(codes_root, split="val") if held_out else None
        highest = int(train_table.codes.max())
        if highest >= self._n_codes:
            raise ModelError(
                f"the codes go up to {highest}, their record says {self._n_codes} codes",
                where=codes_root,
                likely="the data set is damaged, or made with another VQ-VAE than it says",
                hint="tokenize again into an empty folder",
            )
        buttons = self._buttons(game, manifest.recordings.index.tolist())
        train_table, self._told = self._conditions(train_table, buttons)
        self._val, self._val_told = None, Told()
        if val_table is not None:
            val_table, self._val_told = self._conditions(val_table, buttons)
            # A few clips, spread evenly over the held-out recordings.
            n = min(config.eval_clips, len(val_table))
            self._chosen = np.linspace(0, len(val_table) - 1, n).round().astype(np.int64)
            self._val = val_table.codes[self._chosen]
        t, h, w = train_table.codes.shape[1:]
        vectors = self._vectors(vqvae, manifest.info)
        self.model = GPT(
            config.model,
            n_codes=self._n_codes,
            grid=(t, h, w),
            code_dim=None if vectors is None else vectors.shape[1],
            actions=buttons.names if buttons is not None else (),
        )
        if vectors is not None:
            self.model.set_codebook(vectors)
        self._train = train_table.codes
        self._recording, self._start_frame = train_table.recording, train_table.start_frame
        self._resident = resident_codes(train_table.codes, device)
        self.loader: Loader[CodesBatch] = Loader(
            CodesSource(train_table),
            batch_size=config.batch_size,
            seed=config.seed,
            world=world,
            # Codes that lie on the device are gathered there.
            device=device if self._resident is None else None,
        )

    def _buttons(self, game: str | Path | None, recordings: list[str]) -> Buttons | None:
        if self._config.model.condition != "actions":
            return None
        if game is None:
            raise ModelError(
                "a GPT that is told actions needs the recordings",
                where="condition",
                hint="name what was sharded: --game",
            )
        buttons = read_buttons(game, recordings)
        self.made_from["actions"] = buttons.fingerprint
        return buttons

    def _conditions(self, table: CodesTable, buttons: Buttons | None) -> tuple[CodesTable, Told]:
        if self._config.model.condition == "previous":
            found = pairs(table)
            return found.table, Told(table.codes, found.before)
        if buttons is not None:
            held = buttons.during(table.recording.tolist(), table.start_frame, table.clip, table.codes.shape[1])
            return table, Told(actions=held)
        return table, Told()

    def _vectors(self, vqvae: str | Path | None, info: dict[str, Any]) -> Tensor | None:
        """Code vectors of the tokenizer, which must be the one that made the codes."""
        tokenizer = None if vqvae is None else load_vqvae(vqvae)
        if tokenizer is not None:
            check_tokenizer(info["made_from"], tokenizer, where=vqvae)
        if self._config.model.embedding != "codebook":
            return None
        if tokenizer is None:
            raise ModelError(
                "a GPT that embeds code vectors needs the tokenizer that has them",
                where="embedding",
                hint="name the VQ-VAE that made the codes: --vqvae",
            )
        vectors = tokenizer.codebook.vectors()
        if fingerprint(vectors.flatten().tolist()) != info.get("codebook"):
            raise ModelError(
                "the codes were made with another tokenizer",
                where=vqvae,
                hint="name the VQ-VAE that made them, or tokenize again with this one",
            )
        return vectors

    def begin(self, parts: Sequence[CodesBatch]) -> None:
        """Nothing is taken from the first batch."""

    def more_to_come(self) -> AbstractContextManager[None]:
        """Nothing learns by itself."""
        return contextlib.nullcontext()

    def loss(self, model: nn.Module, batch: CodesBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of codes."""
        resident = self._resident
        codes = torch.as_tensor(batch.codes) if resident is None else resident.gather(batch.index)
        return model(codes, self._told.of(batch.index, self._device)), {}

    def interval(self) -> dict[str, float]:
        """Nothing is gathered in the model."""
        return {}

    def evaluate(self) -> dict[str, Any] | None:
        """Cross-entropy of held-out clips."""
        if self._val is None:
            return None
        by_slice = np.zeros(self.model.grid[0])
        for first in range(0, len(self._val), self._config.batch_size):
            rows = slice(first, first + self._config.batch_size)
            codes, told = self._to_device(self._val[rows]), self._val_told.of(self._chosen[rows], self._device)
            scores = self.model.logits(codes, told).flatten(0, -2)
            nats = F.cross_entropy(scores, codes.flatten().long(), reduction="none").view(codes.shape)
            by_slice += nats.double().sum(dim=(0, 2, 3)).cpu().numpy()
        n_a_slice = self._val[:, 0].size
        later = float(by_slice[1:].mean() / n_a_slice) if len(by_slice) > 1 else None
        return {"loss": float(by_slice.mean() / n_a_slice), "loss_later": later, "clips": len(self._val)}

    def facts(self) -> dict[str, Any]:
        """Grid, number of codes, and what guesses by counting achieve."""
        train, n = self._train, self._n_codes
        return {
            "grid": list(self.model.grid),
            "tokens_per_clip": self.model.n_tokens,
            "n_codes": self._n_codes,
            "codes_resident": self._resident is not None,
            "preset": preset_of(self._config.model),
            **unigram_nats(train, self._val, n),
            **({} if self._val is None else bigram_nats(train, self._val, n)),
        }

    def clip_cost(self) -> ClipCost:
        """Operations and memory of a clip of codes."""
        flops, counted = gpt_flops(self.model), count_gpt(self.model)
        return ClipCost(flops.dense, flops.causal, counted.train, counted.saved_bytes, self.model.n_tokens)

    def place_of(self, clip: int) -> str:
        """Recording and first frame of a clip."""
        return f"{self._recording[clip]} from frame {self._start_frame[clip]}"

    def _to_device(self, codes: NDArray[np.uint16]) -> Tensor:
        return torch.from_numpy(codes.astype(np.int32)).to(self._device, non_blocking=True)


def _n_codes(info: dict[str, Any], root: str | Path) -> int:
    try:
        return int(info["n_codes"])
    except (KeyError, TypeError, ValueError):
        raise ModelError("the codes do not say how many codes there are", where=root) from None
