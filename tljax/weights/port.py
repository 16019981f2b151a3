"""The strict port: every foreign tensor is used or ignored by name, every leaf is filled or kept by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from tljax.errors import UserError
from tljax.models import Model
from tljax.models import state as leaves_of
from tljax.weights.rules import TRANSFORMS, Rule


def port(
    tensors: Mapping[str, np.ndarray],
    model: Model,
    rules: Sequence[Rule],
    *,
    keep: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    source: str = "the source",
) -> None:
    """Fills `model` in place from foreign tensors, or raises and leaves it untouched.

    Args:
      tensors: foreign name → array.
      model: its stages that are not built (`model.cut`) may lie unused in the source.
      rules: the first that matches a name decides.
      keep: patterns of our paths that stay as they are, even where the source has a tensor for them.
      ignore: patterns of foreign names that are not wanted.
      source: what to call the source in the error.

    Raises:
      UserError: with the tensors without a place, the leaves without a tensor, and the misfits.
    """
    keep, ignore = _patterns(keep), _patterns(ignore)
    _, params, stats = leaves_of.split(model)
    target = params | stats
    filled, unused, misfits = {}, [], []
    for name, tensor in tensors.items():
        if _matches(name, ignore):
            continue
        path, transform = _place(name, rules)
        if path is None:
            unused.append(name)
        elif _matches(path, keep) or path.split("/")[0] in model.cut:
            continue
        elif path not in target:
            unused.append(f"{name} (for {path})")
        else:
            value = TRANSFORMS[transform](np.asarray(tensor))
            if path in filled:
                misfits.append(f"{name}: {path} is already filled")
            elif value.shape != target[path].shape:
                misfits.append(f"{name}: {value.shape}, but {path} is {target[path].shape}")
            filled[path] = value
    missing = [p for p in target if p not in filled and not _matches(p, keep)]
    if unused or missing or misfits:
        raise UserError(
            f"{source} does not fit the model. "
            f"Tensors without a place: {_listed(unused)}. Leaves without a tensor: {_listed(missing)}. "
            f"Wrong shapes: {_listed(misfits)}. "
            "Name in `ignore` the tensors that are not wanted and in `keep` the leaves that stay."
        )
    leaves_of.update(model, {p: jnp.asarray(v, target[p].dtype) for p, v in filled.items()})


def _place(name: str, rules: Sequence[Rule]) -> tuple[str | None, str]:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, name):
            return match.expand(rule.path), rule.transform
    return None, "same"


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(p, name) for p in patterns)


def _listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
