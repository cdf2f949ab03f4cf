"""A scripted player: looks at the screen now and then, changes its mind and its style, and dies like a person does.

It knows the kind of game (a ship at the bottom, hazards falling from above), not its RAM: what it does is a function of
the frames that it has seen and of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LOOK_EVERY = 4  # frames; a person reacts no faster
_GRID = 2  # every second pixel is looked at: the smallest shot is four wide
_FIELD = slice(12, 91)  # rows of the grid where hazards fly: below the score, above the ship's feet
_SHIP = slice(88, 102)  # rows of the grid where the ship is
_REACH = 13  # columns of the grid that the ship covers, with a margin on either side


@dataclass(frozen=True)
class Style:
    """How the player behaves for a while.

    Attributes
    ----------
    caution
        Weight of hazards above the ship.
    hunger
        Weight of targets to line up with.
    wander
        Weight of a place that it has taken a fancy to.
    fire
        Frames the trigger is held and released, in turn.
    """

    caution: float
    hunger: float
    wander: float
    fire: tuple[int, int]


STYLES: dict[str, Style] = {
    "dodge": Style(caution=6.0, hunger=0.0, wander=0.1, fire=(4, 20)),
    "hunt": Style(caution=3.0, hunger=1.0, wander=0.1, fire=(6, 6)),
    "sweep": Style(caution=2.5, hunger=0.0, wander=1.5, fire=(10, 4)),
    "hold": Style(caution=4.0, hunger=0.2, wander=0.0, fire=(30, 30)),
    "reckless": Style(caution=0.3, hunger=0.8, wander=0.5, fire=(3, 3)),
}


class Player:
    """Plays one repetition.

    Parameters
    ----------
    buttons
        Names of the console's buttons.
    rng
        Decides every whim.
    skill
        0 to 1: how often a cautious style is chosen.
    """

    def __init__(self, buttons: tuple[str, ...], rng: np.random.Generator, skill: float) -> None:
        self._index = {name: position for position, name in enumerate(buttons)}
        self._rng = rng
        self._skill = skill
        self._frame = 0
        self._until = 0
        self._style = STYLES["hunt"]
        self._fancy = 0.5
        self._direction = 0
        self._x = 0.5
        self._spare: tuple[str, int] = ("", 0)

    @property
    def looks(self) -> bool:
        """Whether the next `act` wants to see the screen."""
        return self._frame % _LOOK_EVERY == 0

    def act(self, screen: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """Decide the buttons of the next frame.

        Parameters
        ----------
        screen
            (height, width, 3) uint8 when `looks`, else it may be None.

        Returns
        -------
        (n_buttons,) uint8
            0 or 1.
        """
        if self._frame >= self._until:
            self._change_style()
        if screen is not None and self.looks:
            self._direction = self._decide(screen)
        held, released = self._style.fire
        mask = np.zeros(len(self._index), np.uint8)
        spare, until = self._spare  # idle fingers: buttons that this game ignores
        down = {
            "B": self._frame % (held + released) < held,
            "RIGHT": self._direction > 0,
            "LEFT": self._direction < 0,
            spare: self._frame < until,
        }
        for name, pressed in down.items():
            if pressed and name in self._index:
                mask[self._index[name]] = 1
        self._frame += 1
        return mask

    def _change_style(self) -> None:
        careful = self._rng.random() < self._skill
        names = ("dodge", "hunt", "hold", "sweep") if careful else ("sweep", "hunt", "reckless", "hold")
        self._style = STYLES[names[self._rng.integers(len(names))]]
        self._fancy = float(self._rng.uniform(0.05, 0.95))
        self._until = self._frame + int(self._rng.integers(90, 360))
        if self._rng.random() < 0.5:
            name = ("A", "C", "UP", "DOWN", "X", "Y")[self._rng.integers(6)]
            self._spare = (name, self._frame + int(self._rng.integers(4, 30)))

    def _decide(self, screen: NDArray[np.uint8]) -> int:
        """Return -1, 0 or 1: where the next few frames should go."""
        small = screen[::_GRID, ::_GRID].astype(np.int16)
        red, green, blue = small[_FIELD, :, 0], small[_FIELD, :, 1], small[_FIELD, :, 2]
        white = (small[_SHIP].min(axis=2) > 150).sum(axis=0)
        width = small.shape[1]
        columns = np.arange(width)
        if white.sum() >= 6:
            self._x = float((white * columns).sum() / white.sum() / width)
        # The ship's own shots are as red as its targets, but much smaller.
        target = np.convolve(((red > 100) & (green < 90)).sum(axis=0), np.ones(7), mode="same") > 16
        shot = (green > 100) & (red < 120)
        rock = (red > 100) & (green > 100) & (blue > 100)
        body = (((red > 100) & (green < 90) & target) | rock).astype(np.float32)
        # What is near the ship's row hurts soonest; what is high on the screen can wait.
        near = np.linspace(0.1, 1, body.shape[0], dtype=np.float32) ** 2
        danger = np.convolve(near @ (body + 4 * shot), np.ones(_REACH), mode="same") / 8
        prey = np.convolve(body.sum(axis=0), np.ones(9) / 9, mode="same") / 4
        # The way to a column is as dangerous as its worst, beyond what already threatens here.
        here = min(width - 1, int(self._x * width))
        left, right = danger[here::-1], danger[here:]
        way = np.concatenate([np.maximum.accumulate(left)[::-1], np.maximum.accumulate(right)[1:]])
        danger += np.maximum(way - danger[here], 0)
        place = columns / width
        if self._style.wander > 1 and abs(self._x - self._fancy) < 0.06:  # sweeping: turn at the edges
            self._fancy = 0.93 if self._fancy < 0.5 else 0.07
        cost = (
            self._style.caution * danger
            - self._style.hunger * prey
            + self._style.wander * 4 * abs(place - self._fancy)
            + 3 * abs(place - self._x)
            + 2.0 * ((place < 0.06) | (place > 0.92))
        )
        goal = float(place[int(np.argmin(cost))])
        if abs(goal - self._x) < 0.02:
            return 0
        return 1 if goal > self._x else -1
