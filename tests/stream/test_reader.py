"""The reader on every codec: clips cut from parts, written where they are wanted, checked before they are decoded."""

import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidbrain.errors import ShardError
from vidbrain.records import ClipSpec
from vidbrain.sharding.codecs import CODECS
from vidbrain.sharding.manifest import open_manifest, shard_path
from vidbrain.sharding.plan import ShardConfig
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards
from vidbrain.stream.loader import stream
from vidbrain.stream.reader import SegmentReader
from vidbrain.testing.videos import toy_frames
from vidbrain.video.decode import read_frames

NAMES = sorted(CODECS)


@pytest.fixture(scope="module")
def roots(videos, tmp_path_factory):
    """The same frames, once by each codec."""
    root = tmp_path_factory.mktemp("data")
    config = ShardConfig(frame_size=32, segment_frames=64, shard_frames=128, clip_frames=8, clip_step=4)
    for name in NAMES:
        write_shards(videos, root / name, replace(config, codec=name))
    return {name: root / name for name in NAMES}


@pytest.fixture(scope="module", params=NAMES)
def data(request, roots):
    return roots[request.param]


def longest(manifest):
    return int(manifest.segments["n_stored"].argmax())


def flip(root, position, at):
    """Flip one bit of a segment's member; return the key."""
    row = open_manifest(root).segments.iloc[position]
    path = shard_path(root, row["shard"])
    data = bytearray(path.read_bytes())
    data[row["offset"] + at] ^= 4
    path.write_bytes(data)
    return row["key"]


def test_every_frame_is_there_margins_included(data, videos):
    manifest = open_manifest(data)
    codec = CODECS[manifest.info["codec"]]
    with SegmentReader(manifest) as reader:
        for position, row in enumerate(manifest.segments.itertuples()):
            frames = np.concatenate(list(read_frames(videos / f"{row.recording}.mp4", size=(32, 32))))
            frames = frames[row.start_frame : row.start_frame + row.n_stored]
            found = reader.frames(position, row.start_frame, row.start_frame + row.n_stored)
            assert found.shape == frames.shape
            if codec.lossless:
                np.testing.assert_array_equal(found, frames)
            else:
                assert 10 * np.log10(255**2 / np.mean((found.astype(float) - frames) ** 2)) > 30
                assert np.abs(found.astype(float) - frames).mean() < 5


def test_sources_with_b_frames_and_open_groups_keep_every_frame_in_order(tmp_path):
    """The source's pictures are stored out of order; those of the data set are not."""
    frames = toy_frames(90, height=48, width=48)
    (tmp_path / "source").mkdir()
    with av.open(str(tmp_path / "source" / "film.mkv"), "w") as container:
        options = {"crf": "4", "bf": "3", "g": "24", "x264-params": "open-gop=1"}
        video = container.add_stream("libx264", rate=30, options=options)
        video.height, video.width, video.pix_fmt = 48, 48, "yuv444p"
        for image in [*(av.VideoFrame.from_ndarray(f, format="rgb24") for f in frames), None]:
            container.mux(video.encode(image))
    config = ShardConfig(frame_size=48, segment_frames=40, shard_frames=80, clip_frames=4, clip_step=2)
    for name in NAMES:
        write_shards(tmp_path / "source", tmp_path / name, replace(config, codec=name))
        manifest = open_manifest(tmp_path / name)
        assert manifest.segments["n_stored"].sum() == 90 + 6 + 6
        with SegmentReader(manifest) as reader:
            for position, row in enumerate(manifest.segments.itertuples()):
                found = reader.frames(position, row.start_frame, row.start_frame + row.n_stored)
                for number, frame in enumerate(found[::7]):
                    distance = np.abs(frames.astype(int) - frame).mean(axis=(1, 2, 3))
                    assert distance.argmin() == row.start_frame + 7 * number


@pytest.mark.parametrize("step", [1, 3, 4, 16, 17, 40])
def test_a_clip_is_a_cut_of_the_segment_wherever_it_begins(data, step):
    manifest = open_manifest(data)
    position = longest(manifest)
    row = manifest.segments.iloc[position]
    start, stored = int(row["start_frame"]), int(row["n_stored"])
    with SegmentReader(manifest) as reader:
        whole = reader.frames(position, start, start + stored)
        for first in (0, 1, 15, 16, 17, 31):
            n = min(3, (stored - 1 - first) // step + 1)
            keep = range(start + first, start + first + (n - 1) * step + 1, step)
            batch = np.full((3, n, 32, 32, 3), 99, np.uint8)
            starts = np.array([keep.start])
            reader.read_clips(np.array([position]), starts, ClipSpec(n, step), batch[1:2])
            np.testing.assert_array_equal(batch[1], whole[first : first + (n - 1) * step + 1 : step])
            assert (batch[[0, 2]] == 99).all()
        with pytest.raises(ValueError, match="not stored"):
            reader.frames(position, start, start + stored + 1)


def test_only_the_parts_of_a_clip_are_read(data):
    manifest = open_manifest(data)
    position = longest(manifest)
    row = manifest.segments.iloc[position]
    with SegmentReader(manifest) as reader:
        reader.frames(position, int(row["start_frame"]) + 17, int(row["start_frame"]) + 31)
        assert reader.n_bytes == row["parts"][1]


def test_the_stream_gives_the_readers_frames(data):
    manifest, clip = open_manifest(data), ClipSpec(8, 4, 5)
    n_clips = 0
    with SegmentReader(manifest) as reader:
        for batch in stream(data, clip=clip, batch_size=6, seed=1, tail="mask"):
            batch = batch.unmasked()
            for video, segment, start in zip(batch.video, batch.segment, batch.start_frame, strict=True):
                np.testing.assert_array_equal(video, reader.clip(int(segment), int(start), clip))
                n_clips += 1
    lengths = manifest.recordings["recording_frames"]
    assert n_clips == sum(len(range(0, n - clip.span + 1, 5)) for n in lengths)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_one_flipped_bit_is_an_error_that_names_shard_and_key(data, tmp_path, share):
    root = tmp_path / "d"
    shutil.copytree(data, root)
    row = open_manifest(root).segments.iloc[1]
    key = flip(root, 1, int(row["n_bytes"] * share))
    with SegmentReader(open_manifest(root)) as reader:
        first = int(row["start_frame"])
        with pytest.raises(ShardError, match=r"part . of the segment is damaged: its checksum") as caught:
            reader.frames(1, first, first + int(row["n_stored"]))
        assert key in str(caught.value)
        assert f"{row['shard']:06d}.tar" in str(caught.value)
        other = open_manifest(root).segments.iloc[0]
        reader.frames(0, int(other["start_frame"]), int(other["start_frame"]) + 16)
    assert key in {damage.key for damage in verify(root)}


def test_a_truncated_member_is_an_error(data, tmp_path):
    root = tmp_path / "d"
    shutil.copytree(data, root)
    rows = open_manifest(root).segments
    row = rows.iloc[-1]
    path, first = shard_path(root, row["shard"]), int(row["start_frame"])
    path.write_bytes(path.read_bytes()[: row["offset"] + row["n_bytes"] // 2])
    with SegmentReader(open_manifest(root)) as reader, pytest.raises(ShardError, match="bytes too early"):
        reader.frames(len(rows) - 1, first, first + int(row["n_stored"]))


def replace_column(root, name, values):
    table = pq.read_table(root / "index.parquet")
    at = table.schema.get_field_index(name)
    pq.write_table(table.set_column(at, name, pa.array(values, table.schema.field(name).type)), root / "index.parquet")
    forget_checksum(root)


def forget_checksum(root):
    """As earlier versions wrote the root record: it does not say the index's checksum."""
    record = json.loads((root / "dataset.json").read_text())
    record.pop("index_sha256", None)
    (root / "dataset.json").write_text(json.dumps(record))


def test_an_index_without_checksums_of_parts_is_read(data, tmp_path):
    """As earlier versions wrote it: a part is then trusted as far as its codec can tell."""
    root = tmp_path / "d"
    shutil.copytree(data, root)
    pq.write_table(pq.read_table(root / "index.parquet").drop_columns("part_crc32"), root / "index.parquet")
    forget_checksum(root)
    with SegmentReader(open_manifest(root)) as old, SegmentReader(open_manifest(data)) as new:
        position = longest(open_manifest(root))
        first = int(open_manifest(root).segments.iloc[position]["start_frame"])
        np.testing.assert_array_equal(old.frames(position, first, first + 40), new.frames(position, first, first + 40))
    assert verify(root) == []


def test_shards_of_earlier_versions_are_finished_and_read(videos, config, tmp_path):
    """Killed before the index, with markers that know no checksums of parts."""
    before = write_shards(videos, tmp_path / "d", config)
    for path in (tmp_path / "d" / "shards").glob("*.json"):
        marker = json.loads(path.read_text())
        for place in marker["segments"]:
            del place["part_crc32"]
        path.write_text(json.dumps(marker))
    for name in ("dataset.json", "index.parquet"):
        (tmp_path / "d" / name).unlink()
    assert write_shards(videos, tmp_path / "d", config)["fingerprint"] == before["fingerprint"]
    manifest = open_manifest(tmp_path / "d")
    assert manifest.segments["part_crc32"].isna().all()
    with SegmentReader(manifest) as reader:
        position = longest(manifest)
        row = manifest.segments.iloc[position]
        first = int(row["start_frame"])
        frames = np.concatenate(list(read_frames(videos / f"{row['recording']}.mp4", size=(32, 32))))
        np.testing.assert_array_equal(reader.frames(position, first, first + 20), frames[first : first + 20])


def test_parts_that_hold_other_frames_than_the_index_says_are_refused(data, tmp_path):
    """The index says one frame less than the last part holds; and that all parts are one."""
    rows = open_manifest(data).segments
    position = int(np.flatnonzero(rows["n_stored"] > rows["n_frames"])[0])
    row = rows.iloc[position]
    first = int(row["start_frame"])
    lies = (("n_stored", row["n_stored"] - 1, r"holds \d+ frames, the index says"), ("parts", [row["n_bytes"]], "part"))
    for name, value, said in lies:
        root = tmp_path / name
        shutil.copytree(data, root)
        replace_column(root, "part_crc32", [None] * len(rows))
        replace_column(root, name, [*rows[name][:position], value, *rows[name][position + 1 :]])
        with SegmentReader(open_manifest(root)) as reader, pytest.raises(ShardError, match=said) as caught:
            reader.frames(position, first, first + int(row["n_stored"]) - 1)
        assert row["key"] in str(caught.value)


def test_a_number_of_checksums_that_is_not_that_of_the_parts_is_refused(data, tmp_path):
    shutil.copytree(data, tmp_path / "d")
    sums = [sums[:-1] for sums in open_manifest(data).segments["part_crc32"]]
    replace_column(tmp_path / "d", "part_crc32", sums)
    with pytest.raises(ShardError, match="another number of parts than of their checksums"):
        open_manifest(tmp_path / "d")


def test_an_unknown_codec_is_refused_when_the_data_set_is_opened(data, tmp_path):
    root = tmp_path / "d"
    shutil.copytree(data, root)
    record = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**record, "codec": "av1"}))
    with pytest.raises(ShardError, match="unknown codec 'av1'"):
        stream(root, clip=ClipSpec(8, 4, 5), batch_size=2)


def test_webdataset_reads_every_key_once_where_vidbrain_is_not_installed(roots):
    """What the page on the format tells a foreign reader, codec by codec."""
    script = textwrap.dedent("""
        import io, json, sys
        sys.modules["vidbrain"] = None
        import av, numpy as np, webdataset as wds, zstandard
        from PIL import Image
        seen = {}
        for sample in wds.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False):
            codec = next(kind for kind in ("frames.zst", "mp4", "mjpeg") if kind in sample)
            key = codec + " " + sample["__key__"]
            shape = json.loads(sample["json"])["shape"]
            if codec == "frames.zst":
                packed = io.BytesIO(sample["frames.zst"])
                raw = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True).read()
                frames = np.frombuffer(raw, np.uint8).reshape(shape)
            elif codec == "mp4":
                with av.open(io.BytesIO(sample["mp4"])) as video:
                    frames = np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)])
            else:
                n, h, w, _ = shape
                with av.open(io.BytesIO(sample["mjpeg"]), format="mjpeg") as video:
                    sheets = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
                cut = [s.reshape(s.shape[0] // h, h, -1, w, 3).swapaxes(1, 2).reshape(-1, h, w, 3) for s in sheets]
                frames = np.concatenate(cut)
            assert list(frames.shape) == shape, (frames.shape, shape)
            assert key not in seen
            seen[key] = [round(float(mean), 3) for mean in frames.mean(axis=(1, 2, 3))]
        print(json.dumps(seen))
    """)
    opened = {name: open_manifest(root) for name, root in roots.items()}
    shards = [
        str(shard_path(roots[name], shard))
        for name, manifest in opened.items()
        for shard in sorted(manifest.segments["shard"].unique())
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *shards], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    for name, manifest in opened.items():
        with SegmentReader(manifest) as reader:
            for position, row in enumerate(manifest.segments.itertuples()):
                ours = reader.frames(position, row.start_frame, row.start_frame + row.n_stored)
                theirs = seen.pop(f"{CODECS[name].extension} {row.key}")
                np.testing.assert_allclose(theirs, ours.mean(axis=(1, 2, 3)), atol=1)
    assert not seen
