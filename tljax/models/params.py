"""A model's leaves as one flat dict, `stage1/conv2/kernel` → array, and back: the form everything else works on."""

from __future__ import annotations

from typing import NamedTuple

import jax
from flax import nnx

Variables = dict[str, jax.Array]


class FlatModel(NamedTuple):
    """A model taken apart: what is static, the parameters, and the BatchNorm statistics."""

    graphdef: nnx.GraphDef
    params: Variables
    batch_stats: Variables


def flatten_model(model: nnx.Module) -> FlatModel:
    """Takes a model apart into its graph definition and flat dicts of leaves."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return FlatModel(graphdef, _values(params), _values(stats))


def variables(model: nnx.Module) -> Variables:
    """All leaves of a model: the parameters, then the statistics; shapes where they have no value yet."""
    _, params, stats = flatten_model(model)
    return params | stats


def merge(graphdef: nnx.GraphDef, variables: Variables) -> nnx.Module:
    """Puts a model together again from all its leaves; pure, so it may stand inside jit."""
    state = nnx.from_flat_state({tuple(path.split("/")): value for path, value in variables.items()})
    return nnx.merge(graphdef, state, copy=True)


def batch_stats(model: nnx.Module) -> Variables:
    """The BatchNorm statistics as they are now."""
    return _values(nnx.state(model, nnx.BatchStat))


def set_variables(model: nnx.Module, variables: Variables) -> None:
    """Write values into the variables of a model in place, by path."""
    state = flatten_state(nnx.state(model))
    for path, value in variables.items():
        state[path].set_value(value)


def flatten_state(state: nnx.State) -> dict[str, nnx.Variable]:
    """The variables of a state by path."""
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def _values(state: nnx.State) -> Variables:
    return {path: variable.get_value() for path, variable in flatten_state(state).items()}
