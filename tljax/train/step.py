"""The compiled steps: one for training, one for evaluation. Pure functions of flat dicts of arrays."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tljax.config import AugmentConfig
from tljax.models import state as leaves_of
from tljax.models.state import Leaves
from tljax.objectives import OBJECTIVES
from tljax.strategies import Group
from tljax.train.augment import make_augment
from tljax.train.optimizer import make_optimizer
from tljax.weights import Preprocess, make_preprocess


class State(NamedTuple):
    """What a step changes: learning parameters, statistics that move with them, optimizer state, step count."""

    learned: Leaves
    moving: Leaves
    opt: optax.OptState
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Spec:
    """All that shapes a step's program and is not a number; equal specs share one compiled program.

    Attributes:
      graphdef: of the model, with the frozen BatchNorms and Dropouts marked.
      groups: of the learning parameters, as (path, group) pairs.
      optimizer: from `optimizer.static_of`.
      objectives: pairs of name and weight.
      preprocess: of the weights, at the run's own input size.
      dtype: of the computation.
      augment: of the training pictures.
    """

    graphdef: nnx.GraphDef
    groups: tuple[tuple[str, Group], ...]
    optimizer: tuple[str, bool, bool, bool]
    objectives: tuple[tuple[str, float], ...]
    preprocess: Preprocess
    dtype: str
    augment: AugmentConfig


def init_state(spec: Spec, learned: Leaves, moving: Leaves, hyper: dict) -> State:
    """The state before the first step: optimizer state exists for the learning leaves alone."""
    optimizer = make_optimizer(spec.optimizer, hyper | {"lr": 0.0}, dict(spec.groups))
    return State(learned, moving, optimizer.init(learned), jnp.zeros((), jnp.int32))


@functools.lru_cache(maxsize=64)
def make_train_step(spec: Spec):
    """Compiles `step(state, frozen, batch, hyper, key) → (state, metrics)`; `state` is donated.

    `frozen` has every leaf that does not change, `batch` is uint8 `image` [B, H, W, C] and int32 `label` [B], `hyper`
    the numbers of the optimizer with `lr`, and `key` the phase's random key. `metrics` are `loss`, `correct` (how many)
    and `finite`, which is false when loss or update is not.
    """
    preprocess, augment = make_preprocess(spec.preprocess, spec.preprocess.size, spec.dtype), make_augment(spec.augment)

    def train_step(state: State, frozen: Leaves, batch, hyper, key):
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        images = preprocess(augment(augment_key, batch["image"]))

        def loss_fn(learned: Leaves):
            model = leaves_of.merge(spec.graphdef, learned | state.moving | frozen)
            outputs = model.outputs(images, train=True, rngs=nnx.Rngs(dropout=dropout_key))
            loss = sum(weight * OBJECTIVES[name](outputs, batch, hyper) for name, weight in spec.objectives)
            moved = leaves_of.stats_of(model)
            return loss, (outputs["logits"], {path: moved[path] for path in state.moving})

        (loss, (logits, moving)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.learned)
        optimizer = make_optimizer(spec.optimizer, hyper, dict(spec.groups))
        updates, opt = optimizer.update(grads, state.opt, state.learned)
        metrics = {
            "loss": loss,
            "correct": (logits.argmax(-1) == batch["label"]).sum(),
            "finite": jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates)),
        }
        return State(optax.apply_updates(state.learned, updates), moving, opt, state.step + 1), metrics

    return jax.jit(train_step, donate_argnums=0)


@functools.lru_cache(maxsize=64)
def make_predict(graphdef: nnx.GraphDef, preprocess: Preprocess, dtype: str):
    """Compiles `predict(leaves, images) → probabilities` [B, classes] in inference mode."""
    prepare = make_preprocess(preprocess, preprocess.size, dtype)

    def predict(leaves: Leaves, images: jax.Array) -> jax.Array:
        return jax.nn.softmax(leaves_of.merge(graphdef, leaves)(prepare(images), train=False))

    return jax.jit(predict)
