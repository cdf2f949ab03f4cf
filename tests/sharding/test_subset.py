import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vidbrain.cli.app import run
from vidbrain.errors import ShardError, StorageError
from vidbrain.records import ClipSpec
from vidbrain.sharding.codes import write_codes
from vidbrain.sharding.describe import describe, find_datasets
from vidbrain.sharding.filters import Filter
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.subset import write_subset
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards
from vidbrain.stream.batch import ClipBatch
from vidbrain.stream.codes import load_codes
from vidbrain.stream.loader import stream
from vidbrain.stream.sequential import frames_of
from vidbrain.testing.videos import toy_frames, write_video

CLIP = ClipSpec(8, 2, 3)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Six videos of two people and three levels, seen in a scanner."""
    root = tmp_path_factory.mktemp("listed")
    rows = ["path,subject,session,task,run,level,onset_s,duration_s,split"]
    for i in range(6):
        write_video(root / f"{i}.mp4", toy_frames(70 + i, seed=i))
        split = "val" if i == 5 else "train"
        rows.append(f"{i}.mp4,0{i % 2},001,film,{i},{i // 2},{i}.5,{(70 + i) / 60},{split}")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root / "list.csv"


@pytest.fixture
def data(listed, config, tmp_path, monkeypatch):
    monkeypatch.setattr("vidbrain.sharding.plan.LANDMARKS", (100, 200, 300))
    write_shards(listed, tmp_path / "data", config)
    return tmp_path / "data"


def clips_of(root, **settings):
    loader = stream(root, clip=CLIP, batch_size=5, tail="mask", **settings)
    rows = open_manifest(root).segments
    found = {}
    for batch in map(ClipBatch.unmasked, loader):
        for video, segment, start in zip(batch.video, batch.segment, batch.start_frame, strict=True):
            found[rows["recording"].iloc[segment], int(start)] = video
    return found


def test_a_prefix_is_exact_and_is_the_data_set_of_that_size(data, listed, config, tmp_path):
    for size in ("100", "137", "200"):
        write_subset(tmp_path / f"{size}.json", open_manifest(data), size=size)
        write_shards(listed, tmp_path / size, replace(config, size=size))
        named, copied = open_manifest(tmp_path / f"{size}.json"), open_manifest(tmp_path / size)
        assert named.segments["n_frames"].sum() == named.info["n_frames"] == int(size)
        assert named.segments.equals(copied.segments)
        by_name, by_copy = clips_of(tmp_path / f"{size}.json"), clips_of(tmp_path / size)
        assert by_name.keys() == by_copy.keys()
        assert all(np.array_equal(video, by_copy[place]) for place, video in by_name.items())


def test_a_filter_streams_only_what_it_names(data, tmp_path):
    write_subset(tmp_path / "one", open_manifest(data), only=Filter(subject=("sub-01",), level=("0", "2")))
    found = clips_of(tmp_path / "one.json")
    assert {recording for recording, _ in found} == {"1", "5"}
    expected = Counter({"1": len(range(0, 71 - CLIP.span + 1, 3)), "5": len(range(0, 75 - CLIP.span + 1, 3))})
    assert Counter(recording for recording, _ in found) == expected
    assert {r for r, _ in clips_of(tmp_path / "one.json", split="val")} == {"5"}
    part = write_subset(tmp_path / "part", open_manifest(data), only=Filter(subject=("01",)), size="99")
    assert part["config"]["n_frames"] == 99
    assert open_manifest(tmp_path / "part.json").segments["n_frames"].sum() == 99
    with pytest.raises(ShardError, match="100,000 frames are asked for, there are 219 that the filter leaves"):
        write_subset(tmp_path / "much", open_manifest(data), only=Filter(subject=("01",)), size="100k")
    with pytest.raises(ShardError, match="no recording has subject 9"):
        write_subset(tmp_path / "none", open_manifest(data), only=Filter(subject=("9",)))


def test_whole_recordings_of_a_subset_are_read_in_time_order(data, tmp_path):
    write_subset(tmp_path / "one", open_manifest(data), only=Filter(run=(3,)))
    own = np.concatenate([f for _, f in frames_of(open_manifest(tmp_path / "one.json"), "3")])
    np.testing.assert_array_equal(own, np.concatenate([f for _, f in frames_of(open_manifest(data), "3")]))


def test_codes_of_a_subset(data, tmp_path):
    write_subset(tmp_path / "one", open_manifest(data), only=Filter(subject=("01",)), size="90")
    manifest = open_manifest(tmp_path / "one.json")
    expected = sorted(clips_of(tmp_path / "one.json"))
    counts = Counter(recording for recording, _ in expected)

    def encode(positions):
        table = stream(tmp_path / "one.json", clip=CLIP, batch_size=1)._source.table
        per = dict(zip(table.segments.tolist(), table.counts.tolist(), strict=True))
        for p in positions:
            yield p, np.zeros((per[p], 1, 1, 1), np.uint16)

    config = {"clip": {"n_frames": 8, "step": 2, "stride": 3}}
    write_codes(
        tmp_path / "codes", manifest, encode, config=config, made_from={"shards": manifest.fingerprint}, facts={}
    )
    assert Counter(load_codes(tmp_path / "codes").recording.tolist()) == counts
    assert verify(tmp_path / "codes", kind="codes") == []
    with pytest.raises(StorageError, match="a subset names frames, not codes"):
        open_manifest(tmp_path / "one.json", kind="codes")


def test_a_subset_stays_true_while_its_data_set_grows_and_moves(listed, config, tmp_path, monkeypatch):
    monkeypatch.setattr("vidbrain.sharding.plan.LANDMARKS", (100, 200, 300))
    home = tmp_path / "home"
    write_shards(listed, home / "data", replace(config, size="200"))
    write_subset(home / "small", open_manifest(home / "data"), size="100", only=Filter(level=("0", "1")))
    before = open_manifest(home / "small.json")
    write_shards(listed, home / "data", config)
    grown = open_manifest(home / "small.json")
    assert (grown.fingerprint, grown.segments.equals(before.segments)) == (before.fingerprint, True)
    shutil.move(home, tmp_path / "away")
    assert open_manifest(tmp_path / "away" / "small.json").segments.equals(before.segments)


def test_a_subset_of_another_data_set_or_a_changed_file_is_refused(data, listed, config, tmp_path):
    path = tmp_path / "s.json"
    write_subset(path, open_manifest(data), size="100")
    text = path.read_text()
    assert json.loads(text)["made_from"] == {"shards": open_manifest(data).fingerprint}
    with pytest.raises(ShardError, match="no bytes of its own"):
        verify(path)
    with pytest.raises(StorageError, match="another subset"):
        write_subset(path, open_manifest(data), size="101")
    with pytest.raises(ShardError, match="of a data set of frames"):
        write_subset(tmp_path / "t", open_manifest(path), size="50")
    for old, new in (('"n_frames": 100', '"n_frames": 120'), ('"fingerprint"', '"fingerprnt"'), (": {", ": [{")):
        path.write_text(text.replace(old, new))
        with pytest.raises(StorageError):
            open_manifest(path)
    path.write_text(text)
    shutil.rmtree(data)
    with pytest.raises(StorageError, match="does not exist"):
        open_manifest(path)
    write_shards(listed, data, replace(config, seed=5))
    with pytest.raises(ShardError, match="other segments than the data set holds"):
        open_manifest(path)


def test_describe_says_what_is_there(data, tmp_path):
    write_subset(tmp_path / "one", open_manifest(data), only=Filter(subject=("01",)))
    found = describe(data)
    total = sum(70 + i for i in range(6))
    assert (found["kind"], found["n_frames"], found["codec"], found["frame_size"]) == ("shards", total, "zstd", 32)
    assert found["hours"] == pytest.approx(total / 60 / 3600)
    assert found["subjects"] == ["00", "01"]
    assert found["levels"] == ["0", "1", "2"]
    assert found["splits"] == {"train": total - 75, "val": 75}
    assert [p["n_frames"] for p in found["prefixes"]] == []  # the named ones are of thousands
    assert find_datasets(tmp_path) == [data, tmp_path / "one.json"]
    part = describe(tmp_path / "one.json")
    assert (part["kind"], part["n_frames"], part["subjects"]) == ("subset", 71 + 73 + 75, ["01"])
    assert part["made_from"] == {"shards": found["fingerprint"]}
    with pytest.raises(StorageError, match="no finished data set"):
        find_datasets(data / "shards")


def test_from_the_command_line(data, tmp_path, capsys):
    out = tmp_path / "v1.small"
    assert (
        run(
            [
                "subset",
                str(data),
                "--size",
                "120",
                "--subject",
                "sub-00",
                "--subject",
                "01",
                "--out",
                str(out),
                "--json",
            ]
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert (said["subset"], said["n_frames"]) == (f"{out}.json", 120)
    assert run(["shards", "ls", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["n_frames"] for row in rows] == [sum(70 + i for i in range(6)), 120]
    assert run(["shards", "ls", f"{out}.json"]) == 0
    assert "subset" in capsys.readouterr().out
    (data / "shards" / "000077.tar").write_bytes(b"")
    assert run(["shards", "gc", str(data), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["would_remove"] == ["shards/000077.tar"]
    assert run(["shards", "gc", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == ["shards/000077.tar"]
    assert run(["verify", str(data), "--workers", "1", "--json"]) == 0
