"""The benchmark of ingest runs at a small size, goes on where it was, and its peers make the same numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench" / "bold.py"


@pytest.mark.slow
def test_the_parts_agree_and_are_done_once(tmp_path):
    pytest.importorskip("h5py")
    root, out = tmp_path / "root", tmp_path / "found.json"
    size = ["--runs", "1", "--trs", "24", "--resolution-mm", "14", "--workers", "1", "--repetitions", "2"]
    parts = ["--parts", "simulate", "ingest", "nilearn-hdf5", "read"]
    command = [sys.executable, str(TOOL), str(root), *size, *parts, "--json", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "times faster than hdf5" in done.stdout
    found = json.loads(out.read_text())
    read = found["parts"]["read"]
    assert read["largest_difference_from_nilearn"] < 1e-4
    assert read["largest_difference_from_nifti_cleaned_by_scipy"] < 1e-4
    assert set(read["times_faster_than"]) == {"hdf5", "hdf5_packed", "nifti"}
    assert found["parts"]["ingest"]["largest_process_bytes"] > 50e6
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(out.read_text())["parts"] == found["parts"]
    assert "ingest ..." not in again.stderr
