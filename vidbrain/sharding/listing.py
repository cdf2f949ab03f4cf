"""The source as the plan sees it: every recording found, filtered, counted, and whatever is wrong said at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vidbrain.cluster import Client
from vidbrain.errors import MissingExtraError, ShardError, VideoError
from vidbrain.records import Recording
from vidbrain.sharding.filters import ENTITIES, Filter, chosen
from vidbrain.sharding.plan import Listed, ShardConfig
from vidbrain.video.emulator import Emulator
from vidbrain.video.gamelogs import refuse_all
from vidbrain.video.screens import Facts, recording_facts
from vidbrain.video.sources import Survey, find_recordings, refuse_absent, survey


@dataclass(frozen=True)
class Source:
    """What a source gives.

    Attributes
    ----------
    listing
        Recordings that can be read, sorted by key.
    skipped
        What is wrong with the others, by key or path; empty unless errors are skipped.
    notes
        What a user should know.
    """

    listing: tuple[Listed, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]


def list_source(
    source: str | Path,
    client: Client | None = None,
    config: ShardConfig = ShardConfig(),  # noqa: B008 -- frozen
    *,
    only: Filter = Filter(),  # noqa: B008 -- frozen
    integration: str | Path | None = None,
) -> Source:
    """Find the recordings of a source, take those that the filter leaves, and count their frames.

    Parameters
    ----------
    source
        BIDS tree, folder of videos or `.bk2` files, one such file, or a list.
    client
        Counts recordings in parallel.
    config
        `first_skip` and `on_error` matter here.
    only
        Which recordings to take.
    integration
        Folder with the user's own ROM, for recordings that have no video.

    Raises
    ------
    VideoError
        If there are none, or any cannot be read; all are named at once.
    ShardError
        If the filter leaves nothing.
    """
    source = Path(source)
    found = survey(source, first_skip=config.first_skip)
    skipped: dict[str, str] = {}
    if config.on_error == "error":
        refuse_absent(found, source)
    else:
        skipped |= {path.stem: "its content has not been fetched" for path in found.absent}
        skipped |= dict.fromkeys(found.lost, "it is not there")
    if not found.recordings:
        find_recordings(source)  # says what is missing
    recordings = _of_one_kind([r for r, keep in zip(found.recordings, _kept(found, only, source), strict=True) if keep])
    counted = dict((client or Client()).run(_facts, recordings))
    facts = [counted[i] for i in range(len(recordings))]
    facts = _refuse_games(facts, integration)
    faults = {r.key: what for r, what in zip(recordings, facts, strict=True) if isinstance(what, str)}
    faults |= _broken_promises(recordings, facts, found.lines)
    if config.on_error == "error":
        refuse_all("{n} recording(s) cannot be read", [f"{key}: {what}" for key, what in faults.items()], source)
    listing = [
        Listed(recording, got.n_frames, got.fps, found.split.get(recording.key), got.n_bytes, got.game)
        for recording, got in zip(recordings, facts, strict=True)
        if isinstance(got, Facts) and recording.key not in faults
    ]
    n_replayed = sum(item.recording.video is None for item in listing)
    notes = [*found.notes, *([f"{n_replayed} recording(s) are replayed by the emulator"] if n_replayed else [])]
    if skipped or faults:
        notes.append(f"{len(skipped) + len(faults)} recording(s) cannot be read and are skipped")
    return Source(tuple(listing), {**skipped, **faults}, tuple(notes))


def miscounted(item: Listed, n_frames: int) -> ShardError:
    """Make the error of a recording that gives another number of frames than its listing says."""
    return ShardError(
        f"the recording gave {n_frames} frames, {item.n_frames} were counted before",
        where=item.recording.video or item.recording.movie,
        likely="the file is damaged or changed while it was read",
        hint="replay or fetch it again",
    )


def _kept(found: Survey, only: Filter, source: Path) -> Sequence[bool]:
    if not only:
        return [True] * len(found.recordings)
    entities: dict[str, list[str | int]] = {name: [] for name in ENTITIES}
    for recording in found.recordings:
        run = recording.run
        entities["subject"].append(run.subject if run else "")
        entities["session"].append((run.session or "") if run else "")
        entities["task"].append(run.task if run else "")
        entities["level"].append(recording.level or "")
        entities["run"].append(run.run if run and run.run is not None else -1)
    kept: list[bool] = chosen(only, entities, source).tolist()
    return kept


def _of_one_kind(recordings: list[Recording]) -> list[Recording]:
    """Replay all movies if any has no video: frames that were compressed and frames that were not do not mix."""
    if all(recording.video is not None for recording in recordings):
        return recordings
    return [replace(recording, video=None) if recording.movie else recording for recording in recordings]


def _facts(recording: Recording) -> Facts | str:
    try:
        return recording_facts(recording)
    except VideoError as error:
        return error.message


def _refuse_games(facts: list[Facts | str], integration: str | Path | None) -> list[Facts | str]:
    """Put the reason in the place of recordings whose game cannot be played here."""
    refused = {}
    for game in sorted({got.game for got in facts if isinstance(got, Facts) and got.game is not None}):
        try:
            with Emulator(game, integration=integration, empty=True):
                pass
        except MissingExtraError:
            raise
        except VideoError as error:
            refused[game] = error.message
    return [refused.get(got.game or "", got) if isinstance(got, Facts) else got for got in facts]


def _broken_promises(
    recordings: Sequence[Recording], facts: Sequence[Facts | str], lines: Mapping[str, int]
) -> dict[str, str]:
    """Say which movies hold another number of input lines than their events."""
    faults = {}
    for recording, got in zip(recordings, facts, strict=True):
        if isinstance(got, str) or recording.video is not None:
            continue
        held = got.n_frames + recording.skip_first_step
        # One line of slack: recorders differ in whether they count the one that replay discards.
        if abs(lines.get(recording.key, held) - held) > 1:
            faults[recording.key] = f"{held} input lines, the events say {lines[recording.key]}"
    return faults
