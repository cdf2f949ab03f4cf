"""``vidbrain doctor``: what this machine has, and what would fail on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from vidbrain.cli.console import Console, Flag
from vidbrain.cluster import available_cores
from vidbrain.storage.roots import data_root

GAME = "Airstriker-Genesis-v0"
DEMO_BYTES = 2 * 10**9
DEMO_MEMORY = 4 * 10**9


def doctor(*, data: Path | None = None, url: str | None = None, json: Flag = False) -> None:
    """Say what this machine has, and what would fail on it.

    Example: `vidbrain doctor --json`

    Parameters
    ----------
    data
        Data root whose disk is looked at; default $VIDBRAIN_DATA, else ./shards.
    url
        A place in object storage that is asked, for instance s3://bucket/bold.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    root = data_root(data)
    checks = [*machine(root), *accelerator(), *blas(), *codecs(), *emulator(), *optional()]
    if url is not None:
        checks += storage(url)
    problems = [f"{c['what']}: {c['problem']}" for c in checks if c.get("problem")]
    if json:
        console.print_result({"checks": checks, "problems": problems})
        return
    console.print_rows([{"": "✗" if c.get("problem") else "✓", "what": c["what"], "found": c["found"]} for c in checks])
    for problem in problems:
        console.note(f"problem  {problem}")
    if not problems:
        console.note("nothing here would stop `vidbrain demo`")


def check(what: str, found: object, problem: str | None = None) -> dict[str, Any]:
    """One line of the diagnosis."""
    return {"what": what, "found": str(found), "problem": problem}


def machine(root: Path) -> list[dict[str, Any]]:
    """Python, cores, memory and disk."""
    cores = available_cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    existing = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    old = sys.version_info < (3, 11)
    return [
        check("python", platform.python_version(), "needs 3.11 or newer" if old else None),
        check("platform", f"{platform.system()} {platform.machine()}"),
        check("cores", cores),
        check(
            "memory free",
            f"{memory / 1e9:.1f} GB",
            f"the demo may take {DEMO_MEMORY / 1e9:.0f} GB" if memory < DEMO_MEMORY else None,
        ),
        check(
            "disk free",
            f"{free / 1e9:.1f} GB at {existing}",
            f"the demo writes up to {DEMO_BYTES / 1e9:.0f} GB" if free < DEMO_BYTES else None,
        ),
        check("data root", root, None if writable else "cannot be written: give --data or set $VIDBRAIN_DATA"),
    ]


def accelerator() -> list[dict[str, Any]]:
    """Torch and its device."""
    try:
        import torch
    except ImportError as error:
        return [check("torch", "missing", f"training and features need it: {error}")]
    if not torch.cuda.is_available():
        return [check("torch", torch.__version__), check("gpu", "none; everything runs on the CPU")]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [check("torch", torch.__version__), check("gpu", ", ".join(names))]


def blas() -> list[dict[str, Any]]:
    """Threads of the linear algebra libraries in this process."""
    import numpy  # noqa: F401 -- loads the library that is asked about
    from threadpoolctl import threadpool_info

    rows = []
    for library in threadpool_info():
        version = library["version"] or "version unknown"
        rows.append(check(f"threads: {library['internal_api']}", f"{library['num_threads']} ({version})"))
    return rows


def codecs() -> list[dict[str, Any]]:
    """Libraries that decode and encode video."""
    import av

    writer = "libx264" in av.codecs_available
    rows = [
        check("PyAV", f"{av.__version__}, bundles its FFmpeg", None if writer else "it cannot write H.264 (libx264)")
    ]
    decord = importlib.util.find_spec("decord") is not None
    rows.append(check("decord", "found; PyAV decodes unless it is asked for" if decord else "absent; PyAV decodes"))
    return rows


def emulator() -> list[dict[str, Any]]:
    """The emulator and the ROM that the demo plays."""
    if importlib.util.find_spec("stable_retro") is None:
        return [check("stable-retro", "missing", "play, replay and demo need it: pip install 'vidbrain[retro]'")]
    from vidbrain.errors import VidbrainError
    from vidbrain.video.emulator import Emulator

    version = importlib.metadata.version("stable-retro")
    try:
        with Emulator(GAME) as console:
            height, width = console.screen().shape[:2]
    except VidbrainError as error:
        return [check("stable-retro", version), check("game", GAME, error.message)]
    return [check("stable-retro", version), check("game", f"{GAME} starts, {width} by {height} pixels")]


def optional() -> list[dict[str, Any]]:
    """Extras that only some users need."""
    needs = {
        "dask-jobqueue": ("dask_jobqueue", "--scheduler slurm"),
        "vizdoom": ("vizdoom", "`vidbrain play` of freedoom1 and freedoom2"),
    }
    return [
        check(name, "found" if importlib.util.find_spec(module) else f"absent; only {user} needs it")
        for name, (module, user) in needs.items()
    ]


def storage(url: str) -> list[dict[str, Any]]:
    """Whether a place in object storage answers, and what is there."""
    from vidbrain.errors import VidbrainError
    from vidbrain.storage.objects import open_root
    from vidbrain.storage.trees import find_record

    try:
        root = open_root(url)
        name = find_record(root)
    except VidbrainError as error:
        return [check("storage", "no", f"{error.message}" + (f"; {error.hint}" if error.hint else ""))]
    return [check("storage", f"{root} answers; " + (f"it holds {name}" if name else "no artefact is there"))]
