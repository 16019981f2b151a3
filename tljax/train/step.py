"""The compiled steps: one for training, one for evaluation. Pure functions of flat dicts of arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tljax.augment.pipeline import make_augment
from tljax.config import AugmentConfig
from tljax.features.frozen_network import FROZEN_STAGES, FrozenNetwork, apply_frozen, group_outputs
from tljax.losses import Loss
from tljax.models import params as params_lib
from tljax.models.params import Variables
from tljax.ops.convolution import inference_options
from tljax.strategies import ParamGroup, neurons
from tljax.tasks import Task
from tljax.train.optimizer import make_optimizer
from tljax.weights import Preprocess, make_preprocess


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
      learned: parameters that learn; of layers with single learning neurons, these neurons' slices.
      moving: BatchNorm statistics that follow the batches.
      opt: the optimizer's.
      step: count within the phase.
      average: running average of `learned` and `moving`; empty where the phase keeps none.
    """

    params: Variables
    batch_stats: Variables
    opt_state: optax.OptState
    step: jax.Array
    ema: Variables


class StepInputs(NamedTuple):
    """What a phase's steps are given and do not change, besides the frozen leaves.

    Attributes:
      neurons: which output channels learn, [k] by the path of a leaf whose slice is learned.
      origin: source values of learned leaves, for penalties on the distance from them.
      observed: leaves of the networks that the spec observes, in its order.
    """

    channel_index: Mapping[str, jax.Array]
    source_params: Variables
    networks: tuple[Variables, ...]


NO_INPUTS = StepInputs({}, {}, ())


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """All that shapes a step's program and is not a number; equal specs share one compiled program.

    Attributes:
      task: what the model is for.
      graphdef: of the model, with the frozen BatchNorms and Dropouts marked.
      groups: of the learning parameters, as (path, group) pairs.
      optimizer: from `optimizer.static_of`.
      objectives: what adds up to the loss, with the weights of `hyper`.
      preprocess: of the weights, at the run's own input size.
      dtype: of the computation.
      augment: of the training pictures.
      views: "weak" and "strong", as the objectives want the unlabelled pictures.
      averaged: whether a running average of the weights is kept.
      observed: networks that the step itself runs.
      accumulate: parts of a batch that go through the network one after another.
      dense: whether only dense layers of the head learn, so that maps are computed forwards and never backwards.
    """

    task: Task
    graphdef: nnx.GraphDef
    param_groups: tuple[tuple[str, ParamGroup], ...]
    optimizer: tuple[str, bool, bool, bool]
    losses: tuple[Loss, ...]
    preprocess: Preprocess
    dtype: str
    augment: AugmentConfig
    views: tuple[str, ...] = ()
    ema: bool = False
    networks: tuple[FrozenNetwork, ...] = ()
    grad_accum_steps: int = 1
    dense: bool = False

    @property
    def compiler_options(self) -> dict[str, str]:
        """For programs of this step."""
        return inference_options() if self.dense else {}

    @property
    def requires(self) -> frozenset[str]:
        """All that the objectives ask for."""
        return frozenset().union(*(objective.requires for objective in self.losses))


def init_state(spec: StepSpec, learned: Variables, moving: Variables, hyper: dict) -> TrainState:
    """The state before the first step: optimizer state exists for the learning leaves alone."""
    optimizer = make_optimizer(spec.optimizer, hyper | {"lr": 0.0}, dict(spec.param_groups))
    average = jax.tree.map(jnp.copy, learned | moving) if spec.ema else {}
    return TrainState(learned, moving, optimizer.init(learned), jnp.zeros((), jnp.int32), average)


@functools.lru_cache(maxsize=64)
def make_train_step(spec: StepSpec):
    """Compiles `make_step_fn(spec)`; the state is donated."""
    return jax.jit(make_step_fn(spec), donate_argnums=0, compiler_options=spec.compiler_options)


@functools.lru_cache(maxsize=64)
def make_step_fn(spec: StepSpec):
    """The pure function `step(state, frozen, batch, hyper, key, given) → (state, metrics)`.

    `frozen` has every leaf that does not change, `batch` is uint8 `image` [B, H, W, C], the task's targets (`label`,
    and in detection `boxes` in pixels of the input), uint8 `unlabelled` [U, H, W, C] where the spec has views, and what
    networks said of the pictures before (the maps of the frozen first stages among it; where nobody looks at the
    pictures themselves, there are none); `hyper` the numbers of `PhasePlan.hyper` with those of the step, `lr` and
    `progress`; `key` the phase's random key. `metrics` are `loss`, `terms` (each objective's value, unweighted),
    `correct` (the sum of what the task sees) and `finite`, which is false when loss or update is not.
    """
    preprocess = make_preprocess(spec.preprocess, spec.preprocess.size, spec.dtype)
    # A class is that of any view of a picture; what lies somewhere on it lies elsewhere on another view.
    aligned = spec.task.spatial
    views = make_augment(spec.augment, spec.preprocess.size if aligned else None)

    def gradients(state: TrainState, frozen: Variables, batch, hyper, key, given: StepInputs):
        augment_key, dropout_key = jax.random.split(key)
        pictures, inputs = None, {}
        if "image" in batch:
            batch = views["weak"](augment_key, batch)
            pictures = batch["image"]
            inputs = {"labelled": preprocess(pictures)}
        unlabelled = {"image": batch.get("unlabelled")}
        # Of the first and the second view, and of what the averaged weights see.
        view_keys = [jax.random.fold_in(augment_key, 0 if aligned else i) for i in range(3)]
        for view_key, name in zip(view_keys, spec.views, strict=False):
            inputs[name] = preprocess(views[name](view_key, unlabelled)["image"])
        named = {name: value for name, value in batch.items() if "/" in name}
        for network, leaves in zip(spec.networks, given.networks, strict=True):
            named |= apply_frozen(network, leaves, pictures)
        reference = group_outputs(named) | {"leaves": given.source_params}
        known = reference.pop(FROZEN_STAGES, {"maps": {}})["maps"]
        if "average" in spec.requires:
            view = preprocess(views["weak"](view_keys[-1], unlabelled)["image"])
            model = merge_model(spec.graphdef, state.ema, frozen, given.channel_index)
            reference["average"] = model.forward_all(view)

        def loss_fn(learned: Variables):
            model = merge_model(spec.graphdef, learned | state.batch_stats, frozen, given.channel_index)
            if (drop := getattr(model.head, "drop", None)) is not None and drop.rate:
                drop.rate_override = nnx.data(hyper["dropout"])
            together = jnp.concatenate(list(inputs.values())) if len(inputs) > 1 else inputs.get("labelled")
            outputs = model.forward_all(together, train=True, rngs=nnx.Rngs(dropout=dropout_key), cached_features=known)
            outputs = _by_view(outputs, inputs) | {"leaves": learned}
            terms = [objective(outputs, batch, reference, hyper) for objective in spec.losses]
            loss = sum(weight * term for weight, term in zip(hyper["weights"], terms, strict=True))
            moved = params_lib.batch_stats(model)
            correct = spec.task.train_metric(outputs, batch).sum(dtype=jnp.float32)
            return loss, (
                {"terms": jnp.stack(terms), "correct": correct},
                {path: moved[path] for path in state.batch_stats},
            )

        (loss, (seen, moving)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return grads, moving, seen | {"loss": loss}

    def accumulated(state: TrainState, frozen: Variables, batch, hyper, key, given: StepInputs):
        # Every n-th row, so that each device goes on with rows that it has.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, spec.grad_accum_steps, *x.shape[1:]), 1, 0), batch)

        def part(moving: Variables, numbered):
            number, rows = numbered
            grads, moving, seen = gradients(
                state._replace(batch_stats=moving), frozen, rows, hyper, jax.random.fold_in(key, number), given
            )
            return moving, (grads, seen)

        # A processor computes what is inside a loop many times slower.
        unroll = jax.default_backend() == "cpu"
        moving, (grads, seen) = jax.lax.scan(
            part, state.batch_stats, (jnp.arange(spec.grad_accum_steps), parts), unroll=unroll
        )
        correct = seen["correct"].sum()
        grads, seen = jax.tree.map(lambda x: x.mean(0), (grads, seen))
        return grads, moving, seen | {"correct": correct}

    def train_step(state: TrainState, frozen: Variables, batch, hyper, key, given: StepInputs = NO_INPUTS):
        key = jax.random.fold_in(key, state.step)
        differentiate = gradients if spec.grad_accum_steps == 1 else accumulated
        grads, moving, seen = differentiate(state, frozen, batch, hyper, key, given)
        optimizer = make_optimizer(spec.optimizer, hyper, dict(spec.param_groups))
        updates, opt = optimizer.update(grads, state.opt_state, state.params)
        learned = optax.apply_updates(state.params, updates)
        metrics = seen | {"finite": jnp.isfinite(seen["loss"]) & jnp.isfinite(optax.tree.norm(updates))}
        average = _averaged(state.ema, learned | moving, state.step, hyper) if spec.ema else {}
        return TrainState(learned, moving, opt, state.step + 1, average), metrics

    return train_step


@functools.lru_cache(maxsize=64)
def make_predict(task: Task, graphdef: nnx.GraphDef, preprocess: Preprocess, dtype: str):
    """Compiles `predict(leaves, batch) → {name: [B, ...]}`, the task's answers, in inference mode.

    `batch` is uint8 `image` [B, H, W, C], or the maps of first stages that are known already; with the task's targets,
    answers are compared with them.
    """
    prepare = make_preprocess(preprocess, preprocess.size, dtype)

    def predict(leaves: Variables, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        known = group_outputs({name: value for name, value in batch.items() if "/" in name}).get(
            FROZEN_STAGES, {"maps": {}}
        )["maps"]
        images = None if known else prepare(batch["image"])
        return task.predict(params_lib.merge(graphdef, leaves).forward_all(images, cached_features=known), batch)

    return jax.jit(predict, compiler_options=inference_options())


def merge_model(
    graphdef: nnx.GraphDef, changing: Variables, frozen: Variables, index: Mapping[str, jax.Array]
) -> nnx.Module:
    """The model of a step, from the leaves that change and those that do not.

    Args:
      graphdef: of the model.
      changing: learned leaves and moving statistics; of the paths in `index`, slices.
      frozen: all others, and the whole leaves of the paths in `index`.
      index: which output channels a slice is of.
    """
    slices = {path: changing[path] for path in index}
    whole = neurons.scatter({path: frozen[path] for path in index}, slices, index)
    model = params_lib.merge(graphdef, frozen | changing | whole)
    neurons.attach_channels(model, slices, index)
    return model


def _by_view(outputs: dict, inputs: Mapping[str, jax.Array]) -> dict:
    """Outputs on concatenated pictures → those of the labelled ones, and `{view: outputs}` of the others."""
    if len(inputs) < 2:
        return outputs
    found, start = {}, 0
    for name, images in inputs.items():
        end = start + len(images)
        found[name] = jax.tree.map(lambda x, a=start, b=end: x[a:b], outputs)
        start = end
    return found.pop("labelled") | found


def _averaged(average: Variables, new: Variables, step: jax.Array, hyper) -> Variables:
    """The running average; short at first, so that it forgets the start (Tarvainen & Valpola 2017, in their code)."""
    decay = jnp.minimum(hyper["average"], 1 - 1 / (step + 1))
    return {path: decay * average[path] + (1 - decay) * new[path] for path in new}
