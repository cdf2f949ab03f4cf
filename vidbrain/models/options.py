"""The shape of a GPT, every choice of it, with what the study and VideoGPT chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.attention import head_width
from vidbrain.models.causal import AttentionName
from vidbrain.models.norms import NormName
from vidbrain.models.readers import ReaderName

MOST_HIDDEN, MOST_LAYERS = 16_384, 1_024
"""Far beyond what one GPU trains: a file that asks for more is damaged, and would fill the memory before it failed."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Shape of the GPT. The study's baseline: 576 hidden, 8 layers, 4 heads; the rest of it is in `models.presets`.

    What the codes decide (their number and grid) is not a setting: see `GPT`.
    """

    hidden: int = 576
    """Channels of the residual stream."""
    n_layers: int = 8
    """Blocks."""
    n_heads: int = 4
    """Attention heads; must divide `hidden`, unless `head_dim` is given."""
    head_dim: int | None = None
    """Channels of a head; by default hidden / n_heads. VideoGPT rounds that down without a word: 126 hidden with 4
    heads attend in 31 channels each, of which 2 are lost."""
    dropout: float = 0.0
    """Of what blocks add, in training."""
    attention_dropout: float | None = None
    """Of attention weights, in training; by default as `dropout`."""
    block: Literal["modern", "study"] = "modern"
    """modern: normalised queries and keys, squared ReLU, no biases, projections that start at zero. study: VideoGPT's
    own, x·sigmoid(1.702 x), biases, random starts."""
    norm: NormName = "rms"
    """rms, layer, or study: VideoGPT's layer norm, whose epsilon stands outside the root."""
    positions: Literal["axial", "rotary", "thirds"] = "axial"
    """axial: learned vectors of time, row and column, added; any width. rotary: turned queries and keys. thirds:
    VideoGPT's, set side by side; `hidden` must be a multiple of 3."""
    attention: AttentionName = "full"
    """full: every code before. axial: those before on one line, block by block along column, row and time; what lies
    right of or below a code in earlier rows and slices is out of reach. window: the `window` time slices before."""
    window: int = 1
    """Time slices before its own that a code attends to, where `attention` is window."""
    embedding: Literal["learned", "codebook"] = "learned"
    """learned: a table of its own. codebook: the tokenizer's vectors, fixed, through a linear map (VideoGPT)."""
    condition: Literal["none", "previous", "actions", "frames"] = "none"
    """none; previous: cross-attention to the codes of the clip before, as the study did; actions: the buttons held in
    each time slice, added to its tokens; frames: cross-attention to the clip's first frames, of VideoGPT's checkpoints
    only (training starts from codes, which hold no pixels)."""
    condition_width: int = 240
    """Channels in which the previous clip, or the frames, are kept; the study's 240."""
    reader: ReaderName = "modern"
    """What makes the context that cross-attention reads. modern: RMS norm, positions added. study: layer norm over
    channels, on the shortcut too, positions in thirds. videogpt: as study, with batch norm."""
    parametrization: Literal["sp", "mup"] = "sp"
    """sp: one learning rate. mup: matrices learn at a rate times base_hidden / hidden, outputs are multiplied by
    it, scores are divided by the width of a head: a rate tuned at one width serves others (arXiv 2203.03466)."""
    base_hidden: int = 192
    """Width at which sp and mup are equal."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.n_layers < 1:
            raise ConfigError(f"a GPT needs positive hidden and n_layers, not {self.hidden} and {self.n_layers}")
        if self.hidden > MOST_HIDDEN or self.n_layers > MOST_LAYERS:
            raise ConfigError(
                f"{self.n_layers} layers of {self.hidden} are beyond {MOST_LAYERS} layers of {MOST_HIDDEN}",
                where="model",
                likely="a damaged config.json",
            )
        for name, share in (("dropout", self.dropout), ("attention_dropout", self.attention_dropout or 0.0)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name} is a share below 1, not {share}", where=name)
        if self.window < 0:
            raise ConfigError(f"window must be at least 0, not {self.window}", where="window")
        for name in ("base_hidden", "condition_width"):
            if not 1 <= getattr(self, name) <= MOST_HIDDEN:
                raise ConfigError(f"{name} must be at least 1 and at most {MOST_HIDDEN}", where=name)
        if self.positions == "thirds" and self.hidden % 3:
            raise ConfigError(
                f"positions in thirds need a width that 3 divides, not {self.hidden}",
                where="positions",
                hint="use --model.positions axial, or the nearest width that 3 divides "
                f"({self.hidden - self.hidden % 3 or 3})",
            )
        if self.n_heads < 1 or (self.head_dim is not None and not 1 <= self.head_dim <= MOST_HIDDEN):
            raise ConfigError(
                f"a GPT needs positive n_heads and head_dim, not {self.n_heads} and {self.head_dim}", where="n_heads"
            )
        if self.head_dim is None:
            head_width(self.hidden, self.n_heads)
        if self.reads:
            self._check_reader()

    def _check_reader(self) -> None:
        if self.condition_width % self.n_heads:
            raise ModelError(
                f"{self.n_heads} heads do not divide a condition_width of {self.condition_width}",
                where="condition_width",
            )
        if self.reader != "modern" and self.condition_width % 3:
            raise ConfigError(
                f"positions in thirds need a condition_width that 3 divides, not {self.condition_width}",
                where="condition_width",
                hint="use --model.reader modern, or the study's 240",
            )
        if self.condition == "frames" and self.reader == "modern":
            raise ConfigError("frames have VideoGPT's readers: study or videogpt", where="reader")

    @property
    def reads(self) -> bool:
        """Whether blocks attend to something beside the clip: codes of the clip before, or frames."""
        return self.condition in ("previous", "frames")

    @property
    def d_head(self) -> int:
        """Channels of a head."""
        return self.hidden // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def width_factor(self) -> float:
        """What mup multiplies rates of matrices, and outputs, with: base_hidden / hidden; 1 under sp."""
        return self.base_hidden / self.hidden if self.parametrization == "mup" else 1.0

    @property
    def score_scale(self) -> float | None:
        """Factor of attention scores; None for 1 / sqrt(d)."""
        if self.parametrization == "sp":
            return None
        base: float = self.d_head * self.base_hidden / self.hidden
        return base**0.5 / self.d_head
