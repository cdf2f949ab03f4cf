"""Features and BOLD in a bucket give the result that they give in a folder."""

import json

import numpy as np
import pytest

from vidbrain.cli.app import run
from vidbrain.features.store import write_run
from vidbrain.storage.info import write_info
from vidbrain.storage.zarrs import open_dataset, write_dataset
from vidbrain.testing.brains import TR_S, toy_world
from vidbrain.testing.servers import moto_server


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    features, bold = toy_world((40, 45, 50), n_features=4, n_signal=16, n_noise=16)
    for run_label in bold.runs:
        values = features.values["toy"][run_label]
        valid = np.ones(len(values), bool)
        write_run(root / "toy", "layer", run_label, features=values, valid=valid, attributes={"tr_s": TR_S})
        n = len(values)
        data = bold.open(run_label)
        write_dataset(root / "bold" / f"{run_label}.zarr", data, chunks={"bold": (n, 4)}, shards={"bold": (n, 16)})
    config = {"layers": [{"name": "layer"}], "tr_s": TR_S}
    write_info(root / "toy", "features", config=config, made_from={}, facts={"runs": list(bold.runs)})
    facts = {"runs": [{"label": label, "n_trs": len(v)} for label, v in bold.values.items()], "tr_s": TR_S}
    facts |= {"n_voxels": bold.n_voxels, "shape": bold.shape, "affine": bold.affine.tolist()}
    facts |= {"simulated": True, "space": "MNI152NLin2009cAsym"}
    write_info(root / "bold", "bold", config={}, made_from={}, facts=facts)
    return root


def test_encode_from_a_bucket(stores, tmp_path, monkeypatch, capsys):
    options = ["--n-permutations", "20", "--json", "--workers"]
    local = ["encode", str(stores / "toy"), str(stores / "bold"), "--out", str(tmp_path / "here")]
    assert run([*local, *options, "1"]) == 0
    with moto_server("bucket") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        assert run(["push", str(stores / "toy"), "s3://bucket/toy"]) == 0
        assert run(["push", str(stores / "bold"), "s3://bucket/bold"]) == 0
        capsys.readouterr()
        remote = ["encode", "s3://bucket/toy", "s3://bucket/bold", "--out", str(tmp_path / "there")]
        assert run([*remote, *options, "2"]) == 0
        facts = json.loads(capsys.readouterr().out)
    here, there = (open_dataset(tmp_path / name / "result.zarr") for name in ("here", "there"))
    np.testing.assert_array_equal(there["r"].values, here["r"].values)
    np.testing.assert_array_equal(there["p"].values, here["p"].values)
    assert facts["fingerprint"] == json.loads((tmp_path / "here" / "info.json").read_text())["fingerprint"]
    # Neither an address nor a key of this session is in what was written.
    written = b"".join(path.read_bytes() for path in (tmp_path / "there").rglob("*.json"))
    assert server.secret_key.encode() not in written
    assert server.endpoint.encode() not in written
