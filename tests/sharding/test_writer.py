import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidbrain import cluster
from vidbrain.errors import ResumeError, ShardError, StorageError, VideoError
from vidbrain.sharding.codecs import Zstd
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards
from vidbrain.testing.videos import toy_frames, write_video
from vidbrain.video.decode import read_frames


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_every_segment_holds_the_frames_of_its_video(videos, config, tmp_path):
    write_shards(videos, tmp_path / "d", config)
    manifest = open_manifest(tmp_path / "d")
    for row in manifest.segments.itertuples():
        with (tmp_path / "d" / "shards" / f"{row.shard:06d}.tar").open("rb") as handle:
            handle.seek(row.offset)
            data = handle.read(row.n_bytes)
        frames = np.concatenate(
            [Zstd().decode_part(data[sum(row.parts[:i]) :][: row.parts[i]], 32, 32) for i in range(len(row.parts))]
        )
        decoded = np.concatenate(list(read_frames(videos / f"{row.recording}.mp4", size=(32, 32))))
        np.testing.assert_array_equal(frames, decoded[row.start_frame : row.start_frame + row.n_stored])


def test_a_foreign_reader_needs_only_tar_zstd_and_numpy(videos, config, tmp_path):
    """In a process that cannot import vidbrain, webdataset reads every key once."""
    write_shards(videos, tmp_path / "d", config)
    script = textwrap.dedent("""
        import io, json, sys
        sys.modules["vidbrain"] = None
        import numpy as np, webdataset as wds, zstandard
        seen = {}
        shards = sys.argv[1:]
        for sample in wds.WebDataset(shards, shardshuffle=False, empty_check=False):
            facts = json.loads(sample["json"])
            packed = io.BytesIO(sample["frames.zst"])
            raw = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True).read()
            frames = np.frombuffer(raw, np.uint8).reshape(facts["shape"])
            assert sample["__key__"] not in seen
            seen[sample["__key__"]] = int(frames.sum())
        print(json.dumps(seen))
    """)
    shards = sorted(map(str, (tmp_path / "d" / "shards").glob("*.tar")))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *shards], capture_output=True, text=True, check=True
    )
    manifest = open_manifest(tmp_path / "d")
    assert set(json.loads(done.stdout)) == set(manifest.segments["key"])
    with tarfile.open(shards[0]) as tar:
        assert all(m.mtime == 0 and m.uid == 0 for m in tar.getmembers())


def test_bytes_do_not_depend_on_workers_and_grow_without_a_rewrite(videos, config, tmp_path):
    write_shards(videos, tmp_path / "one", config)
    with cluster.client("local", 2) as client:
        write_shards(videos, tmp_path / "two", config, client=client)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    small = write_shards(videos, tmp_path / "small", replace(config, size="128"))
    assert small["n_frames"] == 128
    whole, part = files_of(tmp_path / "one"), files_of(tmp_path / "small")
    tars = [name for name in part if name.endswith(".tar")]
    assert tars
    assert all(part[name] == whole[name] for name in tars)
    assert open_manifest(tmp_path / "small").segments["n_frames"].sum() == 128


def test_the_same_command_does_nothing_and_another_is_refused(videos, config, tmp_path):
    first = write_shards(videos, tmp_path / "d", config)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*")}
    assert write_shards(videos, tmp_path / "d", config) == first
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*")}
    with pytest.raises(ResumeError, match="frame_size was 32, is 16"):
        write_shards(videos, tmp_path / "d", replace(config, frame_size=16))


def test_kill_at_any_moment_then_the_same_command_gives_the_same_bytes(videos, config, tmp_path):
    write_shards(videos, tmp_path / "whole", config)
    script = textwrap.dedent(f"""
        import sys
        from vidbrain.sharding.plan import ShardConfig
        from vidbrain.sharding.writer import write_shards
        print("begun", flush=True)
        write_shards({str(videos)!r}, sys.argv[1], {config!r})
    """)
    kills = 0
    for attempt, delay in enumerate((0.02, 0.06, 0.12, 0.25)):
        root = tmp_path / f"killed-{attempt}"
        process = subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        kills += not (root / "dataset.json").exists()
        write_shards(videos, root, config)
        assert files_of(root) == files_of(tmp_path / "whole")
    assert kills


def test_an_unfinished_data_set_is_never_read_as_whole(videos, config, tmp_path):
    write_shards(videos, tmp_path / "d", config)
    (tmp_path / "d" / "dataset.json").unlink()
    with pytest.raises(StorageError, match="unfinished"):
        open_manifest(tmp_path / "d")
    with pytest.raises(ResumeError, match="another plan"):
        write_shards(videos, tmp_path / "d", replace(config, seed=9))
    write_shards(videos, tmp_path / "d", config)


@pytest.mark.parametrize("damage", ["flip", "cut", "marker", "tar"])
def test_verify_names_what_is_damaged(videos, config, tmp_path, damage):
    write_shards(videos, tmp_path / "d", config)
    assert verify(tmp_path / "d") == []
    manifest = open_manifest(tmp_path / "d")
    row = manifest.segments.iloc[3]
    tar = tmp_path / "d" / "shards" / f"{row['shard']:06d}.tar"
    data = bytearray(tar.read_bytes())
    if damage == "flip":
        data[row["offset"] + 5] ^= 1
        tar.write_bytes(data)
    elif damage == "cut":
        tar.write_bytes(data[: row["offset"] - 512])
    elif damage == "marker":
        tar.with_suffix(".json").unlink()
    else:
        tar.unlink()
    found = verify(tmp_path / "d")
    assert found
    assert {d.shard for d in found} == {row["shard"]}
    if damage in ("flip", "cut"):
        assert row["key"] in {d.key for d in found}


def test_a_part_that_claims_gigabytes_is_refused():
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(10**8))
    with pytest.raises(ShardError):
        Zstd().decode_part(bomb, 32, 32)
    with pytest.raises(ShardError, match="damaged"):
        Zstd().decode_part(b"not zstd", 32, 32)
    with pytest.raises(ShardError, match="not whole frames"):
        Zstd().decode_part(zstandard.ZstdCompressor().compress(bytes(100)), 32, 32)


def test_bad_sources_are_refused_before_anything_is_written(config, tmp_path):
    with pytest.raises(VideoError):
        write_shards(tmp_path / "nowhere", tmp_path / "d", config)
    (tmp_path / "src").mkdir()
    write_video(tmp_path / "src" / "good.mp4", toy_frames(40))
    (tmp_path / "src" / "bad.mp4").write_bytes(b"not a video")
    with pytest.raises(VideoError, match="bad"):
        write_shards(tmp_path / "src", tmp_path / "d", config)
    assert not (tmp_path / "d").exists()


def test_a_read_only_output_is_one_clear_error(videos, config, tmp_path):
    (tmp_path / "d").write_bytes(io.BytesIO(b"a file is in the way").getvalue())
    with pytest.raises(StorageError):
        write_shards(videos, tmp_path / "d", config)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, videos):
    root = tmp_path_factory.mktemp("whole") / "d"
    write_shards(videos, root, ShardConfig(frame_size=16, segment_frames=32))
    return root


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("offset", -5),
        ("shard", -1),
        ("n_stored", 1 << 40),
        ("n_frames", 1 << 40),
        ("n_bytes", 1 << 44),
        ("start_frame", 2**62),
    ],
)
def test_an_impossible_index_is_refused_when_it_is_opened(whole, tmp_path, column, value):
    shutil.copytree(whole, tmp_path / "d")
    table = pq.read_table(tmp_path / "d" / "index.parquet")
    values = table[column].to_pylist()
    values[-1] = value
    position = table.schema.get_field_index(column)
    changed = table.set_column(position, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    pq.write_table(changed, tmp_path / "d" / "index.parquet")
    with pytest.raises(ShardError, match="the index is damaged"):
        open_manifest(tmp_path / "d")


@pytest.mark.parametrize("parts", [[-7, 7], [2**61], [], [1]])
def test_impossible_parts_are_refused_when_the_index_is_opened(whole, tmp_path, parts):
    shutil.copytree(whole, tmp_path / "d")
    table = pq.read_table(tmp_path / "d" / "index.parquet")
    values = [*table["parts"].to_pylist()[:-1], parts]
    position = table.schema.get_field_index("parts")
    pq.write_table(
        table.set_column(position, table.schema.field("parts"), pa.array(values, pa.list_(pa.int64()))),
        tmp_path / "d" / "index.parquet",
    )
    with pytest.raises(ShardError, match="do not add up"):
        open_manifest(tmp_path / "d")


def test_a_column_of_another_type_is_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "d")
    table = pq.read_table(tmp_path / "d" / "index.parquet")
    position = table.schema.get_field_index("offset")
    pq.write_table(
        table.set_column(position, "offset", table["offset"].cast(pa.string())), tmp_path / "d" / "index.parquet"
    )
    with pytest.raises(ShardError, match="another type: offset"):
        open_manifest(tmp_path / "d")


@pytest.mark.parametrize(("name", "value"), [("n_segments", "many"), ("height", None), ("width", 0), ("margin", -1)])
def test_a_root_record_without_its_numbers_is_refused(whole, tmp_path, name, value):
    shutil.copytree(whole, tmp_path / "d")
    path = tmp_path / "d" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ShardError, match=f"root record is damaged: {name}"):
        open_manifest(tmp_path / "d")


def test_a_kill_just_after_the_root_record_leaves_no_spool(videos, config, tmp_path):
    write_shards(videos, tmp_path / "d", config)
    before = files_of(tmp_path / "d")
    (tmp_path / "d" / "spool").mkdir()
    (tmp_path / "d" / "spool" / "play-0.bin").write_bytes(b"left behind")
    write_shards(videos, tmp_path / "d", config)
    assert files_of(tmp_path / "d") == before
    assert not (tmp_path / "d" / "spool").exists()
