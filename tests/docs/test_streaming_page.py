"""The page on streaming shows code that runs, one snippet after the other."""

import re
from pathlib import Path

import numpy as np
import pytest

from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.writer import write_shards
from vidbrain.testing.videos import toy_frames, write_video

PAGE = Path(__file__).parents[2] / "docs" / "streaming.md"


@pytest.fixture
def demo(tmp_path, monkeypatch):
    for i in range(4):
        write_video(tmp_path / "videos" / f"play-{i}.mp4", toy_frames(400, seed=i))
    config = ShardConfig(frame_size=64, segment_frames=64, shard_frames=256, codec="zstd", val_share=0.2)
    write_shards(tmp_path / "videos", tmp_path / "shards" / "demo" / "data", config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_the_snippets_run_and_say_what_the_page_says(demo, capsys):
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(snippets) == 9
    names = {}
    for code in snippets:
        exec(compile(code, str(PAGE), "exec"), names)
    assert "(16, 16, 64, 64, 3) uint8" in capsys.readouterr().out
    # Batches 0 to 2 by the first loop, 3 by its twin; the halves stand before 3, as the state did.
    whole = names["loader"].order(0)
    halves = np.concatenate([names["first"].index, names["second"].index])
    np.testing.assert_array_equal(halves, whole.batch(3))
    assert names["state"]["batches"] == 7
    assert len(names["flipped"]) == 16
    table = open_manifest("shards/demo/data").segments
    expected = sum(
        len(range(0, n - 60, 4))
        for n in table[table["split"] == "val"].groupby("recording")["recording_frames"].first()
    )
    assert names["judged"] == expected
    assert -0.5 <= float(names["video"].min()) <= float(names["video"].max()) <= 0.5
