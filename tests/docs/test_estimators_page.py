"""The page on estimators shows code that runs and finds what it plants."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "encoding" / "estimators.md"


def test_the_snippet_runs_and_finds_the_band():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    parts = names["parts"]
    assert np.median(names["banded"].gamma_[0, :10]) > 0.7
    assert parts.unique[0, :10].mean() > 0.3
    assert abs(parts.unique[1, :10].mean()) < 0.03
    assert names["model"].score(names["X"][300:], names["Y"][300:]) > 0.3
