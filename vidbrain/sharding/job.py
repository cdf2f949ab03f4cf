"""One call's job: the source as it is now, the settings, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from vidbrain.cluster import Client
from vidbrain.config import to_mapping
from vidbrain.records import Recording
from vidbrain.sharding.choice import settle_codec
from vidbrain.sharding.claims import Claim, read_claim, read_skipped, recordings_of
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.listing import Source, list_source
from vidbrain.sharding.parts import Frames
from vidbrain.sharding.plan import Plan, ShardConfig, make_plan, parse_size, source_digest
from vidbrain.storage.objects import Root
from vidbrain.video.screens import recording_frames


@dataclass(frozen=True)
class Job:
    """What one call of `write_shards` is to make.

    Attributes
    ----------
    source
        The source.
    config
        Settings; `codec` is the name of a codec.
    content
        Settings, with the codec, and filter as plain values: what decides the content.
    codec_choice
        Why the codec was chosen; None where it was named.
    skipped
        Recordings that turned out to be unreadable only when they were decoded.
    integration
        Folder with the user's own ROM.
    """

    source: Source
    config: ShardConfig
    content: dict[str, Any]
    codec_choice: dict[str, Any] | None
    skipped: Mapping[str, str]
    integration: str | None

    def plan_of(self, size: str) -> Plan:
        """Plan another size of the same source."""
        return make_plan(self.source.listing, replace(self.config, size=size), without=self.skipped.keys())

    def claim(self) -> Claim:
        """What stands in the folder while it is written; it does not depend on what decoding will find."""
        plan = make_plan(self.source.listing, self.config)
        return Claim(self.content, self._made_from(plan), recordings_of(self.source.listing), self.codec_choice)

    def outcome(self, plan: Plan) -> Claim:
        """What the finished data set is made from."""
        return Claim(self.content, self._made_from(plan), {})

    def _made_from(self, plan: Plan) -> dict[str, str]:
        return {"plan": plan.fingerprint, "source": source_digest(self.source.listing)}

    def estimate_bytes(
        self,
        plan: Plan,
        *,
        keep_spool: bool = False,
        tars_held: float = 1.0,
        there: Collection[int] = (),
        n_spooled: int = 0,
    ) -> int:
        """Bytes that writing needs at most, about, for the spool and for a share of the tars.

        Each takes a tenth of the raw pixels; where ``--codec auto`` measured more, that counts. A spool that is kept
        holds what all sizes together hold. What is there already needs no room: tars of the shards `there`, and
        `n_spooled` bytes of the spool.
        """
        per_frame = self.config.frame_size**2 * 3 / 10
        if self.codec_choice is not None:
            measured = {row["codec"]: row["bytes_per_frame"] for row in self.codec_choice["measured"]}
            per_frame = max(per_frame, measured[self.config.codec])
        missing = [shard for number, shard in enumerate(plan.shards) if number not in there]
        n_tarred = sum(int(plan.segments.n_stored[first:past].sum()) for first, past in missing)
        n_decoded = int(self.plan_of("all").segments.n_stored.sum()) if keep_spool and missing else n_tarred
        return math.ceil(max(0.0, n_decoded * per_frame - n_spooled) + tars_held * n_tarred * per_frame)


def job_of(
    source: str | Path,
    root: str | Path | Root,
    config: ShardConfig,
    *,
    only: Filter = Filter(),  # noqa: B008 -- frozen
    integration: str | Path | None = None,
    client: Client | None = None,
) -> Job:
    """Look at a source, and at what an earlier call left in the place; settle the codec; write nothing."""
    begun = read_claim(root)  # first: a place that cannot be read is said before a long look at the source
    found = list_source(source, client, config, only=only, integration=integration)

    def frames_of(recording: Recording) -> Generator[Frames, None, None]:
        size = (config.frame_size, config.frame_size)
        return recording_frames(recording, size=size, fit=config.fit, integration=integration)

    codec, choice = settle_codec(found.listing, config, begun, frames_of)
    config = replace(config, codec=cast("Any", codec))
    frames = parse_size(config.size)
    content = {**to_mapping(config), "size": "all" if frames is None else str(frames)}
    content |= {"only": {name: values for name, values in to_mapping(only).items() if values}}
    skipped = {}
    if config.on_error == "skip":
        skipped = {key: what for key, what in read_skipped(root).items() if key not in found.skipped}
    return Job(found, config, content, choice, skipped, None if integration is None else str(integration))
