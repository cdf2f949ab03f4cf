"""Trainings of VQ-VAE and GPT, by one loop: begun, gone on with where a killed call ended, and recorded.

A run is a function of its settings: batches are a function of (data, seed, epoch, batch) and chance a function of
(seed, rank, step), so that a killed run that is started again ends with the same weights, to the bit, on the same
machine with the same number of threads (which the checkpoint remembers). GPUs sum in varying order: there a resumed
run is as close to the undisturbed one as two undisturbed ones are to each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vidbrain.errors import ResumeError, StorageError
from vidbrain.models.pretrained import save_pretrained
from vidbrain.progress import Progress
from vidbrain.records import World
from vidbrain.storage.atomic import check_writable, read_json, write_json
from vidbrain.storage.info import difference, is_done, write_info
from vidbrain.storage.locks import locked, sweep_lock
from vidbrain.training import compiled, precision, trackers
from vidbrain.training.checkpoint import Checkpoints
from vidbrain.training.cost import CostMeter, ran_out, room_of
from vidbrain.training.run import Run
from vidbrain.training.settings import LoopConfig
from vidbrain.training.signals import Signals
from vidbrain.training.task import Task
from vidbrain.training.world import any_process, joined, pick_device, smallest, wait_for_all

PLAN, SUMMARY = "training.json", "summary.json"


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
    ConfigError, MissingExtraError
        For what this machine or installation cannot do.
    ResumeError
        If the folder holds another training.
    StorageError
        If another process writes there, or the folder cannot be written.
    ModelError
        If it does not fit in memory, the loss is no longer a number, or a checkpoint is damaged.
    """
    out, place = Path(out), pick_device(device)
    arm = precision.resolve(config.precision, place)
    trackers.check(config.track)
    with joined() as world, _deterministic(place), arm.products():
        torch.manual_seed(config.seed)
        task = task_of(world, place)
        settings = config.deciding()
        if is_done(out, task.kind, config=settings, made_from=task.made_from):
            if world.rank == 0:
                sweep_lock(out)
            return dict(read_json(out / SUMMARY))
        compiled.check(config.compile, place)
        arm_error, clip = precision.self_test(arm), task.clip_cost()
        room = room_of(place, sum(p.numel() for p in task.model.parameters()), clip)
        room = replace(room, free_bytes=smallest(room.free_bytes, world))
        room.micro_batch(config.batch_size // world.size, asked=config.micro_batch_size)  # refuses, before any file
        meter = CostMeter(place, arm.name, clip)
        with contextlib.ExitStack() as held:
            held.enter_context(_one_writer(out, world))
            _claim(out, {"config": settings, "made_from": task.made_from}, world)
            run = held.enter_context(contextlib.closing(Run(task, config, out, world, place, arm, room, progress)))
            try:
                with Signals() as signals:
                    run.go(signals)
            except RuntimeError as error:
                if ran_out(error):
                    raise room.error(f"memory ran out at step {run.step + 1}", fewer_than=run.micro) from error
                refused = compiled.compile_error(error) if config.compile != "off" else None
                if refused is not None:
                    raise refused from error
                raise
            summary = {**run.summary(), "precision_error": arm_error, "cost": run.cost(meter)}
            if world.rank == 0:
                save_pretrained(task.model, out)
                write_json(out / SUMMARY, summary)
                write_info(out, task.kind, config=settings, made_from=task.made_from)
            wait_for_all(world)
            return summary


@contextlib.contextmanager
def _one_writer(out: Path, world: World) -> Iterator[None]:
    """Let the first process hold the folder, for all of them; where it cannot, all refuse."""
    with contextlib.ExitStack() as held:
        refused: StorageError | None = None
        if world.rank == 0:
            try:
                check_writable(out)
                held.enter_context(locked(out))
            except StorageError as error:
                refused = error
        if any_process(refused is not None, world):
            raise refused or StorageError("the first process cannot write here: see its own error", where=out)
        yield


def _claim(out: Path, claim: dict[str, Any], world: World) -> None:
    """Refuse a folder that holds another unfinished training."""
    if world.rank == 0:
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
