"""A model's variables as one flat dict, {"stage1/conv2/kernel": array}, the form that the rest of the package uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
from flax import nnx

if TYPE_CHECKING:
    from tljax.models.model import Model

Variables = dict[str, jax.Array]


class FlatModel(NamedTuple):
    """A model split into its static structure, its parameters and its BatchNorm statistics."""

    graphdef: nnx.GraphDef
    params: Variables
    batch_stats: Variables

    @property
    def variables(self) -> Variables:
        """Parameters, then BatchNorm statistics."""
        return self.params | self.batch_stats


def flatten_model(model: nnx.Module) -> FlatModel:
    """Split a model into its graph definition and flat dicts of parameters and BatchNorm statistics."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return FlatModel(graphdef, _values(params), _values(stats))


def variables(model: nnx.Module) -> Variables:
    """Return a model's parameters, then its BatchNorm statistics; `ShapeDtypeStruct`s where it is abstract."""
    return flatten_model(model).variables


def merge(graphdef: nnx.GraphDef, variables: Variables) -> Model:
    """Rebuild a model from its graph definition and all its variables; pure, so it works inside jit."""
    state = nnx.from_flat_state({tuple(path.split("/")): value for path, value in variables.items()})
    return nnx.merge(graphdef, state, copy=True)


def batch_stats(model: nnx.Module) -> Variables:
    """Return the current BatchNorm statistics."""
    return _values(nnx.state(model, nnx.BatchStat))


def set_variables(model: nnx.Module, variables: Variables) -> None:
    """Write values into the variables of a model in place, by path."""
    state = flatten_state(nnx.state(model))
    for path, value in variables.items():
        state[path].set_value(value)


def flatten_state(state: nnx.State) -> dict[str, nnx.Variable]:
    """Return the variables of a state by path."""
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def _values(state: nnx.State) -> Variables:
    return {path: variable.get_value() for path, variable in flatten_state(state).items()}
