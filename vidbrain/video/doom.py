"""The one door to ViZDoom: the name of a game and of a map enter, frames and what is in view leave.

ViZDoom ships Freedoom, whose maps are free to share: textured, three-dimensional game play. The same seed and buttons
give the same frames.
"""

from __future__ import annotations

import contextlib
import re
import struct
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import MissingExtraError, VideoError

GAMES = ("freedoom1", "freedoom2")
"""Games that ship with ViZDoom."""
FPS = 35
"""Frames of the game in a second of its clock."""
BUTTONS = (
    *("ATTACK", "USE", "SPEED", "MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT", "TURN_RIGHT"),
)
_VARIABLES = {
    "health": "HEALTH",
    "armor": "ARMOR",
    "ammo": "SELECTED_WEAPON_AMMO",
    "weapon": "SELECTED_WEAPON",
    "kills": "KILLCOUNT",
    "x": "POSITION_X",
    "y": "POSITION_Y",
    "angle": "ANGLE",
}
_MAP = re.compile(rb"MAP\d\d|E\dM\d")


class Thing(NamedTuple):
    """Something in view: its kind, for instance ``"Monster"``, and its box on the screen in pixels."""

    category: str
    left: int
    top: int
    width: int
    height: int


class View(NamedTuple):
    """What is in view.

    Attributes
    ----------
    depth : (height, width) uint8
        Distance of what each pixel shows, 0 to 255 in the renderer's units.
    things
        What stands there, the player's own weapon left out.
    """

    depth: NDArray[np.uint8]
    things: tuple[Thing, ...]


class Doom:
    """One game of Doom without window or sound. Use it in a ``with`` block.

    Parameters
    ----------
    game
        A name in `GAMES`.

    Attributes
    ----------
    buttons
        Names in the order of the masks that `step` takes.
    variables
        Names in the order of `read_variables`: map units, degrees, points and counts, rounded.
    shape
        (height, width) of a frame.

    Raises
    ------
    MissingExtraError
        If ViZDoom is not installed.
    VideoError
        If there is no such game, or it cannot be started.
    """

    buttons = BUTTONS
    variables = tuple(_VARIABLES)
    shape = (120, 160)

    def __init__(self, game: str) -> None:
        vizdoom = _vizdoom()
        if game not in GAMES:
            raise VideoError(f"ViZDoom brings no game {game!r}", hint=f"known: {', '.join(GAMES)}")
        self.game = game
        self._wad = Path(vizdoom.__file__).parent / f"{game}.wad"
        self.levels: tuple[str, ...] = _levels(self._wad)
        self._refusal: type[Exception] = vizdoom.ViZDoomErrorException
        self._folder = tempfile.TemporaryDirectory()
        self._doom: Any = vizdoom.DoomGame()
        self._doom.set_doom_game_path(str(self._wad))
        self._doom.set_doom_config_path(str(Path(self._folder.name) / "settings.ini"))
        self._doom.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        self._doom.set_screen_format(vizdoom.ScreenFormat.RGB24)
        self._doom.set_render_hud(True)
        self._doom.set_window_visible(False)
        self._doom.set_sound_enabled(False)
        self._doom.set_depth_buffer_enabled(True)
        self._doom.set_labels_buffer_enabled(True)
        self._doom.set_mode(vizdoom.Mode.PLAYER)
        self._doom.set_episode_timeout(0)
        self._doom.set_available_buttons([getattr(vizdoom.Button, name) for name in BUTTONS])
        self._doom.set_available_game_variables([getattr(vizdoom.GameVariable, v) for v in _VARIABLES.values()])

    def __enter__(self) -> Doom:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the game and remove what it wrote."""
        self._doom.close()
        self._folder.cleanup()

    def start(self, level: str, seed: int, skill: int = 3) -> None:
        """Begin a level.

        Parameters
        ----------
        level
            Name of the map in small letters, for instance ``"map01"``.
        seed
            Of the game's own chance, below 2**31.
        skill
            1 (easiest) to 5.

        Raises
        ------
        VideoError
            If the game has no such level, or does not start.
        """
        if level not in self.levels:
            raise VideoError(f"{self.game} has no level {level!r}", hint=f"it has {', '.join(self.levels)}")
        # A game that goes on remembers earlier levels; a new one depends on the seed alone.
        self._doom.close()
        self._doom.set_doom_map(level)
        self._doom.set_seed(seed)
        self._doom.set_doom_skill(skill)
        try:
            # The game makes a folder where it starts, whatever its settings say.
            with contextlib.chdir(self._folder.name):
                self._doom.init()
        except self._refusal as error:
            raise VideoError(f"{self.game} does not start: {error}", where=self._wad) from error
        self._state: Any = self._doom.get_state()

    def step(self, mask: NDArray[np.uint8]) -> None:
        """Let one frame pass with these buttons down: (n_buttons,) uint8, 0 or 1, in the order of `buttons`."""
        try:
            self._doom.make_action(mask.astype(bool).tolist())
        except self._refusal as error:
            raise VideoError(f"{self.game} has stopped: {error}", where=self._wad) from error
        # There is no picture after the end: the last one stays.
        self._state = self._doom.get_state() or self._state

    def screen(self) -> NDArray[np.uint8]:
        """Return the frame on the screen, (height, width, 3) uint8 RGB, the caller's own."""
        return np.array(self._state.screen_buffer, np.uint8)

    def view(self) -> View:
        """Return what is in view, as the renderer knows it."""
        things = [
            Thing(label.object_category, label.x, label.y, label.width, label.height)
            for label in self._state.labels
            if label.object_category != "Self"
        ]
        return View(np.array(self._state.depth_buffer, np.uint8), tuple(things))

    def read_variables(self) -> tuple[int, ...]:
        """Return the game's variables in the order of `variables`."""
        return tuple(round(value) for value in self._state.game_variables.tolist())

    def is_over(self) -> bool:
        """Whether the player has died or left the level."""
        return bool(self._doom.is_episode_finished())

    def is_cleared(self) -> bool:
        """Whether the player has left the level alive."""
        return self.is_over() and not self._doom.is_player_dead()


def _vizdoom() -> Any:  # noqa: ANN401 -- an untyped module
    try:
        import vizdoom
    except ImportError:
        raise MissingExtraError("playing Doom needs ViZDoom", hint="pip install 'vidbrain[doom]'") from None
    return vizdoom


def _levels(wad: Path) -> tuple[str, ...]:
    """Read the names of the maps in a WAD: a head, and a directory of 16 bytes a lump that ends with its name."""
    with wad.open("rb") as file:
        _, n_lumps, offset = struct.unpack("<4sii", file.read(12))
        file.seek(offset)
        directory = file.read(16 * n_lumps)
    names = (directory[at + 8 : at + 16].rstrip(b"\0") for at in range(0, len(directory), 16))
    return tuple(sorted(name.decode().lower() for name in names if _MAP.fullmatch(name)))
