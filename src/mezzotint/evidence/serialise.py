"""Frozen dataclasses <-> plain JSON values, driven by their annotations: no class names and no code in the file."""

from __future__ import annotations

import base64
import binascii
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_plain", "to_plain"]

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Turn a dataclass of plain values into dictionaries, lists, strings and numbers. Bytes become base64.

    Args:
        value: a dataclass instance or any value inside one.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(inner) for inner in value]
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def from_plain(kind: type[T], plain: Any) -> T:
    """Build a dataclass from plain values, checking every type on the way.

    Args:
        kind: the dataclass.
        plain: what `to_plain` made of one.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type.
    """
    built: T = _dataclass(kind, plain, kind.__name__)
    return built


def _dataclass(kind: Any, plain: Any, where: str) -> Any:
    if not isinstance(plain, dict):
        raise ValueError(f"{where} must be an object, got {type(plain).__name__}")
    known = {item.name: item for item in fields(kind)}
    needed = {name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING}
    if wrong := sorted((plain.keys() - known.keys()) | (needed - plain.keys())):
        raise ValueError(f"{where} has unknown or missing fields: {', '.join(map(str, wrong))}")
    return kind(**{name: _value(_hints(kind)[name], inner, f"{where}.{name}") for name, inner in plain.items()})


def _bytes(plain: Any, where: str) -> bytes:
    try:
        return base64.b64decode(plain, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"{where} must be base64") from error


def _value(kind: Any, plain: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _dataclass(kind, plain, where)
    if origin is tuple and isinstance(plain, list):
        return tuple(_value(arguments[0], inner, f"{where}[{index}]") for index, inner in enumerate(plain))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(plain, dict):
        return {key: _value(arguments[1], inner, f"{where}[{key!r}]") for key, inner in plain.items()}
    if origin in (Union, types.UnionType):
        return None if plain is None else _value(arguments[0], plain, where)
    return _leaf(kind, plain, where)


def _leaf(kind: Any, plain: Any, where: str) -> Any:
    if get_origin(kind) is Literal:
        if plain in get_args(kind):
            return plain
        raise ValueError(f"{where} must be one of {', '.join(map(str, get_args(kind)))}, got {plain!r}")
    if kind is bytes:
        return _bytes(plain, where)
    if kind is float and isinstance(plain, int | float) and not isinstance(plain, bool):
        return float(plain)
    if isinstance(kind, type) and isinstance(plain, kind) and isinstance(plain, bool) == (kind is bool):
        return plain
    raise ValueError(f"{where} must be {getattr(kind, '__name__', kind)}, got {type(plain).__name__}")
