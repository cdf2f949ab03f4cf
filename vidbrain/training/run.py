"""A training under way: steps, rows of numbers, evaluations and checkpoints.

A step is one global batch on any device: each process takes its share in parts that fit in its memory, adds up their
gradients, each weighed by its clips, and steps once. Parts differ from the whole in rounding alone, but for batch norm,
which sees a part at a time, and dropout, which draws other masks.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidbrain.cluster import available_cores
from vidbrain.errors import ConfigError, ModelError
from vidbrain.progress import Progress
from vidbrain.records import World
from vidbrain.stream.loader import Loader
from vidbrain.training import precision
from vidbrain.training.checkpoint import Checkpoints, Metrics
from vidbrain.training.compiled import compiled
from vidbrain.training.cost import CostMeter, Room
from vidbrain.training.optim import adamw, lr_factor, set_lr
from vidbrain.training.settings import LoopConfig
from vidbrain.training.signals import Signals
from vidbrain.training.task import Task
from vidbrain.training.totals import Totals
from vidbrain.training.trackers import open_trackers
from vidbrain.training.world import any_process, united, wait_for_all

NAMED_CLIPS = 8
"""Clips that an error names at most."""


class Run:
    """What changes from step to step.

    Attributes
    ----------
    step
        Steps that are done.
    micro
        Clips that this process takes at a time.
    """

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        out: Path,
        world: World,
        device: torch.device,
        arm: precision.Precision,
        room: Room,
        progress: Progress,
    ) -> None:
        self._task, self._config, self._world, self._device, self._arm = task, config, world, device, arm
        self._progress = progress
        self._checkpoints, self._metrics = Checkpoints(out), Metrics(out)
        self.step, self._seconds = 0, 0.0
        self._best: dict[str, Any] | None = None
        self._threads = available_cores()
        self._totals = Totals(device, world)
        task.model.to(device).train()
        self._lr = config.lr
        self._optimizer = adamw(
            task.model,
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=config.betas,
            lr_scales=task.model.lr_scales(),
        )
        self._scaler = arm.scaler()
        before = self._resume()
        share = config.batch_size // world.size
        self.micro = room.micro_batch(share, asked=config.micro_batch_size, before=before)
        if self.micro < share:
            progress.note(f"{task.kind}: {share} clips of a step are taken {self.micro} at a time")
            if config.compile == "reduce-overhead":
                raise ConfigError(
                    "CUDA graphs take a step at once, not in parts",
                    where="compile",
                    hint="use --compile default, or a smaller --batch-size",
                )
        torch.set_num_threads(self._threads)
        whole: nn.Module = task.model
        self._distributed: DistributedDataParallel | None = None
        if world.size > 1:
            # The codebook keeps itself equal in all processes; buffers need no broadcast.
            whole = self._distributed = DistributedDataParallel(task.model, broadcast_buffers=False)
        self._model = compiled(whole, config.compile)
        first = world.rank == 0
        self._trackers = open_trackers(config.track, out, config.deciding(), step=self.step) if first else []

    def _resume(self) -> int | None:
        """Go on from the last checkpoint; return the clips that were taken at a time, for the same world."""
        state, before = self._checkpoints.load_last(self._task.model), None
        if state is not None:
            try:
                self._optimizer.load_state_dict(state["optimizer"])
                self._scaler.load_state_dict(state["scaler"])
                self._task.loader.load_state_dict(state["stream"])
                self._totals.load_state_dict(state["totals"])
                self.step, self._seconds, self._best = int(state["step"]), float(state["seconds"]), state["best"]
                self._threads = int(state["threads"])
                before = int(state["micro_batch_size"]) if int(state["processes"]) == self._world.size else None
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise ModelError(
                    f"the checkpoint lacks or mistypes {error}", where=self._checkpoints.root, hint="remove it"
                ) from error
        self._resumed_at = self.step
        if self._world.rank == 0:
            self._metrics.keep_until(self.step)
        return before

    def go(self, signals: Signals) -> None:
        """Train to the last step; on a signal write a checkpoint and leave."""
        config, task, progress = self._config, self._task, self._progress
        progress.start(task.kind, config.steps, "steps", done=self.step)
        began = time.perf_counter() - self._seconds
        batches = _endless(task.loader)
        while self.step < config.steps:
            batch = next(batches)
            self._train_on(batch)
            self.step += 1
            self._seconds = time.perf_counter() - began
            last = self.step == config.steps
            if self.step == 1 or self.step % config.log_every == 0 or last:
                self._log()
            else:
                progress.advance(1)
            # Once at the start, for the end to be compared with: the first batch's own loss flatters, for the linear
            # start and the codebook are fitted to that batch.
            if self.step == 1 or self.step % config.eval_every == 0 or last:
                self._evaluate()
            stop = any_process(signals.received is not None, self._world)
            if self.step % config.checkpoint_every == 0 or last or stop:
                self._checkpoint()
            if stop and not last:
                batches.close()
                progress.note(f"{task.kind}: stopped by a signal at step {self.step}; the same command goes on")
                signals.leave()
        batches.close()
        progress.finish()

    def close(self) -> None:
        """Let trackers write what they have not written yet."""
        for tracker in self._trackers:
            tracker.close()

    def _train_on(self, batch: Any) -> None:  # noqa: ANN401 -- loader's own
        config, share = self._config, len(batch.index)
        torch.manual_seed(_chance(config.seed, self._world.rank, self.step))
        self._lr = config.lr * lr_factor(self.step, steps=config.steps, warmup=config.warmup)
        set_lr(self._optimizer, self._lr)
        parts = [batch.part(slice(first, first + self.micro)) for first in range(0, share, self.micro)]
        if self.step == 0:
            with self._arm.autocast():
                self._task.begin(parts)
        if config.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        self._optimizer.zero_grad(set_to_none=True)
        numbers: dict[str, Tensor] = {}
        for k, part in enumerate(parts, 1):
            weight = len(part.index) / share
            with self._more_to_come() if k < len(parts) else contextlib.nullcontext():
                with self._arm.autocast():
                    loss, found = self._task.loss(self._model, part)
                self._scaler.scale(loss * weight).backward()
            for name, value in {"loss": loss.detach(), **found}.items():
                numbers[name] = numbers.get(name, torch.zeros((), device=self._device)) + weight * value
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._task.model.parameters(), config.clip_norm or float("inf"))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._totals.add(self.step + 1, {**numbers, "grad_norm": norm}, batch.index.tolist())

    @contextlib.contextmanager
    def _more_to_come(self) -> Iterator[None]:
        """For parts of a step before the last: processes exchange gradients, and codebooks learn, once a step."""
        alone = self._distributed.no_sync() if self._distributed else contextlib.nullcontext()
        with alone, self._task.more_to_come():
            yield

    def _check(self) -> None:
        """Stop at a loss that is not a number, before it reaches a checkpoint."""
        step = self._totals.first_bad()
        if step:
            raise self._diverged(f"the loss is not a finite number since step {step}", step)

    def _check_weights(self) -> None:
        """Stop at weights that are not numbers: the loss that made them may have been one. All processes ask."""
        bad = any(not value.isfinite().all() for value in self._task.model.state_dict().values())
        if any_process(bad, self._world):
            raise self._diverged(f"the weights are not finite numbers after step {self.step}", self.step)

    def _diverged(self, what: str, step: int) -> ModelError:
        """Name the clips of the step to blame; all processes ask."""
        clips, steps = self._totals.clips_of(step), self._checkpoints.steps()
        named = "; ".join(self._task.place_of(clip) for clip in clips[:NAMED_CLIPS])
        more = f"; and {len(clips) - NAMED_CLIPS} more" if len(clips) > NAMED_CLIPS else ""
        return ModelError(
            what + (f", on clips {named}{more}" if clips else ""),
            where=self._checkpoints.root,
            likely=f"a learning rate of {self._config.lr:g} is too high, or {self._arm.name} too coarse; "
            + (f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint before it"),
            hint="train afresh with a lower --lr, or with --precision fp32",
        )

    def _log(self) -> None:
        self._check()
        row: dict[str, Any] = {"step": self.step, "split": "train", "lr": self._lr}
        row |= self._totals.take()
        row |= self._task.interval()
        if self._scaler.is_enabled():
            row["loss_scale"] = self._scaler.get_scale()
        self._tell(row)
        self._progress.advance(1, **self._shown(row))

    def _tell(self, row: dict[str, Any]) -> None:
        if self._world.rank == 0:
            self._metrics.append(row)
        for tracker in self._trackers:
            tracker.add(row)

    def _shown(self, row: dict[str, Any]) -> dict[str, float | str]:
        """What the line of progress says beside steps."""
        shown: dict[str, float | str] = {"loss": float(row["loss"])}
        if "active" in row:
            shown["codes used"] = f"{row['active']:.0%}"
        if self.step > self._resumed_at + 1:  # rates need two steps
            stats, size = self._task.loader.stats(), self._world.size
            shown |= {"clips/s": round(stats["clips_per_s"] * size), "stall": f"{stats['stall_share']:.1%}"}
            # What a store and its cache do; data on a disk have nothing to say of it.
            counts = {name.replace("_", " "): stats[name] for name in ("cache_hits", "retries", "bad_clips")}
            shown |= {name: int(count) for name, count in counts.items() if count}
            if stats["n_bytes"]:
                shown["MB/s"] = round(stats["mb_per_s"] * size, 2)
        return shown

    def _evaluate(self) -> None:
        self._check()
        self._check_weights()
        found = None
        if self._world.rank == 0:
            self._task.model.eval()
            with torch.no_grad(), self._arm.autocast():
                found = self._task.evaluate()
            self._task.model.train()
        # The weights after this step, before a training batch tells.
        if any_process(found is not None and not math.isfinite(found["loss"]), self._world):
            raise self._diverged(f"the held-out loss is not a finite number after step {self.step}", self.step)
        if found is not None:
            self._tell({"step": self.step, "split": "val", **found})
            if self._best is None or found["loss"] < self._best["loss"]:
                self._best = {"step": self.step, "loss": found["loss"]}
                self._checkpoints.save_best(self._task.model)
        wait_for_all(self._world)

    def _checkpoint(self) -> None:
        self._check()
        self._check_weights()
        # Each process met bad clips of its own.
        bad_clips = united(self._task.loader.bad_clips, self._world)
        if self._world.rank == 0:
            state = {
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "stream": {**self._task.loader.state_dict(), "quarantine": bad_clips},
                "totals": self._totals.state_dict(),
                "best": self._best,
                "seconds": self._seconds,
                "threads": self._threads,
                "micro_batch_size": self.micro,
                "processes": self._world.size,
            }
            self._checkpoints.save(self.step, self._task.model, state)
        wait_for_all(self._world)

    def cost(self, meter: CostMeter) -> dict[str, Any]:
        """What this call cost, over all processes; energy and memory are this process's."""
        stats = self._task.loader.stats()
        return meter.report(
            clips=(self.step - self._resumed_at) * self._config.batch_size,
            clips_per_s=stats["clips_per_s"] * self._world.size,
            stall_share=stats["stall_share"],
            processes=self._world.size,
        )

    def summary(self) -> dict[str, Any]:
        """First and last losses, what was held out, and how fast it went; all processes ask."""
        rows = self._metrics.rows()
        trained = [row for row in rows if row["split"] == "train"]
        held_out = [row for row in rows if row["split"] == "val"]
        stats = self._task.loader.stats()
        return {
            "kind": self._task.kind,
            "steps": self.step,
            "clips_seen": self.step * self._config.batch_size,
            "epochs": self._task.loader.epoch,
            "bad_clips": len(united(self._task.loader.bad_clips, self._world)),
            "loss_first": trained[0]["loss"] if trained else None,
            "loss_last": trained[-1]["loss"] if trained else None,
            "held_out": {k: v for k, v in held_out[-1].items() if k not in ("step", "split")} if held_out else None,
            "best": self._best,
            "n_parameters": sum(p.numel() for p in self._task.model.parameters()),
            **self._task.facts(),
            "precision": self._arm.name,
            "device": self._device.type,
            "compile": self._config.compile,
            "threads": self._threads,
            "processes": self._world.size,
            "micro_batch_size": self.micro,
            "seconds": round(self._seconds, 2),
            "clips_per_s": round(stats["clips_per_s"] * self._world.size, 2),
            "stall_share": round(stats["stall_share"], 4),
        }


def _endless(loader: Loader[Any]) -> Generator[Any, None, None]:
    while True:
        yield from loader


def _chance(seed: int, rank: int, step: int) -> int:
    # Distinct for each (seed, rank, step) below 2^31 steps and 2^12 ranks.
    return (seed << 43 ^ rank << 31 ^ step) & (2**63 - 1)
