"""Root record, index and plan: what one of them says that cannot be is refused before anything is removed by it."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidbrain.cli.app import run
from vidbrain.errors import ShardError, StorageError
from vidbrain.sharding.describe import find_datasets
from vidbrain.sharding.manifest import open_manifest
from vidbrain.sharding.orphans import collect
from vidbrain.sharding.repair import repair
from vidbrain.sharding.subset import write_subset
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards
from vidbrain.storage.info import expected_fingerprint


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def data(videos, config, tmp_path):
    write_shards(videos, tmp_path / "d", config)
    return tmp_path / "d"


def renamed(record):
    """With the fingerprint that belongs to what it says now."""
    record["fingerprint"] = expected_fingerprint("shards", record["config"], record["made_from"])


def sized(size):
    def change(record):
        record["config"]["size"] = size
        renamed(record)

    return change


def without(name):
    def change(record):
        del record["made_from"][name]
        renamed(record)

    return change


def cut_short(record):
    """As if it had one shard less, so that the last one were an orphan."""
    record["n_shards"] -= 1
    for values in record["shards"].values():
        values.pop()


RECORDS = {
    "fewer frames": lambda record: record.update(n_frames=record["n_frames"] - 40),
    "more frames": lambda record: record.update(n_frames=record["n_frames"] + 1),
    "fewer segments": lambda record: record.update(n_segments=record["n_segments"] - 2),
    "fewer shards": cut_short,
    "no number of shards": lambda record: record.pop("n_shards"),
    "a tar that is shorter": lambda record: record["shards"]["n_bytes"].__setitem__(0, 512),
    "a codec that is none": lambda record: record.update(codec=7),
    "too high": lambda record: record.update(height=2**40),
    "too narrow": lambda record: record.update(width=1),
    "no plan": without("plan"),
    "no source": without("source"),
    "a size that is none": sized("many"),
    "a size of another type": sized([1]),
    "another fingerprint": lambda record: record.update(fingerprint="0" * 16),
}


@pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS)
def test_a_root_record_that_cannot_be_is_refused_and_mended(videos, config, data, damage):
    before = files_of(data)
    record = json.loads(before["dataset.json"])
    damage(record)
    (data / "dataset.json").write_text(json.dumps(record))
    damaged = files_of(data)
    for refuse in (open_manifest, verify, collect):
        with pytest.raises(ShardError, match=r"damaged|does not fit") as caught:
            refuse(data)
        assert "--repair" in caught.value.hint
    assert files_of(data) == damaged
    assert repair(data, videos) == []
    assert files_of(data) == before


@pytest.mark.parametrize("name", ["dataset.json", "plan.json"])
def test_records_nested_too_deeply_are_errors_of_ours(videos, config, data, name):
    before = files_of(data)
    (data / name).write_text("[" * 100_000)
    for call in (lambda: write_shards(videos, data, config), lambda: collect(data)):
        with pytest.raises((StorageError, ShardError), match="not valid JSON"):
            call()
    if name == "dataset.json":
        with pytest.raises(StorageError, match="not valid JSON"):
            open_manifest(data)
        repair(data, videos)
        assert files_of(data) == before


PLANS = {
    "a filter that is a list": lambda plan: plan["config"].update(only=[]),
    "no filter": lambda plan: plan["config"].pop("only"),
    "an infinite range": lambda plan: plan["config"].update(to_s=math.inf),
    "a size that is none": lambda plan: plan["config"].update(size="many"),
    "a recording of one number": lambda plan: plan["recordings"].update({"play-0": [150]}),
    "a recording without numbers": lambda plan: plan["recordings"].update({"play-0": 150}),
    "a choice of infinite length": lambda plan: plan.update(
        codec_choice={"codec": "zstd", "measured": [{"codec": "zstd", "bytes_per_frame": math.inf}]}
    ),
}


@pytest.mark.parametrize("damage", PLANS.values(), ids=PLANS)
def test_a_plan_that_cannot_be_is_damaged(videos, config, data, damage):
    plan = json.loads((data / "plan.json").read_text())
    damage(plan)
    (data / "plan.json").write_text(json.dumps(plan))
    for call in (lambda: write_shards(videos, data, config), lambda: repair(data, videos), lambda: collect(data)):
        with pytest.raises(StorageError, match="the record of the plan is damaged"):
            call()


@pytest.mark.parametrize(("column", "value"), [("shard", 99), ("offset", 2**40)])
def test_an_index_of_an_older_form_that_leaves_its_shards_is_refused(data, column, value):
    """Whose checksum no record says."""
    record = json.loads((data / "dataset.json").read_text())
    del record["index_sha256"]
    (data / "dataset.json").write_text(json.dumps(record))
    table = pq.read_table(data / "index.parquet")
    at, field = table.schema.get_field_index(column), table.schema.field(column)
    values = [*table[column].to_pylist()[:-1], value]
    pq.write_table(table.set_column(at, field, pa.array(values, field.type)), data / "index.parquet")
    with pytest.raises(ShardError, match="the index does not fit the root record"):
        open_manifest(data)


def test_an_index_that_lacks_rows_says_what_helps(videos, config, data):
    before = files_of(data)
    pq.write_table(pq.read_table(data / "index.parquet").slice(0, 3), data / "index.parquet")
    write_shards(videos, data, config)  # which looks at the root record alone
    with pytest.raises(ShardError, match="the index holds 3 segments") as caught:
        open_manifest(data)
    assert "verify --repair" in caught.value.hint
    repair(data, videos)
    assert files_of(data) == before


def test_a_subset_of_a_subset_is_refused(data, tmp_path):
    write_subset(tmp_path / "a", open_manifest(data), size="100")
    record = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**record, "data": "a.json"}))
    with pytest.raises(ShardError, match="the subset names a subset"):
        open_manifest(tmp_path / "a.json")


def test_a_folder_in_the_place_of_a_file_is_an_error_of_ours(videos, config, data):
    (data / "shards" / "000001.tar").unlink()
    (data / "shards" / "000001.tar").mkdir()
    assert {found.shard for found in verify(data)} == {1}
    (data / "dataset.json").unlink()
    for call in (lambda: repair(data, videos), lambda: write_shards(videos, data, config)):
        with pytest.raises(StorageError, match="a folder stands where a file belongs"):
            call()


def test_a_name_that_is_too_long_is_an_error_of_ours(tmp_path):
    for call in (open_manifest, find_datasets):
        with pytest.raises(StorageError, match="a name is too long"):
            call(tmp_path / ("x" * 300))


def test_gc_takes_the_work_folder_of_a_url(videos, config, honest, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vidbrain.sharding.plan.LANDMARKS", (96, 200, 400))
    work = tmp_path / "work"
    options = ["--frame-size", "32", "--segment-frames", "32", "--shard-frames", "128", "--codec", "zstd"]
    options += ["--size", "96", "--keep-spool", "--workers", "1", "--json"]
    assert run(["shard", str(videos), "--out", honest.url, "--work", str(work), *options]) == 0
    assert list(work.rglob("spool"))
    capsys.readouterr()
    assert run(["shards", "gc", honest.url, "--work", str(work), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["removed"]) == 1
    assert not list(work.iterdir())
