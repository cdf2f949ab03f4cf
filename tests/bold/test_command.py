import json
import subprocess
import sys

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
