from pathlib import Path

import av
import numpy as np
import pytest

from vidbrain.bold.simulation.screen import boxes, measure_video, read_luma, screen_measures
from vidbrain.errors import VideoError


@pytest.fixture
def video(tmp_path: Path, make_video) -> Path:
    return make_video(tmp_path / "v.mp4", 150)


def test_luma_is_what_pyav_calls_the_y_plane(video):
    luma = np.concatenate([block.copy() for block in read_luma(video, block=64)])
    with av.open(str(video)) as container:
        expected = [frame.to_ndarray()[0] for frame in container.decode(video=0)]
    assert luma.shape == (150, 48, 64)
    assert np.array_equal(luma, expected)


def test_boxes_are_means_of_whole_pixels():
    rng = np.random.default_rng(1)
    luma = rng.integers(0, 256, size=(3, 50, 67), dtype=np.uint8)
    found = boxes(luma, samples=16, grid=4)
    assert found.shape == (3, 16, 16)  # boxes of 3 x 4 pixels; margins of 1 and 1
    naive = np.array(
        [
            [[f[1 + 3 * r : 4 + 3 * r, 1 + 4 * c : 5 + 4 * c].mean() / 255 for c in range(16)] for r in range(16)]
            for f in luma
        ]
    )
    assert np.allclose(found, naive, atol=1e-6)


def test_large_boxes_do_not_overflow():
    assert np.allclose(boxes(np.full((1, 640, 640), 255, np.uint8), samples=4, grid=4), 1.0)


def test_measures_equal_a_naive_loop():
    rng = np.random.default_rng(2)
    luma = rng.random((5, 8, 12)).astype(np.float32)
    found, last = screen_measures(luma, 4)
    for t in range(5):
        for r in range(4):
            for c in range(4):
                cell = np.s_[2 * r : 2 * r + 2, 3 * c : 3 * c + 3]
                now, before = luma[t][cell].astype(float), luma[max(t - 1, 0)][cell].astype(float)
                expected = [now.mean(), now.std(), ((now - before) ** 2).mean()]
                assert np.allclose(found[t, :, r, c], expected, atol=1e-6)
    assert np.array_equal(last, luma[-1])


def test_blocks_do_not_show(video):
    luma = np.concatenate([block.copy() for block in read_luma(video)])
    whole, _ = screen_measures(boxes(luma, 16, 4), 4)
    assert np.allclose(measure_video(video, grid=4, samples=16), whole.reshape(150, -1), atol=1e-12)


def test_a_frame_with_fewer_pixels_than_cells_is_refused():
    with pytest.raises(VideoError, match="have no 4 x 4 cells"):
        boxes(np.zeros((1, 3, 8), np.uint8), samples=4, grid=4)


def test_a_cut_video_is_refused(video, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(VideoError):
        measure_video(cut, grid=4, samples=16)
