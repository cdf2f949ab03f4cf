import numpy as np
import pytest

from vidbrain.testing.videos import toy_frames
from vidbrain.video.emulator import Emulator


def _played(n_frames):
    """The console's own pixels: no codec has touched them. Shots and moves at random, after the title has gone."""
    rng = np.random.default_rng(0)
    frames = []
    with Emulator("Airstriker-Genesis-v0") as console:
        console.reset()
        mask = np.zeros(12, np.uint8)
        for number in range(120 + n_frames):
            if number % 8 == 0:
                mask = rng.integers(0, 2, 12).astype(np.uint8)
                mask[3] = 0  # START pauses
            console.step(mask)
            if number >= 120:
                frames.append(console.screen()[48:176, 96:224])
    return np.stack(frames)


def _textured(n_frames, size):
    """Smooth random texture that drifts over the screen: what zstd cannot pack and H.264 predicts."""
    rng = np.random.default_rng(1)
    noise = np.fft.rfft2(rng.standard_normal((4 * size, 4 * size, 3)), axes=(0, 1))
    fy, fx = np.fft.fftfreq(4 * size)[:, None], np.fft.rfftfreq(4 * size)
    field = np.fft.irfft2(noise * np.exp(-((fy**2 + fx**2) / (2 * 0.04**2)))[..., None], axes=(0, 1))
    field = field[..., :1] + 0.3 * field  # mostly light, as in nature, and some colour
    field = (127 + 50 * field / field.std()).clip(0, 255).astype(np.uint8)
    return np.stack([field[t : t + size, 2 * t % size : 2 * t % size + size] for t in range(n_frames)])


@pytest.fixture(scope="session")
def footage():
    """Frames (T, H, W, 3) by name; the last part of a segment holds fewer than sixteen of them."""
    return {
        "game": _played(77),
        "toy": toy_frames(77, height=64, width=64),
        "texture": _textured(77, 64),
        "odd": toy_frames(21, height=37, width=51, seed=3),
    }
