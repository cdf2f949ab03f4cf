"""The one door to the emulator: a game's name enters, frames and RAM variables leave.

Reading a `.bk2` needs neither emulator nor ROM.

A `.bk2` is a zip of ``Header.txt`` (the game), ``Input Log.txt`` (one line of buttons a frame) and ``Core.bin`` (the
state that the movie starts from). The console is deterministic: the same state and lines give the same frames.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidbrain.errors import MissingExtraError, VideoError

_LOG, _HEADER, _STATE = "Input Log.txt", "Header.txt", "Core.bin"
# A recording comes from somebody else: a small zip must not fill the memory. Ten hours of input are 52 MB.
_LIMITS = {_LOG: 256 * 2**20, _HEADER: 2**20, _STATE: 64 * 2**20}
_INPUT_LINE = re.compile(r"\|[^|]*\|([^|]*)\|(.*)")


@dataclass(frozen=True)
class Movie:
    """Recorded input, as read from a `.bk2`.

    Attributes
    ----------
    game
        Name of the game's integration, for instance ``"Airstriker-Genesis-v0"``.
    buttons
        Names of the console's buttons in upper case, in the order of the columns of `presses`.
    presses
        (n_lines, n_buttons) bool: whether each button was down.
    state
        The emulator state that the movie starts from; empty if it was not asked for.
    """

    game: str
    buttons: tuple[str, ...]
    presses: NDArray[np.bool_]
    state: bytes = b""

    @property
    def n_lines(self) -> int:
        """Recorded input lines: the frames of a replay that skips none."""
        return len(self.presses)


def read_movie(path: str | Path, *, with_state: bool = False) -> Movie:
    """Read a `.bk2` without emulator or ROM.

    Parameters
    ----------
    path
        The file.
    with_state
        Also read the start state (about 1 MB).

    Raises
    ------
    VideoError
        If the file is missing, truncated, damaged, too large, of several players, or no `.bk2`.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            header = _member(archive, _HEADER, path).decode("utf-8", "replace")
            log = _member(archive, _LOG, path).decode("ascii", "replace")
            state = _member(archive, _STATE, path) if with_state else b""
    except FileNotFoundError:
        raise VideoError("there is no such recording", where=path) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise VideoError(
            f"the recording cannot be read: {error}",
            where=path,
            likely="the file is truncated, or its content has not been fetched",
            hint="fetch or copy it again",
        ) from error
    games = [line.removeprefix("GameName").strip() for line in header.splitlines() if line.startswith("GameName")]
    if len(games) != 1 or not games[0]:
        raise VideoError("the recording's header names no game", where=path)
    buttons, presses = _parse_log(log, path)
    return Movie(games[0], buttons, presses, state)


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise VideoError(f"not a .bk2: it has no {name!r}", where=path) from None
    if entry.file_size > _LIMITS[name]:
        raise VideoError(
            f"{name!r} unpacks to {entry.file_size / 2**20:.0f} MiB, at most {_LIMITS[name] // 2**20} are read",
            where=path,
        )
    with archive.open(entry) as member:  # zipfile stops at the stated size, so a lying entry fails its checksum
        return member.read()


def _parse_log(log: str, path: Path) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    lines = [line for line in log.splitlines() if line and not line.startswith("[")]
    keys = [key.strip() for key in re.split(r"[#|]", lines[0].removeprefix("LogKey:")) if key.strip()] if lines else []
    players = {key.split(" ", 1)[0] for key in keys if re.match(r"P\d ", key)}
    if players != {"P1"}:
        raise VideoError(f"expected the input of one player, found {len(players)}", where=path)
    names = [key.removeprefix("P1 ").upper() for key in keys if key.startswith("P1 ")]
    columns = []
    for number, line in enumerate(lines[1:], 1):
        found = _INPUT_LINE.match(line)
        if not found or len(found[1]) != len(names) or found[2]:
            raise VideoError(f"input line {number} is not {len(names)} buttons: {line[:40]!r}", where=path)
        columns.append(found[1])
    if not columns:
        raise VideoError("the recording holds no frame", where=path, likely="the game was stopped before it began")
    pressed = np.frombuffer("".join(columns).encode("ascii", "replace"), np.uint8).reshape(-1, len(names)) != ord(".")
    # The log runs from the last button to the first; the emulator and every table from the first to the last.
    return tuple(reversed(names)), np.ascontiguousarray(pressed[:, ::-1])


def _retro() -> Any:  # noqa: ANN401 -- an untyped module
    try:
        import stable_retro
    except ImportError:
        raise MissingExtraError(
            "playing and replaying games needs stable-retro", hint="pip install 'vidbrain[retro]'"
        ) from None
    return stable_retro


def _integrations(retro: Any, integration: str | Path | None) -> Any:  # noqa: ANN401 -- an untyped module
    """Where games are looked for: the user's own folder, or what ships with stable-retro."""
    kinds = retro.data.Integrations
    if integration is None:
        return kinds.STABLE
    folder = Path(integration).absolute()
    if not folder.is_dir():
        raise VideoError("there is no such integration folder", where=folder)
    kinds.clear_custom_paths()
    kinds.add_custom_path(str(folder))
    return kinds.CUSTOM_ONLY


def _romless(game: str, integration: str | Path | None) -> VideoError:
    return VideoError(
        f"there is no ROM of {game!r}",
        where=integration,
        likely="ROMs are not free to share: only Airstriker-Genesis-v0 ships with stable-retro",
        hint="give the folder with your own ROM and its data.json: --integration DIR",
    )


def rom_digest(game: str, integration: str | Path | None = None) -> str:
    """SHA-256 of the ROM that an `Emulator` with these arguments plays.

    Raises
    ------
    MissingExtraError
        If stable-retro is not installed.
    VideoError
        If there is no such ROM.
    """
    retro = _retro()
    try:
        path = retro.data.get_romfile_path(game, _integrations(retro, integration))
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise _romless(game, integration) from error


class Emulator:
    """One console with one game in it. A process can hold only one at a time: use it in a ``with`` block.

    Parameters
    ----------
    game
        Name of the integration.
    integration
        Folder that holds the user's own integration (``<folder>/<game>/rom.md``, ``data.json``, …); default the games
        that ship with stable-retro.
    empty
        Do not load the game's default start state: `reset` is given one.

    Attributes
    ----------
    buttons
        Names in the order of the masks that `step` takes.
    variables
        Names of the RAM variables, in the order of `read_ram`.
    shape
        (height, width) of a frame.

    Raises
    ------
    MissingExtraError
        If stable-retro is not installed.
    VideoError
        If the game, its ROM or its integration is missing or broken.
    """

    def __init__(self, game: str, *, integration: str | Path | None = None, empty: bool = False) -> None:
        retro = _retro()
        kind = _integrations(retro, integration)
        if not re.fullmatch(r"[\w.\-]+", game):  # it becomes a folder name
            raise VideoError(f"{game!r} cannot be the name of a game")
        try:
            self._environment: Any = retro.make(
                game,
                state=retro.State.NONE if empty else retro.State.DEFAULT,
                inttype=kind,
                use_restricted_actions=retro.Actions.ALL,
                render_mode="rgb_array",  # the default opens a window
            ).unwrapped
        except FileNotFoundError as error:
            raise _romless(game, integration) from error
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            raise VideoError(f"the emulator refuses {game!r}: {error}", where=integration) from error
        self._retro = retro
        self._console: Any = self._environment.em
        self._data: Any = self._environment.data
        self._movie: Any = None
        self._ram_is_old = False
        self._default_state: bytes | None = self._environment.initial_state
        self.game = game
        self.buttons: tuple[str, ...] = tuple(self._environment.buttons)
        self.variables: tuple[str, ...] = tuple(sorted(self._data.list_variables()))
        height, width, _ = self._environment.observation_space.shape
        self.shape: tuple[int, int] = (height, width)

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the console, so that this process can open another."""
        self.stop_recording()
        self._console = self._data = None
        self._environment.close()
        self._environment = None

    def start_state(self, variable: str | None = None, value: int = 0) -> bytes:
        """Return the game's default start state, with one RAM variable set as a cheat code does.

        A state that the console saves also holds addresses and left-over memory of the process, so that no two runs
        save the same bytes. The default state is therefore kept, and only the variable's byte is put into it.

        Parameters
        ----------
        variable
            Its name; None changes nothing.
        value
            0 to 255.

        Raises
        ------
        VideoError
            If the game has no default state, or the variable's place in it is not clear.
        """
        if self._default_state is None:
            raise VideoError(f"{self.game!r} has no default start state")
        self.reset(self._default_state)
        if variable is None:
            return self._default_state
        tries = np.array([1, 6, 3, 9, 2], np.uint8)
        saved = []
        for trial in tries.tolist():
            self._data.set_value(variable, trial)
            saved.append(np.frombuffer(self._console.get_state(), np.uint8))
        places = np.flatnonzero((np.stack(saved) == tries[:, None]).all(axis=0))
        if len(places) != 1 or not 0 <= value <= 255:
            raise VideoError(f"{variable!r} of {self.game!r} cannot be set to {value} in its start state")
        state = bytearray(self._default_state)
        state[places[0]] = value
        self.load(bytes(state))
        return bytes(state)

    def load(self, state: bytes) -> None:
        """Put the console into a state, which becomes the one that movies start from."""
        try:
            fits = self._console.set_state(state)
        except (RuntimeError, ValueError) as error:
            raise VideoError(f"the start state does not fit {self.game!r}: {error}") from error
        if fits is False:
            raise VideoError(f"the start state does not fit {self.game!r}")
        self._environment.initial_state = state

    def reset(self, state: bytes | None = None) -> None:
        """Go to the given or the game's default start state and let one frame pass without input."""
        if state is not None:
            self.load(state)
        elif self._environment.initial_state:
            self._console.set_state(self._environment.initial_state)
        self._console.set_button_mask(np.zeros(len(self.buttons), np.uint8), 0)
        self._console.step()
        if self._movie is not None:
            self._movie.step()
        self._data.reset()
        self._data.update_ram()
        self._ram_is_old = False

    def start_recording(self, path: str | Path) -> None:
        """Write every following frame's buttons to a `.bk2`; it starts from the last reset's state.

        The movie holds one idle line more when recording starts before `reset`, because the frame that a reset lets
        pass is then recorded. Replays of such movies skip the first line.
        """
        self._movie = self._retro.Movie(str(path), True, 1)
        self._movie.configure(self.game, self._console)
        self._movie.set_state(self._environment.initial_state)

    def stop_recording(self) -> None:
        """Finish the movie file, if one is being written."""
        if self._movie is not None:
            self._movie.close()
            self._movie = None

    def step(self, mask: NDArray[np.uint8]) -> None:
        """Let one frame pass with these buttons down.

        Parameters
        ----------
        mask
            (n_buttons,) uint8, 0 or 1, in the order of `buttons`.
        """
        if self._movie is not None:
            for button, down in enumerate(mask.tolist()):
                self._movie.set_key(button, down, 0)
            self._movie.step()
        self._console.set_button_mask(mask, 0)
        self._console.step()
        self._ram_is_old = True  # it is read when it is asked for: frames alone do not need it

    def screen(self) -> NDArray[np.uint8]:
        """Return the frame on the screen, (height, width, 3) uint8 RGB, the caller's own."""
        return self._environment.get_screen(apply_rotation=True)

    def masks(self, movie: Movie) -> NDArray[np.uint8]:
        """Return a movie's presses as `step` takes them: (n_lines, n_buttons) uint8, in the order of `buttons`.

        Raises
        ------
        VideoError
            If the movie was recorded on a console with other buttons.
        """
        unknown = sorted(set(movie.buttons) ^ set(self.buttons))
        if unknown:
            raise VideoError(f"the recording's buttons are not the console's: {', '.join(unknown)}", where=movie.game)
        order = [movie.buttons.index(name) for name in self.buttons]
        return np.ascontiguousarray(movie.presses[:, order]).view(np.uint8)

    def read_ram(self) -> tuple[int, ...]:
        """Return the RAM variables in the order of `variables`."""
        self._read_ram()
        values = self._data.lookup_all()
        return tuple(int(values[name]) for name in self.variables)

    def is_over(self) -> bool:
        """Whether the game's own scenario says that the play has ended.

        It may go by what has changed since the last look, so look after every `step`, or after none.
        """
        self._read_ram()
        return bool(self._data.is_done())

    def _read_ram(self) -> None:
        if self._ram_is_old:
            self._data.update_ram()
            self._ram_is_old = False


def rewrite_deterministic(source: str | Path, target: str | Path) -> None:
    """Copy a `.bk2` so that its bytes depend on its content only: fixed time stamps, sorted members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in sorted(old.namelist()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            new.writestr(entry, old.read(name), compresslevel=6)
