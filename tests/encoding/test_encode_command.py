"""`vidbrain encode` on stores on disk."""

import json

import nibabel
import numpy as np
import pytest
import xarray as xr

from vidbrain.bold.store import open_bold
from vidbrain.cli.app import run
from vidbrain.features.store import open_features, write_run
from vidbrain.storage.info import write_info
from vidbrain.storage.zarrs import write_dataset
from vidbrain.testing.brains import TR_S, toy_world


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    features, bold = toy_world((60, 50, 55), n_signal=40, n_noise=40)
    layers = ("shallow", "deep")
    for label in bold.runs:
        values = features.values["toy"][label]
        for layer, columns in zip(layers, (values[:, :4], values), strict=True):
            n = np.full(len(values), 89)
            write_run(
                root / "set",
                layer,
                label,
                features=columns,
                valid=np.ones(len(n), bool),
                n_frames=n,
                attributes={"tr_s": TR_S},
            )
        write_dataset(root / "bold" / f"{label}.zarr", bold.open(label))
    config = {"layers": [{"name": name} for name in layers], "tr_s": TR_S}
    write_info(root / "set", "features", config=config, made_from={}, facts={"runs": list(bold.runs)})
    facts = {
        "runs": [{"label": label, "n_trs": len(values)} for label, values in bold.values.items()],
        "tr_s": TR_S,
        "n_voxels": bold.n_voxels,
        "shape": bold.shape,
        "affine": bold.affine.tolist(),
        "simulated": True,
        "space": "MNI152NLin2009cAsym",
    }
    write_info(root / "bold", "bold", config={}, made_from={}, facts=facts)
    assert open_features(root / "set").layers == list(layers)
    assert open_bold(root / "bold").n_voxels == 80
    return root


def arguments(stores, out, *more):
    return ["encode", str(stores / "set"), str(stores / "bold"), "--out", str(out), "--workers", "1", *more]


def test_command_writes_result_and_maps(stores, tmp_path, capsys):
    command = arguments(stores, tmp_path, "--layer", "deep", "--delays", "2", "3", "--n-permutations", "200", "--json")
    assert run(command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["simulated"] is True
    assert facts["n_columns"] == 24
    assert facts["significant_share"] > 0.4
    assert len(facts["maps"]) == 4
    assert nibabel.load(facts["maps"][0]).shape == (4, 4, 6)
    with xr.open_zarr(tmp_path / "result.zarr", chunks=None) as data:
        assert facts["median_r"] == pytest.approx(float(np.median(data["r_mean"])))
    before = (tmp_path / "info.json").read_bytes()
    assert run(command) == 0
    assert (tmp_path / "info.json").read_bytes() == before


def test_table_names_simulated_bold(stores, tmp_path, capsys):
    assert run(arguments(stores, tmp_path, "--layer", "shallow", "deep", "--n-permutations", "0")) == 0
    out = capsys.readouterr().out
    assert out.startswith("simulated BOLD")
    assert "median r" in out


def test_dry_run_writes_nothing(stores, tmp_path, capsys):
    assert run(arguments(stores, tmp_path / "none", "--layer", "deep", "--dry-run", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["worker_bytes"] > 0
    assert facts["blocks"] == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--layer", "dep"), "did you mean 'deep'"),
        ((), "the features have 2 layers: shallow, deep"),
        (("--layer", "deep", "--delays", "-1"), "delays must be different"),
        (("--layer", "deep", "--n-alphas", "0"), "n_alphas must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_error_before_anything_is_written(stores, tmp_path, capsys, more, message):
    assert run(arguments(stores, tmp_path / "none", *more)) != 0
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert not (tmp_path / "none").exists()


def test_missing_stores_are_named(stores, tmp_path, capsys):
    assert run(["encode", str(tmp_path / "nothing"), str(stores / "bold")]) == 1
    assert "nothing" in capsys.readouterr().err
