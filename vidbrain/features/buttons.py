"""What the player pressed, from the tables of replays or the recorded input itself: a control for motor activity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vidbrain.config import fingerprint
from vidbrain.errors import AlignmentError
from vidbrain.features.sources import choose_layers
from vidbrain.features.timed import TimedRows
from vidbrain.records import Recording
from vidbrain.video.clock import frame_times
from vidbrain.video.decode import read_table
from vidbrain.video.sources import find_recordings

LAYERS = ("buttons.held", "buttons.pressed")
"""The share of time that each button is held, and how often it goes down, in presses a frame."""


@dataclass(frozen=True)
class ButtonSource:
    """Buttons of every recording of game play that was seen during a run.

    Attributes
    ----------
    game
        A BIDS tree with recorded input or its replays.
    layer_names
        Of `LAYERS`; none for all.
    """

    game: Path
    layer_names: Sequence[str] = ()
    name: str = "buttons"

    @property
    def settings(self) -> dict[str, Any]:
        """None: the tables decide all."""
        return {}

    @cached_property
    def recordings(self) -> dict[str, list[Recording]]:
        """Recordings by run, in order of onset.

        Raises
        ------
        AlignmentError
            If none was seen during a run.
        """
        by_run: dict[str, list[Recording]] = {}
        for recording in find_recordings(self.game):
            if recording.run is not None and recording.onset_s is not None and recording.duration_s is not None:
                by_run.setdefault(recording.run.label, []).append(recording)
        if not by_run:
            raise AlignmentError(
                "no recording of game play was seen during a BOLD run",
                where=self.game,
                hint="give a BIDS tree whose events.tsv files name the recordings: --game",
            )
        return {run: sorted(found, key=lambda recording: recording.onset_s or 0.0) for run, found in by_run.items()}

    @cached_property
    def buttons(self) -> list[str]:
        """Buttons of the first recording's console.

        Raises
        ------
        VideoError
            If it has neither table nor recorded input.
        """
        return _buttons(read_table(self.recordings[min(self.recordings)][0]))

    @property
    def feature_names(self) -> dict[str, list[str]]:
        """A button each."""
        return dict.fromkeys(choose_layers(self.layer_names, LAYERS, self.name), self.buttons)

    @property
    def runs(self) -> dict[str, float]:
        """Seconds at which the last recording of each run ends."""
        return {
            run: max((recording.onset_s or 0.0) + (recording.duration_s or 0.0) for recording in recordings)
            for run, recordings in self.recordings.items()
        }

    def read(self, run: str) -> TimedRows:
        """A row for each frame of the run's recordings, on the clock of the video.

        Raises
        ------
        AlignmentError
            If a recording is of a console with other buttons.
        VideoError
            If it has neither table nor recorded input.
        """
        held, pressed, times_s = [], [], []
        for recording in self.recordings[run]:
            table = self._table(recording)
            down = table[self.buttons].to_numpy(np.float64)
            # One that is held as the recording begins goes down with its first frame.
            steps = np.diff(down, axis=0, prepend=np.zeros((1, down.shape[1])))
            begins = frame_times(recording.onset_s or 0.0, recording.duration_s or 0.0, len(down))
            frame_s = (recording.duration_s or 0.0) / max(len(down), 1)
            held.append(down)
            pressed.append(np.maximum(steps, 0.0))
            times_s.append(np.stack([begins, begins + frame_s], axis=1))
        values = dict(zip(LAYERS, (np.concatenate(held), np.concatenate(pressed)), strict=True))
        return TimedRows({layer: values[layer] for layer in self.feature_names}, np.concatenate(times_s))

    def fingerprint(self, run: str) -> str:
        """Of what was pressed, and when."""
        facts = []
        for recording in self.recordings[run]:
            pressed = np.packbits(self._table(recording)[self.buttons].to_numpy(np.bool_)).tobytes().hex()
            facts.append((recording.key, recording.onset_s, recording.duration_s, pressed))
        return fingerprint(self.buttons, facts)

    def _table(self, recording: Recording) -> pd.DataFrame:
        table = read_table(recording)
        if _buttons(table) != self.buttons:
            raise AlignmentError(
                f"{recording.key} has the buttons {', '.join(_buttons(table))}, others have {', '.join(self.buttons)}",
                where=recording.movie or recording.video,
                hint="make a feature set for each console",
            )
        return table


def _buttons(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table.columns if table[name].dtype == np.bool_]
