"""Trackers hear what metrics.jsonl holds, read back by their own readers; without one, the error comes before work."""

import json
import struct
import sys
from dataclasses import replace

import pytest

from vidbrain.errors import MissingExtraError
from vidbrain.training.gpt import train_gpt
from vidbrain.training.trackers import scalars


@pytest.fixture
def config(gpt_config):
    return replace(gpt_config, steps=6, log_every=2, eval_every=3, checkpoint_every=3)


def told(root):
    """What trackers should know: {(name, step): value}."""
    rows = map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
    return {(name, row["step"]): value for row in rows for name, value in scalars(row).items()}


def test_scalars_are_the_finite_numbers_of_a_row():
    row = {"step": 3, "split": "val", "loss": 0.5, "clips": 7, "psnr": None, "grad_norm": float("inf"), "text": "x"}
    assert scalars(row) == {"val/loss": 0.5, "val/clips": 7.0}


def test_tensorboard_reads_the_rows_of_a_killed_training_once(codes, config, tmp_path, stop_at, stop):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(config, track=("tensorboard",))
    with pytest.raises(stop):
        train_gpt(codes, tmp_path, config, progress=stop_at(5))  # told step 4, saved step 3
    train_gpt(codes, tmp_path, config)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {(name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    assert found == pytest.approx(told(tmp_path), rel=1e-6)
    assert ("train/loss", 4) in found
    assert ("val/loss", 6) in found


def test_trackio_keeps_the_rows_on_this_machine(codes, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    train_gpt(codes, tmp_path / "run", replace(config, track=("trackio",)))
    (run,) = SQLiteStorage.get_runs("vidbrain")
    rows = SQLiteStorage.get_logs("vidbrain", run)
    found = {(name, row["step"]): value for row in rows for name, value in row.items() if "/" in name}
    assert found == pytest.approx(told(tmp_path / "run"))
    assert capsys.readouterr().out == ""


def test_wandb_writes_an_offline_run(codes, config, tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    train_gpt(codes, tmp_path, replace(config, track=("wandb",)))
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    # After 7 bytes, records in blocks of 32 KiB as LevelDB logs them: checksum, length, kind (1: whole), data.
    data, at, found = path.read_bytes(), 7, {}
    while at + 7 < len(data) < 32_768:
        _, length, kind = struct.unpack_from("<IHB", data, at)
        assert kind == 1
        record = wandb_internal_pb2.Record.FromString(data[at + 7 : at + 7 + length])
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        found |= {(name, items["_step"]): value for name, value in items.items() if "/" in name}
        at += 7 + length
    assert found == pytest.approx(told(tmp_path))


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_work(codes, config, tmp_path, monkeypatch, name):
    # As for the machinery of imports where there is no such package.
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=f"{name} is not installed") as caught:
        train_gpt(codes, tmp_path, replace(config, track=(name,)))
    assert f"pip install {name}" in caught.value.hint
    assert not list(tmp_path.iterdir())
