"""Damage is named, and repair gives back the same bytes and touches nothing else."""

import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidbrain.cli.app import run
from vidbrain.errors import ResumeError, ShardError, StorageError
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.repair import repair
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards
from vidbrain.testing.videos import toy_frames, write_video


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def flip(root):
    row = open_manifest(root).segments.iloc[3]
    tar = root / "shards" / f"{row['shard']:06d}.tar"
    data = bytearray(tar.read_bytes())
    data[row["offset"] + 5] ^= 1
    tar.write_bytes(data)
    return row["shard"], row["key"]


def cut(root):
    """At a member's boundary, which `tar` reads without a word."""
    tar = root / "shards" / "000001.tar"
    with tarfile.open(tar) as archive:
        member = archive.getmembers()[4]
    tar.write_bytes(tar.read_bytes()[: member.offset])
    with tarfile.open(tar) as archive:
        assert len(archive.getmembers()) == 4
    return 1, member.name.split(".")[0]


def unmark(root):
    (root / "shards" / "000000.json").unlink()
    return 0, ""


def mark_wrongly(root):
    path = root / "shards" / "000001.json"
    record = json.loads(path.read_text())
    record["segments"][1]["offset"] += 512
    path.write_text(json.dumps(record))
    return 1, record["keys"][1]


def lose(root):
    (root / "shards" / "000002.tar").unlink()
    return 2, ""


@pytest.mark.parametrize("damage", [flip, cut, unmark, mark_wrongly, lose])
def test_verify_names_the_damage_and_repair_restores_the_bytes(videos, config, tmp_path, damage):
    root = tmp_path / "d"
    write_shards(videos, root, config)
    before = files_of(root)
    shard, key = damage(root)
    found = verify(root)
    assert {d.shard for d in found} == {shard}
    assert key in {d.key for d in found}
    stamps = {p: p.stat().st_mtime_ns for p in (root / "shards").iterdir() if int(p.stem) != shard}
    assert repair(root, videos) == [shard]
    assert files_of(root) == before
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    assert verify(root) == []
    assert repair(root, videos) == []


@pytest.mark.parametrize("name", ["index.parquet", "dataset.json"])
@pytest.mark.parametrize("how", ["gone", "noise"])
def test_index_and_root_record_are_rebuilt_too(videos, config, tmp_path, name, how):
    root = tmp_path / "d"
    write_shards(videos, root, config)
    before = files_of(root)
    if how == "gone":
        (root / name).unlink()
    else:
        (root / name).write_bytes(b"noise")
    with pytest.raises(StorageError):
        verify(root)
    repair(root, videos)
    assert files_of(root) == before


@pytest.mark.parametrize("name", ["crc32", "part_crc32"])
@pytest.mark.parametrize("marked", [False, True])
def test_a_wrong_checksum_is_found_and_mended(videos, config, tmp_path, name, marked):
    """In the index alone, or in the marker too, where nothing but the bytes can say so."""
    root = tmp_path / "d"
    write_shards(videos, root, config)
    before = files_of(root)
    table = pq.read_table(root / "index.parquet")
    values = table[name].to_pylist()
    values[2] = values[2] ^ 1 if name == "crc32" else [*values[2][:-1], values[2][-1] ^ 1]
    at = table.schema.get_field_index(name)
    field = table.schema.field(name)
    pq.write_table(table.set_column(at, field, pa.array(values, field.type)), root / "index.parquet")
    record = json.loads((root / "dataset.json").read_text())
    with pytest.raises(ShardError, match="the index is damaged: its checksum differs"):
        verify(root)
    # Data sets of earlier versions do not say the index's checksum.
    del record["index_sha256"]
    (root / "dataset.json").write_text(json.dumps(record))
    if marked:
        path = root / "shards" / "000000.json"
        marker = json.loads(path.read_text())
        marker["segments"][2][name] = values[2]
        path.write_text(json.dumps(marker))
    (found,) = verify(root)
    assert found.key == open_manifest(root).segments["key"][2]
    assert repair(root, videos) == ([0] if marked else [])
    assert files_of(root) == before


def test_repair_refuses_another_source(videos, config, tmp_path):
    source, root = tmp_path / "source", tmp_path / "d"
    shutil.copytree(videos, source)
    write_shards(source, root, config)
    flip(root)
    before = files_of(root)
    write_video(source / "play-2.mp4", toy_frames(230, seed=2))
    with pytest.raises(ResumeError, match="play-2 had 231 frames"):
        repair(root, source)
    assert files_of(root) == before
    (root / "plan.json").unlink()
    with pytest.raises(StorageError, match="no plan to rebuild by"):
        repair(root, source)


def test_from_the_command_line(videos, config, tmp_path, capsys):
    root = tmp_path / "d"
    write_shards(videos, root, config)
    flip(root)
    assert run(["verify", str(root), "--workers", "1"]) == 1
    assert "--repair" in capsys.readouterr().err
    assert run(["verify", str(root), "--repair", "--source", str(videos), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rebuilt_shards"] == ["000000.tar"]
    assert run(["verify", str(root), "--workers", "1"]) == 0


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", ".hidden", "a.b", "a\nb"])
@pytest.mark.parametrize("column", ["recording", "key"])
def test_a_name_that_leaves_the_data_set_is_refused(videos, config, tmp_path, column, name):
    root = tmp_path / "d"
    write_shards(videos, root, config)
    change(root, column, name)
    with pytest.raises(ShardError, match="cannot be a name"):
        verify(root)


@pytest.mark.parametrize("column", ["onset_s", "duration_s"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0])
def test_a_time_that_is_none_is_refused(config, tmp_path, column, value):
    write_video(tmp_path / "a.mp4", toy_frames(40))
    (tmp_path / "l.tsv").write_text("path\tsubject\ttask\tonset_s\tduration_s\na.mp4\t01\tx\t2.0\t0.7\n")
    root = tmp_path / "d"
    write_shards(tmp_path / "l.tsv", root, config)
    assert verify(root) == []
    change(root, column, value)
    with pytest.raises(ShardError, match="no time on a scanner's clock"):
        verify(root)


def change(root, column, value):
    table = pq.read_table(root / "index.parquet")
    values = [value, *table[column].to_pylist()[1:]]
    at, field = table.schema.get_field_index(column), table.schema.field(column)
    pq.write_table(table.set_column(at, field, pa.array(values, field.type)), root / "index.parquet")
