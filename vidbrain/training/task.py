"""What the loop trains: a model, its batches, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from vidbrain.models.gpt import GPT
from vidbrain.models.vqvae import VQVAE
from vidbrain.stream.loader import Loader
from vidbrain.training.cost import ClipCost


class Task(Protocol):
    """What the loop trains."""

    @property
    def kind(self) -> str:
        """``"vqvae"`` or ``"gpt"``: name of the stage and of the artefact."""

    @property
    def model(self) -> VQVAE | GPT:
        """What is trained."""

    @property
    def loader(self) -> Loader[Any]:
        """Its batches, this process's share of them. All rows are clips: the tail of an epoch is dropped."""

    @property
    def made_from(self) -> dict[str, str]:
        """Fingerprints of the inputs by name."""

    def begin(self, parts: Sequence[Any]) -> None:
        """Set what the first batch sets, from all of its parts."""

    def more_to_come(self) -> AbstractContextManager[None]:
        """A block for the parts of a batch before the last: what learns by itself waits for the whole batch."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ANN401 -- loader's own
        """Mean loss of a batch, or of a part of it, by the (perhaps distributed) model, and means to log."""

    def interval(self) -> dict[str, float]:
        """Numbers gathered in the model since the last call."""

    def evaluate(self) -> dict[str, Any] | None:
        """Numbers on held-out recordings, with ``loss`` among them; None where nothing is held out."""

    def facts(self) -> dict[str, Any]:
        """What the summary says of the task, beyond losses."""

    def clip_cost(self) -> ClipCost:
        """Operations and memory of one clip."""

    def place_of(self, clip: int) -> str:
        """Recording and first frame of a clip, for people."""
