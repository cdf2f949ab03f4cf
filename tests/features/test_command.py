"""`vidbrain features` as a user calls it."""

from __future__ import annotations

import json

import pytest

from vidbrain.cli.app import run
from vidbrain.cli.features import folder_name
from vidbrain.features.store import open_features


def test_pixels_from_the_command_line(world, tmp_path, capsys):
    out = tmp_path / "pixels"
    arguments = ["features", "pixels", "--shards", str(world.data), "--out", str(out), "--layers", "pixels.grey"]
    assert run([*arguments, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["runs"], plan["frames"], plan["features"]) == (2, 691, {"pixels.grey": 400})
    assert not out.exists()
    assert run([*arguments, "--tr-s", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    store = open_features(out)
    assert (result["features"], store.tr_s) == ({"pixels.grey": 400}, 2.0)
    assert result["volumes"] == sum(store.info["n_trs"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["pixels", "--layers", "pixels.gray"], "did you mean 'pixels.grey'"),
        (["motion", "--layers", "motion.energie"], "did you mean 'motion.energy'"),
        (["motion", "--grid", "4"], "motion.energy has a single position"),
        (["motion", "--stride", "4"], "leave out --stride"),
        (["motion", "--time", "end"], "leave out --time"),
        (["model", "--size", "8", "8", "--vqvae", "x"], "--size has no meaning for model"),
        (["buttons", "--pool", "mean"], "rows with times of their own"),
        (["buttons", "--game", "/nonexistent"], "there is no such file"),
        (["pixels", "--grid", "4", "--n-out", "3"], "different poolings"),
        (["pixel"], "there is no source 'pixel'; did you mean 'pixels'?"),
        (["untrained:pixels"], "there is no source 'untrained:pixels'"),
        (["hf"], "there is no source 'hf'"),
        (["hf:/nonexistent"], "there is no config.json"),
        (["module:os.system"], "imports os and calls system() of it: code that can do anything you can"),
        (["module:os; rm -rf x", "--trust"], "is not the name of a factory"),
        (["module:nowhere.factory", "--trust"], "failed: ModuleNotFoundError"),
        (["arrays:/nonexistent"], "there is no file of rows"),
        (["drivers", "--pool", "mean"], "drivers are not pooled"),
        (["drivers", "--truth", "/nonexistent"], "does not exist"),
        (["model", "--pool", "mean", "--grid", "4", "--vqvae", "x"], "no meaning"),
        (["pixels", "--tr-s", "1490"], "cannot be right"),
    ],
)
def test_mistakes_are_told_in_one_screen(world, tmp_path, capsys, extra, message):
    assert run(["features", *extra, "--shards", str(world.data), "--out", str(tmp_path / "out")]) in (1, 2)
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_folders_are_named_by_their_source():
    named = {"pixels": "pixels", "hf:models/vjepa2": "hf-vjepa2", "untrained:timm:/a/vit b": "untrained-timm-vit-b"}
    named["module:lab.nets.small"] = "module-lab.nets.small"
    assert {source: folder_name(source) for source in named} == named
