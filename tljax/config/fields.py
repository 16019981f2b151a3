"""Tools for a schema of frozen dataclasses: documented fields with bounds, type conversion and one-line errors.

This module does not depend on any field of tljax; the schema is in `tljax.config.schema`.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import types
import typing
from collections.abc import Mapping

import ml_collections
from ml_collections import config_dict

from tljax.config.renamed import renamed_hint
from tljax.errors import UserError, did_you_mean


def field(default, doc, *, unit=None, choices=None, ge=None, gt=None, le=None, lt=None) -> typing.Any:
    """Return a dataclass field with a description, unit, choices and bounds, which `from_dict` checks.

    Args:
      default: default value; a dict is copied for every instance.
      doc: description, shown by `python -m tljax.config`.
      unit: unit of a number, or None.
      choices: allowed values, or None.
      ge: inclusive lower bound.
      gt: exclusive lower bound.
      le: inclusive upper bound.
      lt: exclusive upper bound.
    """
    meta = {"doc": doc, "unit": unit, "choices": choices, "ge": ge, "gt": gt, "le": le, "lt": lt}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def iter_fields(cls, prefix=""):
    """Yield (dotted name, field, type) of every field; nested dataclasses are replaced by their fields."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from iter_fields(hint, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, hint


def to_config_dict(value) -> ml_collections.ConfigDict:
    """Return a locked ConfigDict with the values of a dataclass; None becomes a typed placeholder."""
    # convert_dict=False keeps dicts as they are: a ConfigDict refuses the dots in the keys of a sweep.
    out = ml_collections.ConfigDict(convert_dict=False)
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            item = to_config_dict(item)
        elif item is None:
            item = config_dict.placeholder(_optional(hints[field.name]))
        out[field.name] = item
    return out.lock()


def _optional(hint):
    """Return T for the hint `T | None`, or None for a hint without None."""
    args = typing.get_args(hint)
    return next(a for a in args if a is not types.NoneType) if types.NoneType in args else None


def type_name(hint) -> str:
    """Return the name of a type as written in source code."""
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


def from_dict(cls, tree, prefix):
    """Return an instance of a dataclass made from a nested dict; checks all keys, types and bounds.

    Args:
      cls: the dataclass.
      tree: values by field name; an instance of `cls` is checked too.
      prefix: dotted prefix of the field names in errors, with a final dot, or "".

    Raises:
      UserError: an unknown field, or a value of a wrong type or out of bounds.
    """
    if isinstance(tree, cls):
        tree = dataclasses.asdict(tree)
    if not isinstance(tree, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'The config'} must be a dict of fields, got {tree!r}.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in tree:
        if key not in fields:
            hint = renamed_hint(f"{prefix}{key}") or did_you_mean(key, fields)
            raise UserError(f'There is no field "{prefix}{key}"{hint}')
    values = {}
    for key, item in tree.items():
        hint = hints[key]
        name = f"{prefix}{key}"
        values[key] = from_dict(hint, item, f"{name}.") if dataclasses.is_dataclass(hint) else coerce(item, hint, name)
        _check_range(values[key], fields[key].metadata, name)
    return cls(**values)


def coerce(value, hint, name):
    """Return `value` converted to a type hint: integers become floats and lists become tuples.

    Raises:
      UserError: the value has another type; the message starts with `name`.
    """
    inner = _optional(hint)
    if inner is not None:
        # On a command line, None arrives as a string.
        return None if value in (None, "None") else coerce(value, inner, name)
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        item_hints = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(item_hints) == len(value):
            pairs = enumerate(zip(value, item_hints, strict=True))
            return tuple(coerce(item, item_hint, f"{name}[{i}]") for i, (item, item_hint) in pairs)
    elif dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{name}.")
    elif hint is Mapping and isinstance(value, Mapping):
        return {k: list(v) if isinstance(v, (range, tuple)) else v for k, v in value.items()}
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    raise UserError(f"{name} must be of type {type_name(hint)}, got {value!r}.")


def _check_range(value, meta, name):
    if not meta or value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value!r}.")
    if meta["choices"] and value not in meta["choices"]:
        raise UserError(f"{name} cannot be {value!r}{did_you_mean(str(value), meta['choices'])}")
    bounds = {
        "ge": ("at least", operator.ge),
        "gt": ("more than", operator.gt),
        "le": ("at most", operator.le),
        "lt": ("less than", operator.lt),
    }
    for key, (words, holds) in bounds.items():
        if meta[key] is not None and not holds(value, meta[key]):
            raise UserError(f"{name} must be {words} {meta[key]}, got {value!r}.")
