"""Where a data set is written: a folder, or a URL and a folder on this machine in which its tars are made.

At a URL a tar is sent when it is whole here, and compared with what the store then holds; its marker follows, and the
local copy goes. What a store holds under a name is never replaced by something else: an equal object is done, another
one is an error. So any number of machines may work on one plan, and whatever they do twice gives the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vidbrain.errors import ConfigError, ResumeError, StorageError
from vidbrain.sharding.claims import PLAN, SKIPPED, Claim, read_claim, write_claim, write_skipped
from vidbrain.sharding.index import INDEX
from vidbrain.sharding.manifest import SHARDS, SPOOL, DamagedMarkerError, Marker, read_marker
from vidbrain.sharding.plan import Plan
from vidbrain.sharding.record import ShardFacts
from vidbrain.sharding.spooled import clear_spool, is_spool
from vidbrain.storage.atomic import as_storage_error, remove, sweep
from vidbrain.storage.files import Found, ObjectMissingError
from vidbrain.storage.locks import LOCK, locked
from vidbrain.storage.objects import N_THREADS, Root, open_root
from vidbrain.storage.transfers import is_held, put_checked, sums_of, upload
from vidbrain.storage.urls import parse_url


@dataclass(frozen=True)
class Target:
    """Where a data set is written. It pickles: workers send what they have made.

    Attributes
    ----------
    root
        The data set's folder or URL.
    work
        The folder in which spool and tars are made: of a folder that folder itself.
    """

    root: Root
    work: Path

    @property
    def is_remote(self) -> bool:
        """Whether what is made here must be sent."""
        return not self.root.is_local

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Be the only writer of this machine for the duration of the block; see `vidbrain.storage.locks.locked`.

        A work folder that is empty at the end goes.
        """
        try:
            with locked(self.work) as alone:
                yield alone
        finally:
            if self.is_remote:
                with contextlib.suppress(OSError):  # it is not empty, or another command has begun
                    self.work.rmdir()

    def begin(self, claim: Claim) -> None:
        """Make the folders, and remove what killed work left in them; what was spooled for another plan goes too."""
        if self.is_remote:
            remove(self.work / SHARDS)
            if not self._worked_for(claim):
                self.forget()
                write_claim(open_root(self.work), claim)
        for folder in (self.work, self.work / SHARDS, self.work / SPOOL):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise StorageError(
                    "a file, or a link that leads nowhere, stands where a folder belongs",
                    where=folder,
                    hint="move it away, then give the command again",
                ) from None
            except OSError as error:
                raise as_storage_error(error, folder) from error
            sweep(folder)

    def forget(self) -> None:
        """Remove what is spooled in a work folder, and the record that says of which plan."""
        clear_spool(self.work / SPOOL)
        remove(self.work / PLAN)

    def is_worked_on(self) -> bool:
        """Whether something is left that `tidy` removes, or was when a process was killed."""
        if self.is_remote:
            return self.work.is_dir() or self.root.exists(SKIPPED)
        return is_spool(self.work / SPOOL) or (self.work / LOCK).exists()

    def tidy(self, *, keep_spool: bool = False) -> None:
        """Remove what only unfinished work needs. The caller holds the work folder's lock.

        Parameters
        ----------
        keep_spool
            Leave what a larger size will find spooled, and the record that says of which plan.
        """
        write_skipped(self.root, {})
        if keep_spool:
            return
        clear_spool(self.work / SPOOL)
        if self.is_remote:
            for path in self.work.iterdir():
                if path.name != LOCK:
                    remove(path)

    def _worked_for(self, claim: Claim) -> bool:
        """Whether what is spooled belongs to this plan or to another size of it."""
        try:
            found = read_claim(self.work)
            return found is not None and found.is_another_size_of(claim)
        except StorageError:  # damaged: what lies there can be made again
            return False

    def send_shard(self, marker: Marker) -> None:
        """Send a tar that was made in the work folder, then its marker, and remove the local copies.

        Raises
        ------
        ObjectExistsError
            If another tar is there.
        StorageError
            If the store does not take it, or does not hold it afterwards.
        """
        key = f"{SHARDS}/{marker.shard:06d}"
        tar = self.work / f"{key}.tar"
        upload(self.root, f"{key}.tar", tar, if_absent=True)
        put_checked(self.root, f"{key}.json", marker.to_bytes())
        remove(tar)
        remove(self.work / f"{key}.json")

    def send_index(self) -> None:
        """Send the index that was written in the work folder, and remove the local copy."""
        path = self.work / INDEX
        if not self.root.exists(INDEX) or not is_held(self.root, INDEX, sums_of(path)):
            upload(self.root, INDEX, path)
        remove(path)

    def discard(self, shard: int) -> None:
        """Remove a shard, first its marker."""
        for suffix in ("json", "tar"):
            self.root.delete(f"{SHARDS}/{shard:06d}.{suffix}")

    def begun(self) -> set[int]:
        """Numbers of the shards whose tar and marker are there, whatever these hold."""
        names = {found.key for found in self.root.list(SHARDS)}
        tars = (name.removesuffix(".tar") for name in names if name.endswith(".tar"))
        return {int(Path(tar).name) for tar in tars if f"{tar}.json" in names and Path(tar).name.isdecimal()}

    def missing(self, plan: Plan) -> list[int]:
        """Numbers of the shards of a plan that are not there, as far as markers and lengths say."""
        held = {found.key: found for found in self.root.list(SHARDS)}
        look = functools.partial(self._is_whole, plan, held)
        shards = range(len(plan.shards))
        with ThreadPoolExecutor(N_THREADS if self.is_remote else 1) as pool:
            return [shard for shard, whole in zip(shards, pool.map(look, shards), strict=True) if not whole]

    def _is_whole(self, plan: Plan, held: dict[str, Found], shard: int) -> bool:
        """Whether a shard is there with the segments that the plan gives it, as far as its marker and length say."""
        tar, marker = (held.get(f"{SHARDS}/{shard:06d}.{suffix}") for suffix in ("tar", "json"))
        if tar is None or marker is None:
            return False
        found = self._marker(shard)
        first, past = plan.shards[shard]
        keys = [segment.key for segment in plan.segments[first:past]]
        return found is not None and found.keys == keys and found.n_bytes == tar.n_bytes

    def _marker(self, shard: int) -> Marker | None:
        try:
            return read_marker(self.root, shard)
        except (DamagedMarkerError, ObjectMissingError):
            return None

    def check_before_the_end(self, claim: Claim, shards: Sequence[ShardFacts]) -> None:
        """Look once more, before a root record says that all is whole, at what other machines may have changed.

        Parameters
        ----------
        claim
            The plan's record.
        shards
            What the markers say of the tars.

        Raises
        ------
        ResumeError
            If another plan has taken the place.
        StorageError
            If a shard is no longer there.
        """
        found = read_claim(self.root)
        if found is None or (found.config, found.made_from) != (claim.config, claim.made_from):
            raise ResumeError(
                "another plan was begun there meanwhile",
                where=self.root,
                likely="two commands with different settings write to one URL",
                hint="give one of them another output",
            )
        held = {item.key: item.n_bytes for item in self.root.list(SHARDS)}
        for shard, facts in enumerate(shards):
            tar, marker = (f"{SHARDS}/{shard:06d}.{suffix}" for suffix in ("tar", "json"))
            if held.get(tar) != facts.n_bytes or marker not in held:
                raise StorageError(
                    f"shard {shard:06d} is no longer there",
                    where=self.root / tar,
                    likely="another command removed or replaced it",
                    hint="give the command again",
                )


def target_of(root: str | Path | Root, work: str | Path | None = None) -> Target:
    """Give the place of a data set that is to be written. Nothing is made or asked.

    Parameters
    ----------
    root
        Its folder or URL.
    work
        For a URL: where its work folder is made; default ``vidbrain/work`` in ``$XDG_CACHE_HOME``, else ``~/.cache``.

    Raises
    ------
    StorageError
        If nothing can be written there.
    ConfigError
        If a work folder is given for a folder.
    """
    place = open_root(root)
    if place.is_read_only:
        raise StorageError("a web server is read only", where=place, hint="write to s3, gs, az or a path")
    if place.is_local:
        if work is not None:
            raise ConfigError("--work is for an output at a URL; a folder is its own work folder", where=place)
        return Target(place, Path(place.url))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidbrain" / "work"
    name = hashlib.sha256(str(parse_url(place.url)).encode()).hexdigest()[:16]
    return Target(place, Path(work or cache).expanduser().absolute() / name)
