import pytest

from vidbrain.sharding.plan import ShardConfig
from vidbrain.testing.videos import toy_frames, write_video


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder of three real videos whose frames are known, but for H.264's rounding."""
    root = tmp_path_factory.mktemp("videos")
    for i, n in enumerate((150, 70, 231)):
        write_video(root / f"play-{i}.mp4", toy_frames(n, seed=i))
    return root


@pytest.fixture
def config():
    return ShardConfig(frame_size=32, segment_frames=32, shard_frames=128, clip_frames=8, clip_step=2, codec="zstd")
