from __future__ import annotations

import numpy as np
import pytest

from vidbrain.video.player import STYLES, Player

BUTTONS = ("B", "A", "MODE", "START", "UP", "DOWN", "LEFT", "RIGHT", "C", "Y", "X", "Z")
LEFT, RIGHT = BUTTONS.index("LEFT"), BUTTONS.index("RIGHT")


def scene(ship_x: int, *shot_xs: int) -> np.ndarray:
    """A black sky, a white ship at the bottom, green shots just above it."""
    screen = np.zeros((224, 320, 3), np.uint8)
    screen[184:204, ship_x - 8 : ship_x + 8] = (232, 236, 232)
    for x in shot_xs:
        screen[150:178, x - 3 : x + 3] = (0, 236, 0)
    return screen


def direction(screen: np.ndarray, monkeypatch: pytest.MonkeyPatch, style: str = "dodge") -> int:
    monkeypatch.setattr("vidbrain.video.player.STYLES", dict.fromkeys(STYLES, STYLES[style]))
    mask = Player(BUTTONS, np.random.default_rng(0), 1.0).act(screen)
    return int(mask[RIGHT]) - int(mask[LEFT])


def test_it_evades_what_falls_on_it(monkeypatch):
    assert direction(scene(160, 152), monkeypatch) == 1
    assert direction(scene(160, 168), monkeypatch) == -1


def test_it_does_not_run_into_what_falls_beside_it(monkeypatch):
    assert direction(scene(160, 130, 140), monkeypatch) >= 0
    assert direction(scene(160, 180, 190), monkeypatch) <= 0


def test_it_is_a_function_of_seed_and_screen():
    def presses(seed: int) -> bytes:
        player = Player(BUTTONS, np.random.default_rng(seed), 0.5)
        masks = [player.act(scene(100 + n % 80) if player.looks else None) for n in range(900)]
        assert all(mask.shape == (12,) and mask.max() <= 1 for mask in masks)
        return np.stack(masks).tobytes()

    assert presses(1) == presses(1) != presses(2)


def test_a_console_with_fewer_buttons_is_played_with_those():
    player = Player(("A", "B"), np.random.default_rng(0), 0.5)
    masks = np.stack([player.act(scene(160) if player.looks else None) for _ in range(300)])
    assert masks.shape == (300, 2)
    assert masks[:, 1].any()
