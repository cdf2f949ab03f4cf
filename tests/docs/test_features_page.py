"""The page on features shows code that runs and gives what it says."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "features.md"


def test_the_snippets_run_and_give_the_stated_shapes():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), names)
    assert {layer: tuple(value.shape) for layer, value in names["activations"].items()} == {
        "0": (2, 4, 32, 32, 8),
        "2": (2, 4, 16, 16, 16),
    }
    assert {layer: value.shape for layer, value in names["rows"].items()} == {"0": (2, 4, 100), "2": (2, 4, 100)}
    np.testing.assert_allclose(names["red"][..., 0], names["video"][..., 0].mean((2, 3)), rtol=1e-5)
