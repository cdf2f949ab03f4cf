from dataclasses import dataclass, field
from typing import Literal

import pytest

from vidbrain.config import fingerprint, from_mapping, read_toml, to_mapping
from vidbrain.errors import ConfigError
from vidbrain.records import ClipSpec


@dataclass(frozen=True, kw_only=True)
class Toy:
    rate: float = 0.1
    n_layers: int = 2
    fit: Literal["squash", "crop"] = "squash"
    clip: ClipSpec = field(default_factory=ClipSpec)
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None


def test_round_trip():
    toy = Toy(rate=1, clip=ClipSpec(8, 2, 2), sizes=(3,), name="x")
    assert from_mapping(Toy, to_mapping(toy)) == toy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_layer": 3}, "did you mean 'n_layers'"),
        ({"fit": "crob"}, "did you mean 'crop'"),
        ({"n_layers": 2.5}, "expected int"),
        ({"n_layers": True}, "expected int"),
        ({"clip": {"n_frames": 0}}, "positive"),
        ({"sizes": ["a"]}, "sizes cannot be"),
    ],
)
def test_wrong_settings_say_what_is_right(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Toy, values, "x.toml")


def test_a_missing_or_broken_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no such settings file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(tmp_path / "bad.toml")


def test_fingerprint_depends_on_values_alone():
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint(Toy()) != fingerprint(Toy(rate=0.2))
    assert fingerprint("a", "b") != fingerprint("ab")
