"""The benchmark of draws from products: its peers, which work on the time series, give the same numbers."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "inference.py"


def test_products_and_time_series_give_the_same_numbers(tmp_path):
    out = tmp_path / "inference.json"
    sizes = "--voxels 60 --features 5 --run-trs 53 61 --draws 40 --block-trs 10 --peer-draws 4 --repeats 1"
    subprocess.run(
        [sys.executable, SCRIPT, *sizes.split(), "--json", out], check=True, capture_output=True, timeout=120
    )
    results = json.loads(out.read_text())["results"]
    assert [row["name"] for row in results] == [
        "40 shift permutations",
        "40 block permutations",
        "40 block bootstraps",
    ]
    for row in results:
        assert set(row["peers"]) == {"correlate", "predict"}
        assert max(value for key, value in row.items() if key.startswith("largest_difference")) < 2e-6
