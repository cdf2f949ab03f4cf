"""Whole artefacts to and from a URL: data first, the root record last, resumable anywhere between.

Both directions claim their place first, by an object that holds the root record to come. So the same command goes on
where it was stopped, and another artefact is refused before a byte of it is mixed in. The claim goes when all is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from vidbrain.errors import ResumeError, StorageError
from vidbrain.progress import SILENT, Progress
from vidbrain.storage.atomic import PART, as_storage_error, check_writable, sweep, write_bytes
from vidbrain.storage.files import Found, ObjectExistsError, ObjectMissingError
from vidbrain.storage.info import INFO
from vidbrain.storage.locks import LOCK
from vidbrain.storage.objects import N_THREADS, Root, open_root
from vidbrain.storage.transfers import download, holds, sums_of, upload
from vidbrain.storage.urls import check_key

RECORDS = ("dataset.json", INFO)
"""Names of root records: of shards and codes, and of everything else."""
CLAIM = "transfer.json"
"""Says what artefact is on its way here."""

UNFINISHED = (LOCK, "spool", "skipped.json")
"""What lies beside a data set of shards while it grows, and is none of it."""


@dataclass(frozen=True)
class Transfer:
    """What a transfer did, or would do.

    Attributes
    ----------
    kind, fingerprint
        Of the artefact.
    n_objects, n_bytes
        All of it.
    n_sent, n_bytes_sent
        What was not there yet.
    """

    kind: str
    fingerprint: str
    n_objects: int
    n_bytes: int
    n_sent: int
    n_bytes_sent: int


def upload_tree(folder: str | Path, url: str | Root, *, progress: Progress = SILENT, dry_run: bool = False) -> Transfer:
    """Copy a finished artefact to a URL, or finish what a killed call began.

    Parameters
    ----------
    folder
        The artefact's folder, with its root record.
    url
        Where to; nothing, the same artefact, or a part of it may be there.
    progress
        A listener; units are objects.
    dry_run
        Write nothing; compare and count.

    Raises
    ------
    StorageError
        If the artefact is unfinished, or the place holds other objects, cannot be written, or does not hold afterwards
        what was sent.
    ResumeError
        If another artefact, or a part of one, is there.
    """
    folder, root = Path(folder), open_root(url)
    if root.is_read_only:
        raise StorageError("a web server is read only", where=root, hint="push to s3, gs, az or a path")
    name, record = _local_record(folder)
    keys = _in_commit_order(_local_keys(folder), name)
    there = _check_place(root, name, record, [*keys, CLAIM])
    facts = _facts(record)
    sizes = {key: (folder / key).stat().st_size for key in keys}
    if not dry_run:
        if name not in there:
            _claim(root, record)
        progress.start("push", len(keys), "objects")

    def send(key: str) -> bool:
        sums = sums_of(folder / key)
        if key in there and holds(root, there[key], sums):
            return False
        if not dry_run:
            upload(root, key, folder / key, sums=sums)
        return True

    sent = _in_steps(send, _steps(keys, name), sizes, SILENT if dry_run else progress)
    if not dry_run:
        root.delete(CLAIM)
        progress.finish()
    return Transfer(*facts, len(keys), sum(sizes.values()), len(sent), sum(sizes[key] for key in sent))


def download_tree(
    url: str | Root, folder: str | Path, *, progress: Progress = SILENT, dry_run: bool = False
) -> Transfer:
    """Copy a finished artefact from a URL into a folder, or finish what a killed call began.

    Parameters
    ----------
    url
        The artefact's root.
    folder
        Where to; nothing, the same artefact, or a part of it may be there.
    progress
        A listener; units are objects.
    dry_run
        Write nothing; compare and count.

    Raises
    ------
    StorageError
        If there is no finished artefact, or the folder holds other files, cannot be written or is too small.
    ResumeError
        If another artefact, or a part of one, is there.
    """
    root, folder = open_root(url), Path(folder)
    name, record = _remote_record(root)
    found = {item.key: item for item in root.list() if item.key != CLAIM}
    keys = _in_commit_order(found, name)
    for key in keys:
        check_key(key)
    local = open_root(folder)
    there = _check_place(local, name, record, [*keys, CLAIM]) if folder.is_dir() else {}
    if not dry_run:
        missing = sum(item.n_bytes for key, item in found.items() if key not in there)
        check_writable(folder, missing)
        for parent in {(folder / key).parent for key in keys}:
            sweep(parent)
        if name not in there:
            _claim(local, record)
        progress.start("pull", len(keys), "objects")

    def fetch(key: str) -> bool:
        path = folder / key
        if key in there and there[key].n_bytes == found[key].n_bytes and holds(root, found[key], sums_of(path)):
            return False
        if not dry_run:
            if key == name:
                write_bytes(path, record)
            else:
                download(root, key, path, n_bytes=found[key].n_bytes)
        return True

    sizes = {key: found[key].n_bytes for key in keys}
    sent = _in_steps(fetch, _steps(keys, name), sizes, SILENT if dry_run else progress)
    if not dry_run:
        local.delete(CLAIM)
        progress.finish()
    return Transfer(*_facts(record), len(keys), sum(sizes.values()), len(sent), sum(sizes[key] for key in sent))


def _local_record(folder: Path) -> tuple[str, bytes]:
    for name in RECORDS:
        if (folder / name).is_file():
            if (folder / CLAIM).exists():
                raise StorageError("this folder is being pulled", where=folder, hint="give the pull command again")
            try:
                return name, (folder / name).read_bytes()
            except OSError as error:
                raise as_storage_error(error, folder / name) from error
    raise StorageError(
        "there is no finished artefact: no root record" if folder.is_dir() else "there is no such folder",
        where=folder,
        likely=f"it holds several artefacts, or is unfinished; a root record is {' or '.join(RECORDS)}",
        hint="push each artefact by itself",
    )


def find_record(root: Root) -> str | None:
    """Name of the root record of a place, or None where there is no finished artefact.

    Raises
    ------
    StorageError
        If the place cannot be read.
    """
    for name in RECORDS:
        try:
            root.get(name)
        except ObjectMissingError:
            continue
        return name
    return None


def _remote_record(root: Root) -> tuple[str, bytes]:
    name = find_record(root)
    if name is not None:
        return name, root.get(name)
    raise StorageError(
        "there is no finished artefact: no root record",
        where=root,
        likely="the URL is not that of one artefact, or its push is unfinished",
        hint="check the URL, or give the push command again",
    )


def _facts(record: bytes) -> tuple[str, str]:
    try:
        values = json.loads(record)
        return str(values["vidbrain"]), str(values["fingerprint"])
    except (ValueError, KeyError, TypeError):
        raise StorageError("the root record is damaged", hint="make the artefact again") from None


def _local_keys(folder: Path) -> list[str]:
    keys = []
    for place, folders, names in os.walk(folder):
        passed = UNFINISHED if Path(place) == folder else ()
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        if linked:
            raise StorageError(
                f"a folder of the artefact is a link: {linked[0]}", where=place, hint="put the folder itself there"
            )
        folders[:] = sorted(name for name in folders if PART not in name and name not in passed)
        names = [name for name in names if PART not in name and name not in passed]
        keys += [(Path(place) / name).relative_to(folder).as_posix() for name in names]
    return [check_key(key) for key in keys]


def _in_commit_order(keys: Sequence[str] | dict[str, Found], record: str) -> list[str]:
    """Data, then what says that data are whole (markers, Zarr's metadata), then the root record."""
    return sorted(keys, key=lambda key: (_step(key, record), key))


def _step(key: str, record: str) -> int:
    return 2 if key == record else 1 if key.endswith(".json") else 0


def _steps(keys: Sequence[str], record: str) -> Iterator[list[str]]:
    for step in range(3):
        yield [key for key in keys if _step(key, record) == step]


def _check_place(root: Root, name: str, record: bytes, expected: Sequence[str]) -> dict[str, Found]:
    """Give what is there of this artefact; refuse anything else."""
    there = {item.key: item for item in root.list()}
    for other in (CLAIM, *RECORDS):
        if other in there and not (root.get(other) == record and other in (CLAIM, name)):
            raise ResumeError(
                "another artefact, or a part of one, is there",
                where=f"{root}/{other}",
                hint="give another place, or remove that one first",
            )
    foreign = sorted(set(there) - set(expected))
    claimed = CLAIM in there or name in there
    if foreign or (there and not claimed):
        shown = (foreign or sorted(there))[:3]
        raise StorageError(
            f"the place is not empty: {', '.join(shown)}",
            where=root,
            likely="it holds something else",
            hint="give an empty place",
        )
    there.pop(CLAIM, None)
    return there


def _claim(root: Root, record: bytes) -> None:
    try:
        root.put(CLAIM, record, if_absent=True)
    except ObjectExistsError:
        raise ResumeError(
            "another artefact is on its way there", where=root, hint="give another place, or wait"
        ) from None


def _in_steps(
    work: Callable[[str], bool], steps: Iterator[list[str]], sizes: dict[str, int], progress: Progress
) -> list[str]:
    """Run each step side by side, and wait for its end before the next; return the keys that were sent."""
    sent: list[str] = []
    n_bytes = 0
    for step in steps:
        with ThreadPoolExecutor(N_THREADS) as pool:
            running = {pool.submit(work, key): key for key in step}
            try:
                while running:
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        key = running.pop(done)
                        if done.result():
                            sent.append(key)
                            n_bytes += sizes[key]
                        progress.advance(1, MB=n_bytes / 1e6)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return sent
