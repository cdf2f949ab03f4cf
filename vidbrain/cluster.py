"""The one door to Dask: plain functions over plain rows, here, on a few processes, or on a cluster.

Callers see no Dask type. `run` yields results as they finish; a worker that dies is replaced and its rows are run
again, which is harmless because every row writes under a temporary name and renames.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from vidbrain.errors import ConfigError, MissingExtraError, VidbrainError

Row = TypeVar("Row")
Result = TypeVar("Result")


WORKER_ENVIRONMENT = {
    # Dask tells malloc to give memory back at every chance; video frames and matrices are then page-faulted in anew
    # each time, which doubled the cost of replaying a frame.
    "MALLOC_TRIM_THRESHOLD_": 1 << 28,
    "MALLOC_MMAP_THRESHOLD_": 1 << 28,
    # Workers share the cores, so each has one thread.
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
    # A worker reads this when it imports Dask; what fails in a row comes home as an error, once, not as a log.
    "DASK_LOGGING__DISTRIBUTED": "critical",
}


@dataclass(frozen=True)
class Client:
    """Runs a function over rows. `n_workers` 0 means: in this process, in order."""

    n_workers: int = 0
    _distributed: Any = None
    is_here: bool = True
    """Whether the workers are on this machine, whose memory and devices can be asked before work starts."""

    def run(
        self, function: Callable[[Row], Result], rows: Sequence[Row], *, weight: Callable[[Row], float] | None = None
    ) -> Iterator[tuple[int, Result]]:
        """Yield ``(position, result)`` for every row as it finishes.

        Parameters
        ----------
        function
            A module-level function (it travels by name); repeatable, because a row may run twice.
        rows
            Its arguments. They are pickled: pass names and small records, not arrays.
        weight
            Heavier rows start first, which shortens the tail.

        Raises
        ------
        VidbrainError
            The first error of a row, as the function raised it. Rows not yet begun are cancelled.
        """
        order = sorted(range(len(rows)), key=lambda i: -weight(rows[i])) if weight else list(range(len(rows)))
        if self._distributed is None:
            for position in order:
                yield position, function(rows[position])
            return
        from distributed import as_completed

        # pure=False: a row that must run again because its file is gone is not answered from Dask's memory.
        futures = {
            self._distributed.submit(_call, function, rows[position], pure=False, retries=0): position
            for position in order
        }
        try:
            for future in as_completed(list(futures), loop=self._distributed.loop):
                if future.status == "error":
                    error = future.exception()
                    raise _worker_error(error) from error
                result = future.result()
                if isinstance(result, _Failure):
                    raise result.error from _RemoteError(result.trace)
                yield futures[future], result
                future.release()
        finally:
            # A scheduler that answers late must not put its own error in the place of an interrupt or of a row's.
            with contextlib.suppress(TimeoutError, OSError):
                self._distributed.cancel(list(futures))


@dataclass(frozen=True)
class _Failure:
    """What a row raised: home as a value, for not every exception survives the way as one (PyAV's do not)."""

    error: VidbrainError
    trace: str


class _RemoteError(Exception):
    """Shows the traceback of a worker under ``--debug``."""

    def __str__(self) -> str:
        return f"in the worker:\n{self.args[0]}"


def _call(function: Callable[[Row], Result], row: Row) -> Result | _Failure:
    try:
        return function(row)
    except VidbrainError as error:
        return _Failure(error.with_traceback(None), traceback.format_exc())
    except Exception as error:
        return _Failure(_worker_error(error), traceback.format_exc())


def _worker_error(error: BaseException) -> VidbrainError:
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        return VidbrainError(
            "a worker process died several times on the same piece of work",
            likely="it ran out of memory, or a library crashed on the input",
            hint="give the same command with --workers 1, or more memory",
        )
    return VidbrainError(
        f"a worker failed: {type(error).__name__}: {error}", hint="give the command again with --debug"
    )


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def client(scheduler: str = "local", n_workers: int | None = None) -> Iterator[Client]:
    """Open a client for the duration of the block.

    Parameters
    ----------
    scheduler
        ``"local"`` (processes on this machine), ``"inline"`` (this process), ``"tcp://host:port"`` (a running Dask
        scheduler), or ``"slurm"`` (needs the extra ``[slurm]``; jobs are shaped by Dask's own jobqueue settings).
    n_workers
        Processes; default one per core that this process may use. 0 runs inline.

    Raises
    ------
    ConfigError
        For an unknown scheduler.
    """
    if scheduler == "inline" or n_workers == 0:
        yield Client()
        return
    count = n_workers or available_cores()
    if scheduler == "local" and count == 1:
        yield Client()
        return
    if not (scheduler in ("local", "slurm") or "://" in scheduler):
        raise ConfigError(f"unknown scheduler {scheduler!r}", hint="use local, inline, slurm or tcp://host:port")

    import dask
    import distributed

    settings = {
        "distributed.comm.timeouts.connect": "60s",
        "distributed.worker.daemon": False,  # a row may start processes of its own
        "distributed.admin.log-format": "%(levelname)s %(message)s",
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    }
    # Dask's configuration of its logs is read at its import, which is over.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        if scheduler == "local":
            with _interrupts_held():
                cluster = stack.enter_context(
                    distributed.LocalCluster(
                        n_workers=count,
                        threads_per_worker=1,
                        processes=True,
                        dashboard_address="127.0.0.1:0",
                        memory_limit=0,
                        host="127.0.0.1",
                        silence_logs=logging.CRITICAL,  # its own default is WARNING: "still alive, killing"
                    )
                )
            address = cluster
        elif scheduler == "slurm":
            try:
                from dask_jobqueue import SLURMCluster
            except ImportError:
                raise MissingExtraError(
                    "--scheduler slurm needs dask-jobqueue", hint="pip install 'vidbrain[slurm]'"
                ) from None
            address = stack.enter_context(SLURMCluster())
            address.scale(count)
        else:
            address = scheduler
        inside = stack.enter_context(distributed.Client(address, set_as_default=False))
        yield Client(count, inside, is_here=scheduler == "local")


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C in every thread and process started inside; one that comes meanwhile is delivered at the end.

    A terminal sends it to the whole group. Only this process may answer it: it ends the workers, which would each print
    a traceback. They inherit the mask from the threads that start them, also when they replace a dead one.
    """
    # Started now, because its start unblocks the signal in the thread that causes it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
