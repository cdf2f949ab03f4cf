"""The whole path, small: real game play, real worker processes, a real kill."""

import json
import math
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import xarray as xr

RECIPE = Path(__file__).with_name("tiny.toml")
REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "root"
    command = [sys.executable, "-m", "vidbrain", "demo", str(root), "--recipe", str(RECIPE), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((root / "summary.json").read_text())
    return root


def test_the_summary_says_everything(demo):
    summary = json.loads((demo / "summary.json").read_text())
    assert summary["bold"] == "simulated"
    assert min(summary[name] for name in ("frames", "shards", "clips", "segments", "recordings")) > 0
    assert 0 < summary["vqvae"]["codes_used"] <= 1
    for model in ("vqvae", "gpt"):
        for losses in summary[model]["loss"].values():
            assert all(math.isfinite(loss) for loss in losses.values())
    assert summary["gpt"]["loss"]["train"]["last"] < summary["gpt"]["loss"]["train"]["first"]
    sets = {"drivers", "trained", "untrained", "pixels", "motion"}
    for kind in ("noise", "visual", "motor", "event", "planted"):
        assert sets <= set(summary["r"][kind])
    assert summary["r"]["noise"]["ceiling"] is None
    visual = summary["r"]["visual"]
    assert 0.3 < visual["drivers"] <= visual["ceiling"] + 0.05
    # 938 noise voxels, smooth at this resolution: wider than the demo's own bound, and still far from any signal.
    assert all(abs(summary["r"]["noise"][name]) < 0.05 for name in sets)
    assert set(summary["wall_s"]) >= {
        "play",
        "replay",
        "shard",
        "simulate",
        "ingest",
        "vqvae",
        "gpt",
        "encode",
        "report",
    }
    assert (demo / "report.html").stat().st_size > 100_000


def test_a_second_call_changes_nothing(demo):
    files = {p: p.stat().st_mtime_ns for p in demo.rglob("*") if p.is_file() and p.name not in ("summary.json",)}
    before = json.loads((demo / "summary.json").read_text())
    command = [sys.executable, "-m", "vidbrain", "demo", str(demo), "--recipe", str(RECIPE), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == before
    rewritten = [str(p.relative_to(demo)) for p, t in files.items() if p.stat().st_mtime_ns != t]
    # Descriptions, maps and the page are written anew, with the same bytes.
    stores = ("data", "bold", "codes", "features", "runs")
    assert not [name for name in rewritten if name.startswith(stores) or ".zarr" in name]


def test_foreign_readers_read_every_shard_without_vidbrain(demo):
    script = textwrap.dedent("""
        import io, json, sys
        sys.modules["vidbrain"] = None
        import numpy, webdataset, zstandard
        n = 0
        for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False):
            shape = json.loads(sample["json"])["shape"]
            packed = io.BytesIO(sample["frames.zst"])
            raw = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True).read()
            n += len(numpy.frombuffer(raw, numpy.uint8).reshape(shape)) > 0
        print(n)
    """)
    shards = sorted(map(str, (demo / "data" / "shards").glob("*.tar")))
    command = [sys.executable, "-W", "ignore", "-c", script, *shards]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == json.loads((demo / "data" / "dataset.json").read_text())["n_segments"]


def test_xarray_opens_every_store_and_nibabel_every_map(demo):
    stores = [p.parent for p in demo.rglob("zarr.json") if p.parent.suffix == ".zarr"]
    assert len(stores) > 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for store in stores:
            with xr.open_zarr(store, chunks=None) as data:
                assert len(data.variables)
    maps = list((demo / "results").rglob("*.nii.gz"))
    assert len(maps) >= 10
    for path in maps:
        values = np.asarray(nibabel.load(path).dataobj)
        assert np.isfinite(values).any()


@pytest.mark.parametrize("page", ["docs/formats/shards.md", "docs/formats/stores.md"])
def test_snippets_of_the_documents_run(demo, tmp_path, page):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "demo").symlink_to(demo)
    snippets = re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        command = [sys.executable, "-W", "ignore", "-c", snippet]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_kills_leave_no_trace(demo, tmp_path):
    """Killed in three stages by SIGKILL and started again, everything is equal to the byte."""
    command = [sys.executable, str(REPOSITORY / "tools" / "kill_demo.py"), str(demo), str(tmp_path / "killed")]
    command += ["--recipe", str(RECIPE), "--stages", "replay", "simulate", "features"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 differ" in done.stdout
