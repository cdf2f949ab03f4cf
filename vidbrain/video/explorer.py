"""A scripted player of Doom: walks where there is room, turns to monsters and shoots, opens what is in its way.

What it does is a function of what has been in view and of its seed; it does not know the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidbrain.video.doom import View

_LOOK_EVERY = 4  # frames; a person reacts no faster
_BAND = slice(50, 75)  # rows around the horizon, as shares of 120 rows: walls, not floor or ceiling
_NEAR = 6  # depth of a wall that is in the way
_STUCK = 8  # looks at the same picture while walking
_AIM = 0.05  # of the width: close enough to shoot


@dataclass(frozen=True)
class Style:
    """How the player behaves for a while.

    Attributes
    ----------
    courage
        Share of looks at which a monster is turned to rather than overlooked.
    wander
        Weight of a direction that it has taken a fancy to, against room to walk.
    run
        Share of the time at a run.
    strafe
        Share of looks after which it steps aside.
    """

    courage: float
    wander: float
    run: float
    strafe: float


STYLES: dict[str, Style] = {
    "hunt": Style(courage=0.95, wander=0.2, run=0.3, strafe=0.2),
    "explore": Style(courage=0.5, wander=0.6, run=0.6, strafe=0.05),
    "rush": Style(courage=0.2, wander=0.1, run=1.0, strafe=0.05),
    "stroll": Style(courage=0.7, wander=1.0, run=0.0, strafe=0.1),
    "dance": Style(courage=0.9, wander=0.4, run=0.5, strafe=0.6),
}


class Explorer:
    """Plays one repetition.

    Parameters
    ----------
    buttons
        Names of the game's buttons.
    rng
        Decides every whim.
    skill
        0 to 1: how often a style that fights is chosen.
    """

    def __init__(self, buttons: tuple[str, ...], rng: np.random.Generator, skill: float) -> None:
        self._index = {name: position for position, name in enumerate(buttons)}
        self._rng = rng
        self._skill = skill
        self._frame = self._until = 0
        self._style = STYLES["explore"]
        self._fancy = 0.0
        self._down: frozenset[str] = frozenset()
        self._escape: tuple[frozenset[str], int] = (frozenset(), 0)
        self._seen: NDArray[np.floating] = np.zeros(1)
        self._still = 0
        self._use_until = 0

    @property
    def looks(self) -> bool:
        """Whether the next `act` wants to see what is in view."""
        return self._frame % _LOOK_EVERY == 0

    def act(self, view: View | None) -> NDArray[np.uint8]:
        """Decide the buttons of the next frame.

        Parameters
        ----------
        view
            What is in view when `looks`, else it may be None.

        Returns
        -------
        (n_buttons,) uint8
            0 or 1.
        """
        if self._frame >= self._until:
            self._change_style()
        if view is not None and self.looks:
            self._down = self._decide(view)
        mask = np.zeros(len(self._index), np.uint8)
        down = set(self._down)
        if self._frame < self._use_until and self._frame % 6 == 0:
            down.add("USE")  # a door wants a new press, not a held button
        for name in down & self._index.keys():
            mask[self._index[name]] = 1
        self._frame += 1
        return mask

    def _change_style(self) -> None:
        fights = self._rng.random() < self._skill
        names = ("hunt", "dance", "stroll") if fights else ("explore", "rush", "stroll")
        self._style = STYLES[names[self._rng.integers(len(names))]]
        self._fancy = float(self._rng.uniform(-1, 1))
        self._until = self._frame + int(self._rng.integers(50, 220))

    def _decide(self, view: View) -> frozenset[str]:
        """Choose the buttons that are held until the next look."""
        style, width = self._style, view.depth.shape[1]
        aside = "MOVE_LEFT" if self._rng.random() < 0.5 else "MOVE_RIGHT"
        steps = {aside} if self._rng.random() < style.strafe else set()
        prey = [thing for thing in view.things if thing.category == "Monster"]
        if prey and self._rng.random() < style.courage:
            nearest = max(prey, key=lambda thing: thing.height)
            off = (nearest.left + nearest.width / 2) / width - 0.5
            if abs(off) < _AIM + nearest.width / width / 2:
                return frozenset({"ATTACK", *steps})
            return frozenset({"TURN_RIGHT" if off > 0 else "TURN_LEFT", *steps})
        rows = slice(_BAND.start * len(view.depth) // 120, _BAND.stop * len(view.depth) // 120)
        room = np.median(view.depth[rows], axis=0)
        way, until = self._escape
        if self._frame < until:
            return way
        moved = self._seen.shape != room.shape or np.abs(self._seen - room).mean() > 0.5
        self._seen, self._still = room, 0 if moved else self._still + 1
        if self._still >= _STUCK or room[2 * width // 5 : 3 * width // 5].max() <= _NEAR:
            # Something is in the way: a door opens, from a wall or a corner one turns away for a while.
            left, right = room[: width // 3].mean(), room[2 * width // 3 :].mean()
            turn = "TURN_LEFT" if left + self._rng.normal(0, 3) > right else "TURN_RIGHT"
            way = frozenset({turn, "MOVE_BACKWARD"} if self._still >= _STUCK else {turn})
            self._escape, self._still = (way, self._frame + int(self._rng.integers(8, 36))), 0
            self._use_until = self._frame + 24
            return frozenset({"MOVE_FORWARD"})
        place = np.linspace(-1, 1, width)
        wish = np.convolve(room / 64, np.ones(9) / 9, mode="same") - style.wander * abs(place - self._fancy)
        goal = float(place[int(np.argmax(wish))])
        down = {"MOVE_FORWARD", *steps}
        if abs(goal) > 0.15:
            down.add("TURN_RIGHT" if goal > 0 else "TURN_LEFT")
        if self._rng.random() < style.run:
            down.add("SPEED")
        if self._rng.random() < 0.02:
            down.add("ATTACK")
        return frozenset(down)
