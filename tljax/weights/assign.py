"""The strict port: every foreign tensor is used or ignored by name, every leaf is filled or kept by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from tljax.errors import UserError
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.weights.layouts.table import TRANSFORMS, Layout, Rule, contiguous


class MatchReport(NamedTuple):
    """How foreign tensors fit a model.

    Attributes:
      plan: path → the rule, without blanks, that fills it.
      unused: tensors without a place.
      missing: leaves without a tensor.
      misfits: tensors that have a place and do not fit it.
    """

    plan: dict[str, Rule]
    unused: list[str]
    missing: list[str]
    shape_mismatches: list[str]

    @property
    def complete(self) -> bool:
        """Whether nothing is left over, missing, or misfit."""
        return not (self.unused or self.missing or self.shape_mismatches)

    def describe(self) -> str:
        """What does not fit, as sentences."""
        return (
            f"Tensors without a place: {_listed(self.unused)}. Leaves without a tensor: {_listed(self.missing)}. "
            f"Wrong shapes: {_listed(self.shape_mismatches)}."
        )


def match(
    tensors: Mapping[str, np.ndarray],
    model: Model,
    layout: Layout,
    *,
    keep: str | Sequence[str] = (),
    optional: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
) -> MatchReport:
    """Finds the place of every foreign tensor by name and shape; arguments as in `port`."""
    keep, optional, ignore = _patterns(keep), _patterns(optional), _patterns(ignore)
    _, params, stats = params_lib.flatten_model(model)
    target, first = params | stats, first_kernel(params)
    known_as = getattr(getattr(model, "head", None), "weight_aliases", {})
    plan, unused, misfits = {}, [], []
    for name, tensor in tensors.items():
        if layout.ignores(name) or _matches(name, ignore):
            continue
        rule = _renamed(layout.place(name), known_as)
        if rule is None:
            unused.append(name)
        elif _matches(rule.path, keep) or rule.path.split("/")[0] in model.cut:
            continue
        elif rule.path in plan:
            misfits.append(f"{name}: {rule.path} is already filled")
        elif rule.path not in target:
            unused += [] if _matches(rule.path, optional) else [f"{name} (for {rule.path})"]
        else:
            shape, wanted = shape_after(rule, tensor.shape), target[rule.path].shape
            same = shape == wanted or (rule.path.rpartition("/")[0] in known_as.values() and _dense(wanted) == shape)
            if same or (rule.path == first and _adaptable(shape, wanted)):
                plan[rule.path] = rule
            elif not _matches(rule.path, optional):
                plan[rule.path] = rule
                misfits.append(f"{name}: {shape or tuple(tensor.shape)}, but {rule.path} is {wanted}")
    missing = [p for p in target if p not in plan and not _matches(p, (*keep, *optional))]
    return MatchReport(plan, unused, missing, misfits)


def assign_weights(
    tensors: Mapping[str, np.ndarray],
    model: Model,
    layout: Layout,
    *,
    keep: str | Sequence[str] = (),
    optional: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    source: str = "the source",
) -> None:
    """Fills `model` in place from foreign tensors, one at a time, or raises and leaves it untouched.

    A source for pictures of three channels fits a model of any other number: see `adapt_channels`.

    Args:
      tensors: foreign name → array, or what has `shape` and turns into an array when it is wanted.
      model: its stages that are not built (`model.cut`) may lie unused in the source; it may be abstract.
      layout: of the foreign names.
      keep: patterns of our paths that stay as they are, even where the source has a tensor for them.
      optional: patterns of our paths that are filled where the source has a tensor that fits, and else stay.
      ignore: patterns of foreign names that are not wanted, besides the layout's own.
      source: what to call the source in the error.

    Raises:
      UserError: with the tensors without a place, the leaves without a tensor, and the misfits.
    """
    found = match(tensors, model, layout, keep=keep, optional=optional, ignore=ignore)
    if not found.complete:
        raise UserError(
            f"{source} does not fit the model. {found.describe()} "
            "Name in `ignore` the tensors that are not wanted and in `keep` the leaves that stay."
        )
    variables = params_lib.flatten_state(nnx.state(model))
    first = first_kernel(variables)
    for path, rule in found.plan.items():
        value, variable = TRANSFORMS[rule.transform].view(np.asarray(tensors[rule.name])), variables[path]
        if path == first and value.shape[2] != variable.shape[2]:
            value = adapt_channels(value, variable.shape[2])
        variable.set_value(jax.device_put(_copied(value, variable.dtype).reshape(variable.shape)))


def export(model: Model, layout: Layout) -> dict[str, np.ndarray]:
    """The leaves of a model under foreign names, laid out as there: the reverse of `port`.

    Raises:
      UserError: a leaf that the layout has no name for.
    """
    _, params, stats = params_lib.flatten_model(model)
    tensors, nameless = {}, []
    for path, value in (params | stats).items():
        if (rule := layout.origin(path)) is None:
            nameless.append(path)
        else:
            tensors[rule.name] = contiguous(TRANSFORMS[rule.transform].to_foreign(np.asarray(value)))
    if nameless:
        raise UserError(f"This layout has no names for {_listed(nameless)}.")
    return tensors


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Makes a first convolution's kernel for RGB, [k, k, 3, out], one for so many channels.

    For one channel it is the sum over RGB, so that a grey picture gives what it would give as three equal channels.
    For more, the kernel's three channels are repeated in turn and scaled by 3 / `channels`, which keeps the size of the
    activations (timm's rule).
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, np.arange(channels) % 3] * np.float32(3 / channels)


def _copied(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A contiguous copy on a boundary of 64 bytes, which a processor's device takes over as it is."""
    size = math.prod(value.shape) * np.dtype(dtype).itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + size].view(dtype).reshape(value.shape)
    if value.flags.c_contiguous:
        np.copyto(copy, value, casting="same_kind")
        return copy
    # A transposed array is read in pieces of its last axis, which stay in the caches: two to four times as fast.
    for start in range(0, value.shape[-1], 64):
        piece = np.s_[..., start : start + 64]
        np.copyto(copy[piece], value[piece], casting="same_kind")
    return copy


def first_kernel(params: Mapping[str, np.ndarray]) -> str | None:
    """The path of the convolution that sees the picture."""
    kernels = [p for p in params if p.startswith("stem/") and p.endswith("/kernel") and len(params[p].shape) == 4]
    return min(kernels, default=None)


def shape_after(rule: Rule, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The shape that a foreign tensor has for us; None if the transform cannot be done to it."""
    try:
        return TRANSFORMS[rule.transform].from_foreign(np.broadcast_to(np.float32(0), tuple(shape))).shape
    except (ValueError, IndexError):
        return None


def _renamed(rule: Rule | None, known_as: Mapping[str, str]) -> Rule | None:
    """The rule with its layer under the name that the model's head has for it."""
    layer, _, leaf = rule.path.rpartition("/") if rule else ("", "", "")
    return rule._replace(path=f"{known_as[layer]}/{leaf}") if layer in known_as else rule


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a convolution's kernel that is written as a dense layer on all places that it sees."""
    return (math.prod(shape[:-1]), *shape[-1:])


def _adaptable(shape: tuple[int, ...] | None, wanted: tuple[int, ...]) -> bool:
    return shape is not None and len(shape) == 4 and shape[2] == 3 and shape == (*wanted[:2], 3, *wanted[3:])


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(p, name) for p in patterns)


def _listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
