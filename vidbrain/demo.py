"""The whole path on real game play: every stage of vidbrain, called with the settings of `recipes/demo.toml`.

Nothing here is special to the demo: each stage is the function behind a command, keeps its own record of what is done,
and goes on where it was stopped. This module only says in which order, and gathers the numbers.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from vidbrain import __version__
from vidbrain.bold.ingest import IngestConfig, ingest
from vidbrain.bold.simulation.drivers import KINDS
from vidbrain.bold.simulation.experiment import SimulateConfig
from vidbrain.bold.simulation.simulate import simulate
from vidbrain.bold.simulation.truth import measured_ceiling, open_truth
from vidbrain.bold.store import open_bold
from vidbrain.cluster import Client
from vidbrain.config import from_mapping, read_toml
from vidbrain.encoding.blocks import fit_encoding
from vidbrain.encoding.maps import write_maps
from vidbrain.encoding.result import open_result
from vidbrain.encoding.settings import EncodeConfig
from vidbrain.features.catalog import SourceConfig, make_source
from vidbrain.features.drivers import extract_drivers
from vidbrain.features.extract import ExtractConfig, extract
from vidbrain.features.store import open_features
from vidbrain.progress import SILENT, Progress
from vidbrain.report.inputs import ReportInputs
from vidbrain.report.page import write_report
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.record import DATASET
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.atomic import check_writable, read_json, write_json
from vidbrain.storage.info import read_info
from vidbrain.training.gpt import GPTTrainConfig, train_gpt
from vidbrain.training.samples import SamplesConfig, write_samples
from vidbrain.training.tokenize import TokenizeConfig, tokenize
from vidbrain.training.vqvae import VQVAETrainConfig, train_vqvae
from vidbrain.video.play import PlayConfig, play
from vidbrain.video.replay import ReplayConfig, replay

N_BYTES = 1_500_000_000
"""What the demo writes, at most, about."""

SETS = ("drivers", "trained", "untrained", "pixels", "motion")


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Feature sets of the demo."""

    clock: ExtractConfig = field(default_factory=ExtractConfig)
    model: SourceConfig = field(default_factory=SourceConfig)
    pixels: SourceConfig = field(default_factory=SourceConfig)
    motion: SourceConfig = field(default_factory=SourceConfig)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of every stage; a recipe is a TOML file with a table for each."""

    play: PlayConfig = field(default_factory=PlayConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    vqvae: VQVAETrainConfig = field(default_factory=VQVAETrainConfig)
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    gpt: GPTTrainConfig = field(default_factory=GPTTrainConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    encode: EncodeConfig = field(default_factory=EncodeConfig)


def read_recipe(path: str | Path | None = None) -> Recipe:
    """Read a recipe; the demo's own by default.

    Raises
    ------
    ConfigError
        If it is missing, or a setting is unknown or impossible.
    """
    if path is None:
        path = Path(str(files("vidbrain") / "recipes" / "demo.toml"))
    return from_mapping(Recipe, read_toml(path), path)


def run_demo(
    root: str | Path, recipe: Recipe, *, client: Client | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Run every stage that is not done yet, write ``summary.json`` and ``report.html``, and return the summary.

    Parameters
    ----------
    root
        Data root of the demo.
    recipe
        Settings.
    client
        Runs recordings, runs and voxel blocks in parallel.
    progress
        Listener.

    Raises
    ------
    VidbrainError
        As the stage that failed says. What was finished stays.
    """
    client, root = client or Client(), Path(root)
    check_writable(root, 0 if (root / "summary.json").is_file() else N_BYTES)
    clock, at = _Clock(root / "stages.json"), Layout(root)
    report = ReportInputs.of(root)
    stages: dict[str, Callable[[], Any]] = {
        "play": lambda: play(at.game, recipe.play, client=client, progress=progress),
        "replay": lambda: replay(at.game, None, recipe.replay, client=client, progress=progress),
        "shard": lambda: write_shards(at.game, at.data, recipe.shard, client=client, progress=progress),
        "simulate": lambda: simulate(at.game, at.simulated, recipe.simulate, client=client, progress=progress),
        "ingest": lambda: ingest(at.simulated, at.bold, recipe.ingest, client=client, progress=progress),
        "vqvae": lambda: train_vqvae(at.data, at.vqvae, recipe.vqvae, progress=progress),
        "tokenize": lambda: tokenize(at.data, at.vqvae, at.codes, recipe.tokenize, progress=progress),
        "gpt": lambda: train_gpt(at.codes, at.gpt, recipe.gpt, progress=progress),
        "samples": lambda: write_samples(at.vqvae, at.gpt, at.data, at.samples, recipe.samples, progress=progress),
        "features": lambda: _features(at, recipe, client, progress),
        "encode": lambda: _encode(at, recipe, client, progress),
        "summary": lambda: write_json(root / "summary.json", summarise(root, clock.seconds)),
        "report": lambda: write_report(report, root / "report.html", progress=progress),
    }
    for number, (name, work) in enumerate(stages.items(), start=1):
        progress.note(f"[{number}/{len(stages)}] {name}")
        with clock.measure(name):
            work()
    summary = summarise(root, clock.seconds)
    write_json(root / "summary.json", summary)
    return summary


@dataclass(frozen=True)
class Layout:
    """Where things lie below the root."""

    root: Path

    @property
    def game(self) -> Path:
        """BIDS tree of game play."""
        return self.root / "game"

    @property
    def simulated(self) -> Path:
        """What a scanner and fMRIPrep would have written."""
        return self.game / "derivatives" / "simulated-fmriprep"

    @property
    def data(self) -> Path:
        """Shards."""
        return self.root / "data"

    @property
    def bold(self) -> Path:
        """BOLD store."""
        return self.root / "bold"

    @property
    def vqvae(self) -> Path:
        """Training of the VQ-VAE."""
        return self.root / "runs" / "vqvae"

    @property
    def gpt(self) -> Path:
        """Training of the GPT."""
        return self.root / "runs" / "gpt"

    @property
    def samples(self) -> Path:
        """Reconstructions and continuations."""
        return self.root / "runs" / "samples"

    @property
    def codes(self) -> Path:
        """Codes, in the layout of the shards."""
        return self.root / "codes"

    def features(self, name: str) -> Path:
        """A feature set."""
        return self.root / "features" / name

    def results(self, name: str) -> Path:
        """The encoding result of a feature set."""
        return self.root / "results" / name


def _features(at: Layout, recipe: Recipe, client: Client, progress: Progress) -> None:
    settings = recipe.features
    extract_drivers(at.simulated, at.features("drivers"), progress=progress)
    models: tuple[tuple[str, str, SourceConfig], ...] = (
        ("trained", "model", settings.model),
        ("untrained", "untrained", settings.model),
        ("pixels", "pixels", settings.pixels),
        ("motion", "motion", settings.motion),
    )
    for name, source, config in models:
        made = make_source(source, at.data, config, vqvae=at.vqvae, gpt=at.gpt)
        workers = Client() if made.in_process else client
        extract(made, at.data, at.features(name), settings.clock, client=workers, progress=progress)


def _encode(at: Layout, recipe: Recipe, client: Client, progress: Progress) -> None:
    bold = open_bold(at.bold)
    for name in SETS:
        # The planted drivers have been through the haemodynamic response already: no delays of their own.
        config = replace(recipe.encode, delays=(0,)) if name == "drivers" else recipe.encode
        features = open_features(at.features(name))
        result = fit_encoding(
            features, bold, config, at.results(name), layer=features.layers, client=client, progress=progress
        )
        write_maps(result, at.results(name) / "maps", desc=name)


def summarise(root: str | Path, wall_s: dict[str, float]) -> dict[str, Any]:
    """Gather the numbers of a finished demo from the records of its stages.

    Parameters
    ----------
    root
        Data root.
    wall_s
        Wall seconds by stage.
    """
    at = Layout(Path(root))
    data, codes = read_info(at.data, "shards", name=DATASET), read_info(at.codes, "codes", name=DATASET)
    vqvae, gpt = read_json(at.vqvae / "summary.json"), read_json(at.gpt / "summary.json")
    return {
        "vidbrain": __version__,
        "bold": "simulated",
        "frames": data["n_frames"],
        "recordings": data["n_recordings"],
        "shards": data["n_shards"],
        "segments": data["n_segments"],
        "shard_bytes": data["n_bytes"],
        "clips": codes["n_clips"],
        "vqvae": {
            "parameters": vqvae["n_parameters"],
            "steps": vqvae["steps"],
            "loss": _first_and_last(at.vqvae / "metrics.jsonl"),
            "psnr_db": vqvae["held_out"]["psnr"],
            "psnr_mean_frame_db": vqvae["held_out"]["psnr_mean_frame"],
            "psnr_gain_db": vqvae["held_out"]["psnr_gain"],
            "codes": vqvae["n_codes"],
            "codes_used": vqvae["held_out"]["active"],
            "perplexity": vqvae["held_out"]["perplexity"],
        },
        "gpt": {
            "parameters": gpt["n_parameters"],
            "steps": gpt["steps"],
            "loss": _first_and_last(at.gpt / "metrics.jsonl"),
            "unigram_entropy": gpt["unigram_entropy"],
            "unigram_loss": gpt["unigram_loss"],
        },
        "r": median_correlations(at),
        "wall_s": dict(wall_s),
    }


def _first_and_last(metrics: Path) -> dict[str, dict[str, float | None]]:
    """Losses after the first step and after the last, on training batches and on held-out recordings."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = {split: [row["loss"] for row in rows if row["split"] == split] for split in ("train", "val")}
    return {
        name: {"first": found[0] if found else None, "last": found[-1] if found else None}
        for name, found in (("train", losses["train"]), ("held_out", losses["val"]))
    }


def median_correlations(at: Layout) -> dict[str, Any]:
    """Median r on held-out runs by feature set and planted kind of voxel, beside the noise ceiling.

    Returns
    -------
    dict
        ``{kind: {"n_voxels": …, "ceiling": …, set: …}}``; the ceiling of noise voxels is null, for they carry nothing.
    """
    store = open_bold(at.bold)
    truth = open_truth(at.simulated).aligned(store)
    ceiling = measured_ceiling(truth, store)
    scores = {name: open_result(at.results(name)).dataset["r_mean"].values for name in SETS}
    table: dict[str, Any] = {}
    for code, kind in enumerate(KINDS):
        voxels = truth.kind == code
        table[kind] = {
            "n_voxels": int(voxels.sum()),
            "ceiling": None if kind == "noise" else float(np.median(ceiling[voxels])),
            **{name: float(np.median(r[voxels])) for name, r in scores.items()},
        }
    planted = truth.kind != list(KINDS).index("noise")
    table["planted"] = {
        "n_voxels": int(planted.sum()),
        "ceiling": float(np.median(ceiling[planted])),
        **{name: float(np.median(r[planted])) for name, r in scores.items()},
    }
    return table


class _Clock:
    """Wall seconds of the call that finished each stage; a stage that was found done keeps its earlier time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = read_json(path) if path.is_file() else {}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if name not in self.seconds:
            self.seconds[name] = round(time.perf_counter() - began, 2)
            write_json(self._path, self.seconds)
