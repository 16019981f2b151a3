"""A model's leaves as one flat dict, `stage1/conv2/kernel` → array, and back: the form everything else works on."""

from __future__ import annotations

from typing import NamedTuple

import jax
from flax import nnx

Variables = dict[str, jax.Array]


class Split(NamedTuple):
    """A model taken apart: what is static, the parameters, and the BatchNorm statistics."""

    graphdef: nnx.GraphDef
    params: Variables
    stats: Variables


def split(model: nnx.Module) -> Split:
    """Takes a model apart into its graph definition and flat dicts of leaves."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return Split(graphdef, _values(params), _values(stats))


def values(model: nnx.Module) -> Variables:
    """All leaves of a model: the parameters, then the statistics; shapes where they have no value yet."""
    _, params, stats = split(model)
    return params | stats


def merge(graphdef: nnx.GraphDef, leaves: Variables) -> nnx.Module:
    """Puts a model together again from all its leaves; pure, so it may stand inside jit."""
    state = nnx.from_flat_state({tuple(path.split("/")): value for path, value in leaves.items()})
    return nnx.merge(graphdef, state, copy=True)


def stats_of(model: nnx.Module) -> Variables:
    """The BatchNorm statistics as they are now."""
    return _values(nnx.state(model, nnx.BatchStat))


def update(model: nnx.Module, leaves: Variables) -> None:
    """Writes leaves into a model in place."""
    variables = flat(nnx.state(model))
    for path, value in leaves.items():
        variables[path].set_value(value)


def flat(state: nnx.State) -> dict[str, nnx.Variable]:
    """The variables of a state by path."""
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def _values(state: nnx.State) -> Variables:
    return {path: variable.get_value() for path, variable in flat(state).items()}
