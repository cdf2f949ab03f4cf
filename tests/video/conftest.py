from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from vidbrain.video.emulator import Emulator
from vidbrain.video.play import PlayConfig, play
from vidbrain.video.replay import ReplayConfig, replay

# Three repetitions a run: two of about five seconds that the time limit ends, one that fills the run.
SMALL = PlayConfig(n_sessions=1, n_runs=2, run_s=45.0, repetition_s=(5.0, 6.0))


@dataclass(frozen=True)
class World:
    """A small study, really played and really replayed, and checksums of every frame that was on the screen."""

    root: Path
    play_facts: dict[str, object]
    replay_facts: dict[str, object]
    seen_at_play: set[tuple[int, ...]] = field(repr=False)
    seen_at_replay: set[tuple[int, ...]] = field(repr=False)


class FrameLog:
    """Notes a checksum of the screen after every step; a reset begins a new list."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sequences: list[list[int]] = []
        step, reset = Emulator.step, Emulator.reset

        def noting_step(console: Emulator, mask: np.ndarray) -> None:
            step(console, mask)
            self.sequences[-1].append(zlib.crc32(console.screen().tobytes()))

        def noting_reset(console: Emulator, state: bytes | None = None) -> None:
            reset(console, state)
            self.sequences.append([])

        patch.setattr(Emulator, "step", noting_step)
        patch.setattr(Emulator, "reset", noting_reset)

    def take(self) -> set[tuple[int, ...]]:
        taken = {tuple(sequence) for sequence in self.sequences if sequence}
        self.sequences.clear()
        return taken


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("study") / "game"
    with pytest.MonkeyPatch.context() as patch:
        log = FrameLog(patch)
        play_facts = play(root, SMALL)
        seen_at_play = log.take()
        replay_facts = replay(root, None, ReplayConfig())
        return World(root, play_facts, replay_facts, seen_at_play, log.take())


@pytest.fixture
def write_bk2() -> Callable[..., Path]:
    """Write a `.bk2` by hand, in the form that the emulator writes."""

    def write(path: Path, n_lines: int = 120, *, game: str = "Airstriker-Genesis-v0", state: bytes = b"x") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = "Z|P1 X|P1 Y|P1 C|P1 Right|P1 Left|P1 Down|P1 Up|P1 Start|P1 Mode|P1 A|P1 B"
        lines = "".join(f"|..|{'.' * 11}{'B' if n % 3 else '.'}|\n" for n in range(n_lines))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("Input Log.txt", f"[Input]\nP1 {names}|\n{lines}[/Input]")
            archive.writestr("Header.txt", f"MovieVersion Retro\nPlatform GEN\nGameName {game}\n")
            archive.writestr("Core.bin", state)
        return path

    return write
