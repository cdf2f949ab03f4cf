import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np

from vidbrain.bold.store import open_bold
from vidbrain.cli.app import run


def test_ls_lists_runs_as_json(store_root, capsys):
    assert run(["bold", "ls", str(store_root), "--json", "--verify"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in rows] == ["sub-01_ses-001_task-toy_run-1", "sub-01_ses-001_task-toy_run-2"]
    assert all(row["simulated"] and row["checksum"] == "right" and row["volumes"] == 104 for row in rows)


def test_ingest_goes_from_flags_to_a_store(derivatives, tmp_path, capsys):
    flags = ["--out", str(tmp_path / "b"), "--clean.confounds", "none", "--workers", "0", "--json"]
    assert run(["bold", "ingest", str(derivatives), *flags]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["confounds"] == "none"
    assert facts["runs"] == 2


def test_export_writes_the_runs_that_were_named(store_root, tmp_path, capsys):
    flags = ["--run", "sub-01_ses-001_task-toy_run-02", "--out", str(tmp_path / "out"), "--json"]
    assert run(["bold", "export", str(store_root), *flags]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    image, store = nibabel.load(row["file"]), open_bold(store_root)
    assert image.shape == (*store.shape, 104)
    expected = np.zeros(image.shape, np.float32)
    expected[tuple(store.ijk.T)] = store.read(store.runs[1]).T
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), expected)
    sidecar = json.loads((tmp_path / "out" / (Path(row["file"]).name.split(".")[0] + ".json")).read_text())
    assert sidecar["Simulated"] is True
    assert sidecar["Cleaning"]["confounds"] == "simple"
    assert run(["bold", "export", str(store_root), "--run", "sub-09_task-x", "--out", str(tmp_path / "out")]) == 1
    assert "no run" in capsys.readouterr().err


def test_errors_say_what_where_and_what_next(tmp_path, capsys):
    assert run(["bold", "ls", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "unfinished" in said
    assert "where" in said
    assert "try" in said


def test_help_has_an_example_and_needs_neither_torch_nor_nilearn():
    code = """
import sys
from vidbrain.cli.app import run
run(["bold", "--help"])
run(["bold", "simulate", "--help"])
assert not {"torch", "nilearn", "dask"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Example:" in done.stdout
