"""Record real game play: a seeded player and a game enter, recordings in a BIDS tree leave.

The tree has the shape of a scanned study (subjects, sessions, runs, ``func/*_events.tsv``, ``gamelogs/``), with the
traps that such a study holds: a scanner clock that disagrees with the game's, gaps between repetitions, and a first
`.bk2` of every run whose first input line must be skipped. A tree holds as many tasks as are played into it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidbrain.cluster import Client
from vidbrain.config import fingerprint, to_mapping
from vidbrain.errors import ConfigError, ResumeError, VideoError
from vidbrain.progress import SILENT, Progress
from vidbrain.records import RunKey
from vidbrain.storage import atomic
from vidbrain.storage.locks import locked
from vidbrain.storage.roots import safe_name
from vidbrain.video import doom
from vidbrain.video.games import ConsoleGame, count_recorded, open_game

EVENTS_COLUMNS = ("trial_type", "onset", "duration", "duration_bk2", "level", "stim_file")
MISSING_FILE = "Missing file"
DESCRIPTION = "dataset_description.json"
GAP_S = 6.03
"""Seconds without video between two repetitions."""
FRAMES_PER_S = 60.006
"""Frames of a console in a second of the scanner's clock; its own says exactly 60. Other games drift as much."""
SHORTEST_S = 20.0
"""No repetition begins with less than this left of the run."""
_BYTES_A_RUN, _BYTES_A_FRAME = 500_000, 6_000
_DOOM_LEVELS = ("map01", "map02", "map03")


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """What is played, by whom, how long."""

    game: str = "Airstriker-Genesis-v0"
    """Integration that the emulator plays; or freedoom1 or freedoom2, which ViZDoom plays."""
    task: str = "airstriker"
    """Task label in file names."""
    levels: tuple[str, ...] = ()
    """Levels, played in turn; Doom's are maps, and default to the first three. Consoles have level 1 alone."""
    n_subjects: int = 1
    """Subjects."""
    n_sessions: int = 2
    """Sessions of each subject."""
    n_runs: int = 2
    """Runs of each session."""
    run_s: float = 300.0
    """Length of a run in seconds of the scanner's clock."""
    repetition_s: tuple[float, float] = (60.0, 90.0)
    """Shortest and longest time limit of a repetition in seconds; a game over ends it sooner."""
    lives: int = 9
    """Most lives at the start of a repetition; some begin with one or two fewer."""
    missing: float = 0.0
    """Share of repetitions whose recording is lost, as happens in real studies."""
    seed: int = 0
    """Decides every press, limit and onset."""

    def __post_init__(self) -> None:
        if min(self.n_subjects, self.n_sessions, self.n_runs) < 1:
            raise ConfigError("n-subjects, n-sessions and n-runs must be at least 1")
        if self.run_s < 1:
            raise ConfigError(f"a run of {self.run_s:g} s is too short: at least 1 s")
        if not 1 <= self.repetition_s[0] <= self.repetition_s[1]:
            raise ConfigError(f"repetition-s must be two rising limits of at least 1 s, not {self.repetition_s}")
        if not 0 <= self.missing < 1:
            raise ConfigError(f"missing is a share below 1, not {self.missing:g}")
        if not 1 <= self.lives <= 9:
            raise ConfigError(f"lives must be 1 to 9, not {self.lives}")
        if not self.task.isalnum():
            raise ConfigError(f"task {self.task!r} must be letters and digits: it is a BIDS label")
        if self.levels and not self.is_doom:
            raise ConfigError(f"{self.game} has no levels to choose from", hint="leave --levels out")

    @property
    def is_doom(self) -> bool:
        """Whether ViZDoom plays it."""
        return self.game in doom.GAMES

    @property
    def fps(self) -> float:
        """Frames in a second of the scanner's clock."""
        return FRAMES_PER_S * (doom.FPS if self.is_doom else ConsoleGame.fps) / ConsoleGame.fps

    @property
    def played_levels(self) -> tuple[str, ...]:
        """Levels that are played."""
        return self.levels or (_DOOM_LEVELS if self.is_doom else ConsoleGame.levels)

    @property
    def n_bytes_a_run(self) -> int:
        """Bytes of a run, about."""
        return math.ceil(self.run_s * self.fps * _BYTES_A_FRAME) if self.is_doom else _BYTES_A_RUN

    def settings(self) -> dict[str, Any]:
        """Return what decides the recordings, as plain values."""
        return {name: value for name, value in to_mapping(self).items() if name != "levels" or value}


@dataclass(frozen=True)
class _RunRow:
    root: str
    key: RunKey
    config: PlayConfig
    integration: str | None


def play(
    out: str | Path,
    config: PlayConfig,
    *,
    integration: str | Path | None = None,
    client: Client | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Record the runs of a study that are not yet on disk.

    Parameters
    ----------
    out
        Root of the BIDS tree.
    config
        What is played. The same settings give the same bytes.
    integration
        Folder with the user's own game; see `vidbrain.video.emulator.Emulator`.
    client, progress
        Where runs are played, and who listens.

    Returns
    -------
    dict
        ``n_runs``, ``n_recordings``, ``n_frames``, ``n_missing``, ``play_s`` (seconds of play on the scanner's clock).

    Raises
    ------
    VideoError
        If the game cannot be played.
    ResumeError
        If the tree was recorded with other settings.
    StorageError
        If the tree cannot be written, or another process records there.
    """
    client = client or Client()
    out = Path(out)
    keys, todo = _plan(out, config)
    if todo:
        # A missing game, ROM or level is found before anything is written.
        with open_game(config.game, lives=config.lives, integration=integration) as game:
            lacking = sorted(set(config.played_levels) - set(game.levels))
        if lacking:
            raise VideoError(
                f"{config.game} has no level {', '.join(lacking)}", hint=f"it has {', '.join(game.levels)}"
            )
    atomic.check_writable(out, config.n_bytes_a_run * len(todo))
    with locked(out):
        _describe(out, config)
        for folder in {_events_path(out, key).parent.parent for key in todo}:
            atomic.sweep(folder / "func")
            atomic.sweep(folder / "gamelogs")
        rows = [_RunRow(str(out), key, config, None if integration is None else str(integration)) for key in todo]
        progress.start("play", len(keys), "runs", len(keys) - len(todo))
        for _, n_frames in client.run(_play_run, rows):
            progress.advance(1, frames=n_frames)
        progress.finish()
    return _summarise(out, keys)


def plan_play(out: str | Path, config: PlayConfig) -> dict[str, Any]:
    """Say what `play` would do, and write nothing.

    Returns
    -------
    dict
        ``n_runs``, ``n_done``, ``n_frames_at_most`` and ``n_bytes_about`` of the runs still to be played.

    Raises
    ------
    ResumeError
        If the tree was recorded with other settings.
    """
    keys, todo = _plan(Path(out), config)
    return {
        "n_runs": len(keys),
        "n_done": len(keys) - len(todo),
        "n_frames_at_most": math.floor(len(todo) * config.run_s * config.fps),
        "n_bytes_about": config.n_bytes_a_run * len(todo),
    }


def _plan(out: Path, config: PlayConfig) -> tuple[list[RunKey], list[RunKey]]:
    """Return all runs and those still to be played, unless the tree belongs to other settings."""
    makers = _makers(out)
    mine = makers.get(config.task)
    if None in makers or (mine is not None and mine["Fingerprint"] != fingerprint("play", config.settings())):
        raise ResumeError(
            "there is another data set" if mine is None else "the game play there was recorded with other settings",
            where=out / DESCRIPTION,
            hint="give another output folder, or remove this one first",
        )
    keys = [
        RunKey(f"{subject:02d}", f"{session:03d}", config.task, run)
        for subject in range(1, config.n_subjects + 1)
        for session in range(1, config.n_sessions + 1)
        for run in range(1, config.n_runs + 1)
    ]
    return keys, [key for key in keys if not _events_path(out, key).is_file()]


def _makers(out: Path) -> dict[str | None, dict[str, Any]]:
    """Return what made a tree, by task; None stands for what `play` did not make."""
    path = out / DESCRIPTION
    found = (atomic.read_json(path).get("GeneratedBy") or [{}]) if path.is_file() else []
    return {maker["Settings"]["task"] if maker.get("Fingerprint") else None: maker for maker in found}


def _describe(out: Path, config: PlayConfig) -> None:
    """Write what a BIDS tree says about itself, with the tasks that it holds already."""
    atomic.write_json(
        out / f"task-{config.task}_bold.json",
        {
            "TaskName": config.task,
            "TaskDescription": f"A scripted player plays {config.game}. There are no BOLD images in this data set.",
        },
    )
    settings = {"Fingerprint": fingerprint("play", config.settings()), "Settings": config.settings()}
    makers = list({**_makers(out), config.task: {"Name": "vidbrain play", **settings}}.values())
    n_subjects = max(maker["Settings"]["n_subjects"] for maker in makers)
    rows = "".join(f"sub-{subject:02d}\tn/a\tn/a\tscripted\n" for subject in range(1, n_subjects + 1))
    atomic.write_bytes(out / "participants.tsv", f"participant_id\tage\tsex\tgroup\n{rows}".encode())
    atomic.write_bytes(out / ".bidsignore", b"**/gamelogs/\n**/*__dup*\n")
    atomic.write_json(
        out / DESCRIPTION,
        {
            "Name": f"Scripted play of {' and '.join(maker['Settings']['game'] for maker in makers)}",
            "BIDSVersion": "1.9.0",
            "DatasetType": "raw",
            "GeneratedBy": makers,
        },
    )


def _events_path(root: Path, key: RunKey) -> Path:
    return root / f"sub-{key.subject}" / f"ses-{key.session}" / "func" / f"{_stem(key)}_events.tsv"


def _stem(key: RunKey) -> str:
    return f"sub-{key.subject}_ses-{key.session}_task-{key.task}_run-{key.run:02d}"  # raw files pad the run number


def _play_run(row: _RunRow) -> int:
    """Record one run; its events file, written last, says that it is whole. Returns the frames."""
    root, key, config = Path(row.root), row.key, row.config
    rng = np.random.default_rng([config.seed, int(key.subject), int(key.session or 0), key.run or 0])
    rate = (FRAMES_PER_S + float(np.clip(rng.normal(0, 0.01), -0.07, 0.03))) * (config.fps / FRAMES_PER_S)
    onset_s, total, lost_bk2_s = float(rng.uniform(0.005, 0.021)), 0, None
    lines = ["\t".join(EVENTS_COLUMNS)]
    gamelogs = root / f"sub-{key.subject}" / f"ses-{key.session}" / "gamelogs"
    with open_game(config.game, lives=config.lives, integration=row.integration) as game:
        for number in itertools.count(1):
            left_s = config.run_s - onset_s - 0.1
            limit_s = float(rng.uniform(*config.repetition_s))
            if left_s - limit_s < GAP_S + SHORTEST_S:
                limit_s = left_s
            is_first = len(lines) == 1
            level = config.played_levels[(number - 1) % len(config.played_levels)]
            name = safe_name(f"{_stem(key)}_level-{level.split('-')[0]}_rep-{number:02d}")
            path = gamelogs / f"{name}{game.suffix}"
            n_frames, facts = game.record(path, level, rng, math.floor(limit_s * rate), is_first)
            total += n_frames
            duration_s = n_frames / rate - float(rng.uniform(0, 0.01)) - 0.02 * is_first
            bk2_s = (n_frames + (is_first and game.records_reset)) / game.fps  # the recorded lines
            stim = path.relative_to(root).as_posix()
            if rng.random() < config.missing:
                for lost in gamelogs.glob(f"{name}.*"):
                    lost.unlink()
                stim, lost_bk2_s = MISSING_FILE, lost_bk2_s or bk2_s
                bk2_s = lost_bk2_s  # stale, as in the real data: left over from an earlier repetition
            else:
                atomic.write_json(path.with_suffix(".json"), {"duration": round(bk2_s, 4), **facts})
                lost_bk2_s = bk2_s
            lines.append(f"{game.trial_type}\t{onset_s:.4f}\t{duration_s:.4f}\t{bk2_s!r}\t{level}\t{stim}")
            onset_s += duration_s + GAP_S + float(rng.normal(0, 0.01))
            if config.run_s - onset_s < SHORTEST_S:
                break
    atomic.write_bytes(_events_path(root, key), ("\n".join(lines) + "\n").encode())
    return total


def _summarise(out: Path, keys: list[RunKey]) -> dict[str, Any]:
    """Count what lies on disk, whoever recorded it."""
    n_recordings = n_frames = n_missing = 0
    play_s = 0.0
    for key in keys:
        rows = [line.split("\t") for line in _events_path(out, key).read_text(encoding="utf-8").splitlines()[1:]]
        for number, values in enumerate(rows):
            event = dict(zip(EVENTS_COLUMNS, values, strict=True))
            if event["stim_file"] == MISSING_FILE:
                n_missing += 1
                continue
            if not (out / event["stim_file"]).is_file():
                raise VideoError("a recording that the events name is gone", where=out / event["stim_file"])
            n_recordings += 1
            play_s += float(event["duration"])
            n_frames += count_recorded(out / event["stim_file"], is_first=number == 0)
    return {
        "n_runs": len(keys),
        "n_recordings": n_recordings,
        "n_frames": n_frames,
        "n_missing": n_missing,
        "play_s": round(play_s, 2),
    }
