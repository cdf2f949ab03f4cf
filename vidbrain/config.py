"""TOML <-> frozen dataclasses, with fingerprints: the only place that reads or writes settings."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from vidbrain.errors import ConfigError

T = TypeVar("T")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        If the file is missing or not valid TOML.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(
            "there is no such settings file", where=path, hint="check the path given to --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=path) from None


def from_mapping(cls: type[T], values: Mapping[str, Any], source: object = None) -> T:
    """Build a frozen dataclass from plain values, refusing what it does not know.

    Parameters
    ----------
    cls
        A dataclass; its fields may be dataclasses, tuples, optionals and literals.
    values
        As read from TOML or JSON.
    source
        Named in errors.

    Raises
    ------
    ConfigError
        For an unknown key (with the nearest known one), a missing one, or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for raw, value in values.items():
        name = str(raw).replace("-", "_")  # JSON's keys are text, those of a user's mapping may be anything
        if name not in fields:
            raise ConfigError(f"unknown setting {raw!r}{did_you_mean(name, fields)}", where=source)
        arguments[name] = _coerce(hints[name], value, name, source)
    missing = [
        name
        for name, field in fields.items()
        if name not in arguments
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"missing setting {', '.join(missing)}", where=source)
    return cls(**arguments)


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, else the list of names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _coerce(hint: Any, value: Any, name: str, source: object) -> Any:  # noqa: ANN401 -- walks any annotation
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in (a for a in args if a is not type(None)):
            try:
                return _coerce(option, value, name, source)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        if value in args:
            return value
        choices = [str(a) for a in args]
        raise ConfigError(f"{name} cannot be {value!r}{did_you_mean(str(value), choices)}", where=source)
    elif origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_coerce(args[0], item, name, source) for item in value)
        if len(args) == len(value):
            return tuple(_coerce(a, item, name, source) for a, item in zip(args, value, strict=True))
    elif dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(typing.cast("type[Any]", hint), value, source)
    elif hint is Any:
        return value
    elif hint is Path and isinstance(value, str | Path):
        return Path(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{name} cannot be {value!r}: expected {getattr(hint, '__name__', hint)}", where=source)


def to_mapping(config: Any) -> dict[str, Any]:  # noqa: ANN401 -- any dataclass instance
    """Plain JSON/TOML values of a dataclass; None is kept (JSON has it, TOML drops it)."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:  # noqa: ANN401 -- any value of a field
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def fingerprint(*parts: object) -> str:
    """Return 16 hexadecimal digits that name these values; dataclasses count by their fields.

    Equal values give equal digits on every machine; the order of keys does not matter.
    """
    text = json.dumps([_plain(part) for part in parts], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
