"""The training loop, one for VQ-VAE and GPT: streams, steps, rows of numbers, checkpoints, exact resume.

A run is a function of its settings: batches are a function of (data, seed, epoch, batch) and chance a function of
(seed, rank, step), so that a killed run that is started again ends with the same weights, to the bit, on the same
machine with the same number of threads (which the checkpoint remembers). GPUs sum in varying order: there a resumed
run is as close to the undisturbed one as two undisturbed ones are to each other.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidbrain.cluster import available_cores
from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, ModelError, ResumeError
from vidbrain.models.gpt import GPT
from vidbrain.models.pretrained import save_pretrained
from vidbrain.models.vqvae import VQVAE
from vidbrain.progress import Progress
from vidbrain.records import World
from vidbrain.storage.atomic import check_writable, read_json, write_json
from vidbrain.storage.info import difference, is_done, write_info
from vidbrain.stream.loader import Loader
from vidbrain.training import precision
from vidbrain.training.checkpoint import Checkpoints, Metrics
from vidbrain.training.optim import adamw, lr_factor
from vidbrain.training.precision import PrecisionName
from vidbrain.training.world import any_process, joined, pick_device, reduced, wait_for_all

PLAN, SUMMARY = "training.json", "summary.json"


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training has."""

    steps: int = 20_000
    """Optimiser steps."""
    batch_size: int = 32
    """Clips in a step, over all processes."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; warm-up, then a cosine that ends with the steps."""
    warmup: int = 100
    """Steps of warm-up."""
    weight_decay: float = 0.01
    """Of AdamW, on matrices and kernels."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of AdamW."""
    clip_norm: float = 1.0
    """Longest gradient; 0 for no limit."""
    seed: int = 0
    """Of weights, order and chance."""
    precision: PrecisionName = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    log_every: int = 20
    """Steps between rows of training numbers."""
    eval_every: int = 1000
    """Steps between evaluations on held-out recordings; there is always one at the first and at the last step."""
    eval_clips: int = 512
    """Held-out clips of an evaluation, at most."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "eval_every", "eval_clips", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}", where=name)
        if self.lr <= 0 or self.warmup < 0 or self.clip_norm < 0 or self.weight_decay < 0:
            raise ConfigError("lr must be positive; warmup, clip_norm and weight_decay not negative", where="lr")


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
        """Its batches, this process's share of them."""

    @property
    def made_from(self) -> dict[str, str]:
        """Fingerprints of the inputs by name."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ANN401 -- loader's own
        """Loss of a batch by the (perhaps distributed) model, and scalars to log."""

    def interval(self) -> dict[str, float]:
        """Numbers gathered in the model since the last call."""

    def evaluate(self) -> dict[str, Any] | None:
        """Numbers on held-out recordings, with ``loss`` among them; None where nothing is held out."""

    def facts(self) -> dict[str, Any]:
        """What the summary says of the task, beyond losses."""


def train(
    task_of: Callable[[World, torch.device], Task], config: LoopConfig, out: Path, *, device: str, progress: Progress
) -> dict[str, Any]:
    """Train what ``task_of(world, device)`` makes, or finish what a killed call began.

    Returns
    -------
    dict
        The summary, as written to ``summary.json``.

    Raises
    ------
    ResumeError
        If the folder holds another training.
    ModelError
        If the loss is no longer a number, or a checkpoint is damaged.
    """
    out, place = Path(out), pick_device(device)
    arm = precision.resolve(config.precision, place)
    with joined() as world, _deterministic(place):
        torch.manual_seed(config.seed)
        task = task_of(world, place)
        settings = {k: v for k, v in to_mapping(config).items() if k != "checkpoint_every"}
        if is_done(out, task.kind, config=settings, made_from=task.made_from):
            return dict(read_json(out / SUMMARY))
        _claim(out, {"config": settings, "made_from": task.made_from}, world)
        run = _Run(task, config, out, world, place, arm, progress)
        with _Signals() as signals:
            run.go(signals)
        summary = run.summary()
        if world.rank == 0:
            save_pretrained(task.model, out)
            write_json(out / SUMMARY, summary)
            write_info(out, task.kind, config=settings, made_from=task.made_from)
        wait_for_all(world)
        return summary


def _claim(out: Path, claim: dict[str, Any], world: World) -> None:
    """Refuse a folder that holds another unfinished training."""
    if world.rank == 0:
        check_writable(out)
        # Here and not where each process resumes: the others would remove what the first is writing by then.
        Checkpoints(out).sweep()
    wait_for_all(world)
    path = out / PLAN
    if path.is_file():
        found = read_json(path)
        if found != claim:
            raise ResumeError(
                f"an unfinished training with other settings is there: "
                f"{difference(found, claim['config'], claim['made_from'])}",
                where=out,
                hint="give another output, or remove this one first",
            )
    elif world.rank == 0:
        write_json(path, claim)
    wait_for_all(world)


class _Run:
    """A training under way: what the loop changes from step to step."""

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        out: Path,
        world: World,
        device: torch.device,
        arm: precision.Precision,
        progress: Progress,
    ) -> None:
        self.task, self.config, self.world, self.device, self.arm = task, config, world, device, arm
        self.progress = progress
        self.checkpoints, self.metrics = Checkpoints(out), Metrics(out)
        self.step, self.seconds = 0, 0.0
        self.best: dict[str, Any] | None = None
        self.threads = available_cores()
        self.totals: dict[str, Tensor] = {}
        self.since = 0
        task.model.to(device).train()
        self.optimizer = adamw(task.model, lr=config.lr, weight_decay=config.weight_decay, betas=config.betas)
        self.scaler = arm.scaler()
        self._resume()
        torch.set_num_threads(self.threads)
        self.model: nn.Module = task.model
        if world.size > 1:
            # The codebook keeps itself equal in all processes; buffers need no broadcast.
            self.model = DistributedDataParallel(task.model, broadcast_buffers=False)

    def _resume(self) -> None:
        state = self.checkpoints.load_last(self.task.model)
        if state is not None:
            try:
                self.optimizer.load_state_dict(state["optimizer"])
                self.scaler.load_state_dict(state["scaler"])
                self.task.loader.load_state_dict(state["stream"])
                self.step, self.seconds, self.best = int(state["step"]), float(state["seconds"]), state["best"]
                self.totals = {name: value.to(self.device) for name, value in state["totals"].items()}
                self.since, self.threads = int(state["since"]), int(state["threads"])
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise ModelError(
                    f"the checkpoint lacks or mistypes {error}", where=self.checkpoints.root, hint="remove it"
                ) from error
        self.resumed_at = self.step
        if self.world.rank == 0:
            self.metrics.keep_until(self.step)

    def go(self, signals: _Signals) -> None:
        """Train to the last step; on a signal write a checkpoint and leave."""
        config, task = self.config, self.task
        self.progress.start(task.kind, config.steps, "steps", done=self.step)
        began = time.perf_counter() - self.seconds
        batches = _endless(task.loader)
        while self.step < config.steps:
            batch = next(batches)
            self._train_on(batch)
            self.step += 1
            self.seconds = time.perf_counter() - began
            last = self.step == config.steps
            if self.step == 1 or self.step % config.log_every == 0 or last:
                self._log()
            else:
                self.progress.advance(1)
            # Once at the start, for the end to be compared with: the first batch's own loss flatters, for the linear
            # start and the codebook are fitted to that batch.
            if self.step == 1 or self.step % config.eval_every == 0 or last:
                self._evaluate()
            stop = any_process(signals.received is not None, self.world)
            if self.step % config.checkpoint_every == 0 or last or stop:
                self._checkpoint()
            if stop and not last:
                batches.close()
                self.progress.note(f"{task.kind}: stopped by a signal at step {self.step}; the same command goes on")
                signals.leave()
        batches.close()
        self.progress.finish()

    def _train_on(self, batch: Any) -> None:  # noqa: ANN401 -- loader's own
        config = self.config
        torch.manual_seed(_chance(config.seed, self.world.rank, self.step))
        factor = lr_factor(self.step, steps=config.steps, warmup=config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        with self.arm.autocast():
            loss, numbers = self.task.loss(self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), config.clip_norm or float("inf"))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._count({"loss": loss.detach(), **numbers, "grad_norm": norm})

    def _count(self, numbers: Mapping[str, Tensor]) -> None:
        """Add up on the device; nothing waits for the GPU between rows."""
        first_bad = self.totals.get("first_bad", torch.zeros((), dtype=torch.int64, device=self.device))
        bad = ~torch.isfinite(numbers["loss"]) & (first_bad == 0)
        self.totals["first_bad"] = torch.where(bad, self.step + 1, first_bad)
        for name, value in numbers.items():
            self.totals[name] = self.totals.get(name, torch.zeros((), device=self.device)) + value.float()
        self.since += 1

    def _check(self) -> None:
        """Stop at a loss that is not a number, before it reaches a checkpoint."""
        if "first_bad" not in self.totals:
            return
        first_bad = int(reduced(self.totals["first_bad"], self.world, how="max"))
        if first_bad:
            raise self._diverged(first_bad)

    def _diverged(self, step: int) -> ModelError:
        return ModelError(
            f"the loss is not a finite number since step {step}",
            where=self.checkpoints.root,
            likely=f"a learning rate of {self.config.lr:g} is too high, or {self.arm.name} too coarse",
            hint="train afresh with a lower --lr, or with --precision fp32",
        )

    def _log(self) -> None:
        self._check()
        row: dict[str, Any] = {"step": self.step, "split": "train", "lr": self.optimizer.param_groups[0]["lr"]}
        # An overflow that the scaler skips leaves an infinite norm: null, not a number.
        n = self.since * self.world.size
        means = {k: float(reduced(v, self.world, how="sum")) / n for k, v in self.totals.items() if k != "first_bad"}
        row |= {k: v if abs(v) < float("inf") else None for k, v in means.items()}
        row |= self.task.interval()
        if self.scaler.is_enabled():
            row["loss_scale"] = self.scaler.get_scale()
        self.totals, self.since = {}, 0
        if self.world.rank == 0:
            self.metrics.append(row)
        stats = self.task.loader.stats()
        shown: dict[str, float | str] = {"loss": float(row["loss"])}
        if "active" in row:
            shown["codes used"] = f"{row['active']:.0%}"
        if self.step > self.resumed_at + 1:  # rates need two steps
            shown |= {"clips/s": round(stats["clips_per_s"] * self.world.size), "stall": f"{stats['stall_share']:.1%}"}
            # What a store and its cache do; data on a disk have nothing to say of it.
            counts = {name.replace("_", " "): stats[name] for name in ("cache_hits", "retries", "bad_clips")}
            shown |= {name: int(count) for name, count in counts.items() if count}
            if stats["n_bytes"]:
                shown["MB/s"] = round(stats["mb_per_s"] * self.world.size, 2)
        self.progress.advance(1, **shown)

    def _evaluate(self) -> None:
        if self.world.rank == 0:
            self.task.model.eval()
            with torch.no_grad(), self.arm.autocast():
                found = self.task.evaluate()
            self.task.model.train()
            if found is not None:
                if not math.isfinite(found["loss"]):  # the weights after this step, before a training batch tells
                    raise self._diverged(self.step + 1)
                self.metrics.append({"step": self.step, "split": "val", **found})
                if self.best is None or found["loss"] < self.best["loss"]:
                    self.best = {"step": self.step, "loss": found["loss"]}
                    self.checkpoints.save_best(self.task.model)
        wait_for_all(self.world)

    def _checkpoint(self) -> None:
        self._check()
        if self.world.rank == 0:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "stream": self.task.loader.state_dict(),
                "totals": self.totals,
                "since": self.since,
                "best": self.best,
                "seconds": self.seconds,
                "threads": self.threads,
            }
            self.checkpoints.save(self.step, self.task.model, state)
        wait_for_all(self.world)

    def summary(self) -> dict[str, Any]:
        """First and last losses, what was held out, and how fast it went."""
        rows = self.metrics.rows()
        trained = [row for row in rows if row["split"] == "train"]
        held_out = [row for row in rows if row["split"] == "val"]
        stats = self.task.loader.stats()
        return {
            "kind": self.task.kind,
            "steps": self.step,
            "clips_seen": self.step * self.config.batch_size,
            "epochs": self.task.loader.epoch,
            "loss_first": trained[0]["loss"] if trained else None,
            "loss_last": trained[-1]["loss"] if trained else None,
            "held_out": {k: v for k, v in held_out[-1].items() if k not in ("step", "split")} if held_out else None,
            "best": self.best,
            "n_parameters": sum(p.numel() for p in self.task.model.parameters()),
            **self.task.facts(),
            "precision": self.arm.name,
            "device": self.device.type,
            "threads": self.threads,
            "processes": self.world.size,
            "seconds": round(self.seconds, 2),
            "clips_per_s": round(stats["clips_per_s"] * self.world.size, 2),
            "stall_share": round(stats["stall_share"], 4),
        }


class _Signals:
    """Remembers SIGTERM, SIGUSR1 (a queue that wants the machine back) and SIGINT until the step is done."""

    _NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        with contextlib.suppress(ValueError):  # not the main thread: signals go elsewhere
            for name in self._NAMES:
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number

    def leave(self) -> None:
        """End the process as the signal would have: the checkpoint is written."""
        if self.received in (None, signal.SIGINT):
            raise KeyboardInterrupt
        raise SystemExit(128 + int(self.received or 0))


def _endless(loader: Loader[Any]) -> Generator[Any, None, None]:
    while True:
        yield from loader


def _chance(seed: int, rank: int, step: int) -> int:
    # Distinct for each (seed, rank, step) below 2^31 steps and 2^12 ranks.
    return (seed << 43 ^ rank << 31 ^ step) & (2**63 - 1)


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, refuse operations that sum in varying order; give the caller's settings back after."""
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    memory = torch.utils.deterministic  # a module with a property, which types do not know
    filled = memory.fill_uninitialized_memory  # type: ignore[attr-defined]  # see above
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # see above
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]  # see above
        torch.set_num_threads(threads)
