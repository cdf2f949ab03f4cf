"""Shards in a store: fetched ahead into the shared cache in the order of their use, read by ranges until they are here.

A shard of which enough is wanted is fetched whole; of one of which little is wanted, only that. Either lies in the
cache under the checksum of the shard. What of it has come is read while the rest is on its way, if parts have checksums
of their own. What is not here when a batch needs it is read by ranges, so that no batch waits for a whole shard, and a
cache that is too small costs requests and nothing else.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import StorageError
from vidbrain.sharding.manifest import Manifest, shard_path
from vidbrain.storage.cache import Cache, Content, DamagedContentError, Lease, is_sha256
from vidbrain.storage.clients import PART_BYTES
from vidbrain.storage.files import ObjectMissingError
from vidbrain.storage.meter import Meter
from vidbrain.storage.objects import N_THREADS, Root
from vidbrain.storage.transfers import Arrived
from vidbrain.stream.arriving import Arriving, fetch_whole
from vidbrain.stream.layout import Span
from vidbrain.stream.ranges import Ranges, with_cure
from vidbrain.stream.uses import ShardUse, uses_of
from vidbrain.stream.wanted import Wanted

DENSE = 0.2
"""Share of a shard from which on it is fetched whole."""
N_DOWNLOADS = 2
"""Shards on their way at once; each takes up to 32 MiB of memory."""
FETCH_BYTES = (2 * 4 + N_THREADS) * PART_BYTES
"""Most memory of what is on its way: four ranges of each download, and ranges for batches."""
AHEAD = 0.25
"""Share of the cache that may be filled ahead of what is read."""
LEASED = 0.125
"""Share of the cache on which one process keeps leases between two reads."""
PATIENCE_S = 0.2
"""How long a batch waits for a shard that is on its way, before it reads ranges."""
PAUSE_S = 0.5
"""Rest before room is looked for again."""
BLOCK = 4096


class RemoteShards:
    """Shards at a URL; any number of threads may read.

    Parameters
    ----------
    manifest
        At a URL.
    positions : (n,) int64
        The segments that may be wanted.
    cache
        Where what is fetched is kept.
    """

    def __init__(self, manifest: Manifest, positions: NDArray[np.int64], cache: Cache) -> None:
        assert isinstance(manifest.root, Root)
        self._made_of = (manifest, positions, cache)
        self._meter = Meter()
        self._root = replace(manifest.root, meter=self._meter)
        self._manifest, self._cache = replace(manifest, root=self._root), cache
        rows = manifest.segments.iloc[positions]
        self._wanted = Wanted(rows)
        self._parts_are_checked = not rows["part_crc32"].isna().any()
        self._contents: dict[int, Content] = {}
        self._shard_of: dict[str, int] = {}
        self._start()

    def _start(self) -> None:
        """Begin anew in this process."""
        self._pid = os.getpid()
        self._change = threading.Condition()
        self._leases: OrderedDict[int, Lease] = OrderedDict()
        self._uses: dict[int, ShardUse] = {}
        self._waiting: list[int] = []
        self._on_the_way: set[int] = set()
        self._arriving: dict[int, Arriving] = {}
        self._ahead: dict[int, int] = {}
        self._errors: dict[int, StorageError] = {}
        self._now, self._plan, self._n_bytes, self._n_hits = 0, 0, 0, 0
        self._ranges = Ranges(self._root)

    def __reduce__(self) -> tuple[type[RemoteShards], tuple[Any, ...]]:
        return RemoteShards, self._made_of

    # -- what a reader asks --------------------------------------------------------------------------------------------

    def begin(self, pieces: Iterable[NDArray[np.int64]]) -> None:
        """Hear the shard of every clip that will be read next, in order; fetch them ahead in the order of first use."""
        self._check_process()
        uses = uses_of(pieces)
        with self._change:
            self._uses, self._waiting = uses, sorted(uses, key=lambda shard: uses[shard].first)
            self._now, self._plan = 0, self._plan + 1
            self._ahead.clear()
            self._errors.clear()
            self._change.notify_all()
            plan = self._plan
        for number in range(min(N_DOWNLOADS, len(uses))):
            threading.Thread(
                target=_fetch_ahead,
                args=(weakref.ref(self), self._change, plan),
                name=f"vidbrain-fetch-{number}",
                daemon=True,
            ).start()

    def end(self) -> None:
        """Fetch nothing more ahead. What is on its way to the cache arrives there, and leases stay."""
        self._check_process()
        with self._change:
            self._plan += 1
            self._uses, self._waiting = {}, []
            self._ahead.clear()
            self._change.notify_all()

    def read(self, spans: Sequence[Span], n_clips: int = 0) -> list[bytes]:
        """Read spans of shards, from the cache where they are there, by ranges side by side where not.

        Raises
        ------
        StorageError
            If the store does not answer within its root's deadline.
        """
        self._check_process()
        found: dict[Span, bytes] = {}
        by_shard: dict[int, list[Span]] = {}
        for span in spans:
            by_shard.setdefault(span[0], []).append(span)
        until = time.monotonic() + PATIENCE_S
        for shard, wanted in by_shard.items():
            here = self._lease(shard, wanted, until)
            if here is not None:
                held = {span: here.read(span[1], span[2]) for span in wanted}
                found |= {span: data for span, data in held.items() if len(data) == span[2] - span[1]}
        n_hits = len(found)
        missing = [span for span in spans if span not in found]
        found |= self._ranges.read(missing)
        with self._change:
            self._now += n_clips
            self._n_hits += n_hits
            self._n_bytes += sum(map(len, found.values()))
            for shard in by_shard:
                self._ahead.pop(shard, None)
            self._change.notify_all()
        return [found[span] for span in spans]

    def read_again(self, span: Span) -> bytes | None:
        """Read a span that was found damaged from the store, and forget the copy that it came from."""
        self._check_process()
        with self._change:
            self._leases.pop(span[0], None)
        self._cache.drop(self._content(span[0]))
        return self._ranges.read([span])[span]

    def where(self, shard: int) -> str:
        """URL of the tar."""
        return str(shard_path(self._root, shard))

    def stats(self) -> dict[str, float]:
        """Count bytes and spans read, requests and those that were repeated."""
        return {
            "n_bytes": self._n_bytes,
            "n_requests": self._meter.n_requests,
            "cache_hits": self._n_hits,
            "retries": self._meter.n_retries,
        }

    def close(self) -> None:
        """Fetch no more, and end the leases. What is on its way to the cache arrives there."""
        self.end()
        with self._change:
            self._leases.clear()
        self._ranges.close()

    def _check_process(self) -> None:
        # Threads, locks and leases of the parent are not those of its child.
        if os.getpid() != self._pid:
            self._start()

    def _lease(self, shard: int, wanted: Sequence[Span], until: float) -> Lease | Arriving | None:
        """Give a shard whose spans are here, or are so in a moment; one of which much is wanted is waited for."""
        content, n_wanted = self._content(shard), sum(end - begin for _, begin, end in wanted)
        with self._change:
            while True:
                if shard in self._errors:
                    raise self._errors[shard]
                if shard in self._leases:
                    self._leases.move_to_end(shard)
                    return self._leases[shard]
                arriving = self._arriving.get(shard)
                if arriving is not None and all(arriving.holds(begin, end) for _, begin, end in wanted):
                    return arriving
                left = math.inf if n_wanted > DENSE * content.n_bytes else until - time.monotonic()
                if shard not in self._on_the_way or left <= 0:
                    break
                self._change.wait(min(left, PAUSE_S))
        lease = self._cache.open(content)
        if lease is None and not _is_whole(content):
            facts = self._manifest.shard_facts(shard)
            lease = self._cache.open(Content(facts.sha256, facts.n_bytes))
        if lease is not None:
            self._keep(shard, lease)
        return lease

    def _keep(self, shard: int, lease: Lease) -> None:
        """Hold some leases for the next reads; others end when the read does that uses them."""
        with self._change:
            self._leases[shard] = lease
            room = LEASED * self._cache.n_bytes
            while self._leases and sum(held.content.n_bytes for held in self._leases.values()) > room:
                self._leases.popitem(last=False)

    # -- fetching ahead ------------------------------------------------------------------------------------------------

    def take(self) -> int | None:
        """Take the next shard to fetch, where there are more, unless it is too early; with the lock in hand."""
        if sum(self._ahead.values()) > AHEAD * self._cache.n_bytes:
            return None
        shard = self._waiting.pop(0)
        self._on_the_way.add(shard)
        return shard

    def has_more(self, plan: int) -> bool:
        """Whether shards of a plan are still to be fetched; with the lock in hand."""
        if plan != self._plan:
            return False
        self._waiting = [shard for shard in self._waiting if self._uses[shard].last >= self._now]
        return bool(self._waiting)

    def fetch(self, shard: int, plan: int) -> bool:
        """Fetch a shard that was taken; False if there was no room, and it waits again."""
        settled, error = True, None
        try:
            settled = self._fill(shard)
        except DamagedContentError as caught:
            # Its parts have checksums of their own: those that are sound are read by ranges.
            if not self._parts_are_checked:
                error = StorageError(caught.message, where=self.where(shard), hint=caught.hint)
        except StorageError as caught:
            error = caught
        with self._change:
            self._on_the_way.discard(shard)
            self._arriving.pop(shard, None)
            if plan == self._plan:
                self._errors |= {} if error is None else {shard: error}
                if not settled:
                    self._waiting.insert(0, shard)
            self._change.notify_all()
        return settled

    def _fill(self, shard: int) -> bool:
        """Get a shard, or what is wanted of it, into the cache; False if there is no room now."""
        content, facts = self._content(shard), self._manifest.shard_facts(shard)
        place = shard_path(self._root, shard)
        whole = _is_whole(content)

        def fetch(path: Path) -> None:
            try:
                if not whole:
                    self._fetch_members(shard, facts.n_bytes, path)
                else:
                    fetch_whole(place, facts.n_bytes, path, self._hear(shard) if self._parts_are_checked else None)
            except ObjectMissingError as error:
                raise with_cure(error) from error

        def check(path: Path) -> bool:
            return is_sha256(path, facts.n_bytes, facts.sha256) if whole else self._wanted.are_in(path, shard)

        lease = self._cache.fill(content, fetch, check, next_use=self._next_use, wait_s=self._root.deadline_s)
        if lease is None:
            return False
        with self._change:
            use = self._uses.get(shard)
            if use is not None:  # else nobody waits for it any more
                self._keep(shard, lease)
                if use.first > self._now:
                    self._ahead[shard] = content.n_bytes
        return True

    def _hear(self, shard: int) -> Arrived:
        """Let batches read what comes of a shard while the rest of it is on its way."""

        def arrived(handle: int, begin: int, end: int) -> None:
            with self._change:
                found = self._arriving.get(shard)
                if found is None or not found.is_of(handle):
                    found = self._arriving[shard] = Arriving(handle)
                found.add(begin, end)
                self._change.notify_all()

        return arrived

    def _fetch_members(self, shard: int, n_bytes: int, path: Path) -> None:
        """Write the segments that are wanted to their places in a file that is empty elsewhere."""
        spans = self._wanted.spans(shard)
        blocks = self._ranges.read([(shard, begin, end) for begin, end in spans])
        with path.open("r+b") as handle:
            handle.truncate(n_bytes)
            for (_, begin, _), data in blocks.items():
                handle.seek(begin)
                handle.write(data)

    def _content(self, shard: int) -> Content:
        """Say what of a shard is kept: all of it, or the segments that may be wanted."""
        known = self._contents.get(shard)
        if known is None:
            facts, spans = self._manifest.shard_facts(shard), self._wanted.spans(shard)
            known = Content(facts.sha256, facts.n_bytes)
            if sum(end - begin for begin, end in spans) < DENSE * facts.n_bytes:
                digest = hashlib.sha256(repr(spans).encode()).hexdigest()[:16]
                room = sum(-(-end // BLOCK) - begin // BLOCK for begin, end in spans) * BLOCK
                known = Content(f"{facts.sha256}.{digest}", room)
            self._shard_of[known.name] = shard
            self._contents[shard] = known
        return known

    def _next_use(self, name: str) -> float | None:
        """When this process next needs an entry of the cache, in clips from the start of its plan."""
        with self._change:
            shard = self._shard_of.get(name)
            if shard is None:
                return None
            use = self._uses.get(shard)
            if use is None or use.last < self._now:
                return math.inf
            return float(max(use.first, self._now))


def _fetch_ahead(owner: weakref.ref[RemoteShards], change: threading.Condition, plan: int) -> None:
    """Fetch shard after shard, until there is none left, another plan is made, or nobody holds the shards any more.

    No thread holds them while it waits: two that wait by turns would keep them for ever.
    """
    while True:
        with change:
            shards = owner()
            if shards is None or not shards.has_more(plan):
                return
            shard = shards.take()
            if shard is None:
                del shards
                change.wait(PAUSE_S)
                continue
        settled = shards.fetch(shard, plan)
        del shards
        if not settled:
            with change:
                change.wait(PAUSE_S)


def _is_whole(content: Content) -> bool:
    return "." not in content.digest
