"""From `ml_collections.ConfigDict` and command-line arguments to the frozen `Config`."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import ml_collections

from clips_jax.config import Config, ConfigError
from clips_jax.config.check import check

T = TypeVar("T")


def from_config_dict(config: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """Converts and checks; raises `ConfigError` naming the key."""
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    parsed = _parse(Config, config, "")
    check(parsed)
    return parsed


def _parse(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type `hint`, or a ConfigError that names `path`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return parse_dataclass(typing.cast(type, hint), value, path)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(repr, arguments))}.")
        return value
    if origin is types.UnionType:  # only `X | None` occurs
        return None if value is None else _parse(arguments[0], value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a dict of named entries, got {value!r}.")
        return {str(name): _parse(arguments[1], item, f"{path}.{name}") for name, item in value.items()}
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{path}: expected a tuple, got {value!r}.")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ConfigError(f"{path}: expected {len(arguments)} values, got {len(value)}: {value!r}.")
        return tuple(_parse(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path}: expected {hint.__name__}, got {value!r} ({type(value).__name__}).")
    return value


def parse_dataclass(cls: type[T], value: Any, path: str) -> T:
    """A mapping as the dataclass `cls`; raises `ConfigError` naming the key, `path` before it."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path or 'config'}: expected a group of keys, got {value!r}.")
    prefix = f"{path}." if path else ""
    hints = typing.get_type_hints(cls)
    for key in value:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            guess = f"Did you mean {prefix}{close[0]}?" if close else f"Known keys: {', '.join(sorted(hints))}."
            raise ConfigError(f"{prefix}{key}: no such key. {guess}")
    for field in dataclasses.fields(typing.cast(Any, cls)):
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and field.name not in value:
            raise ConfigError(f"{prefix}{field.name}: missing; it has no default.")
    return cls(**{key: _parse(hints[key], item, f"{prefix}{key}") for key, item in value.items()})


def parse_arguments(text: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """The part after the colon of `--config configs/x.py:key=value,…`, over typed defaults.

    A bare `key` means `key=True`. Raises `ConfigError` for an unknown key or a value of another type.
    """
    parsed = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        key, _, value = part.partition("=")
        if key not in defaults:
            known = ", ".join(f"{name}={value!r}" for name, value in defaults.items())
            raise ConfigError(f"config argument {key!r}: no such argument. Known, with defaults: {known}.")
        kind = type(defaults[key])
        truth = {"": True, "True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
        try:
            parsed[key] = truth[value] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise ConfigError(f"config argument {key}={value}: expected {kind.__name__}.") from None
    return ml_collections.ConfigDict(parsed)
