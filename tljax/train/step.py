"""One training step of one run: a pure function of its state, a batch and the hyperparameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tljax.augment.pipeline import make_augment
from tljax.features.frozen_network import FROZEN_STAGES, apply_frozen, group_outputs
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.params import Variables
from tljax.train.optimizer import make_optimizer
from tljax.train.state import StepInputs, StepSpec, TrainState, merge_model
from tljax.weights import make_preprocess

Batch = Mapping[str, jax.Array]


@functools.lru_cache(maxsize=64)
def make_train_step(spec: StepSpec):
    """Compile `make_step_fn(spec)`; the state is donated."""
    return jax.jit(make_step_fn(spec), donate_argnums=0, compiler_options=spec.compiler_options)


@functools.lru_cache(maxsize=64)
def make_step_fn(spec: StepSpec) -> Callable:
    """Return the pure function `step(state, inputs, batch, hparams, key) → (state, metrics)`.

    `batch` has uint8 `image` [B, H, W, C], the targets of the task (`label`; in detection also `boxes` in pixels of the
    input), uint8 `unlabelled` [U, H, W, C] if the spec has views, and cached outputs of frozen networks. `image` may be
    absent if the features of the frozen stages are cached. `hparams` are `PhasePlan.hparams` with `lr` and `progress`
    of the step; `key` is the key of the phase. `metrics` are `loss`, `terms` (each loss, unweighted), `correct` (sum of
    the task's training metric over the batch) and `finite` (whether loss and update are finite).
    """
    make_views = views_fn(spec)

    def gradients(state: TrainState, inputs: StepInputs, batch: Batch, hparams: Mapping, key: jax.Array):
        augment_key, dropout_key = jax.random.split(key)
        batch, views = make_views(augment_key, batch)
        references: dict[str, Any] = frozen_outputs(spec, inputs, batch) | {"params": inputs.source_params}
        cached_features = references.pop(FROZEN_STAGES, {"maps": {}})["maps"]
        if "ema" in spec.requires:
            references["ema"] = merge_model(spec.graphdef, state.ema, inputs).forward_all(views.pop("ema"))

        def loss_fn(params: Variables):
            model = merge_model(spec.graphdef, params | state.batch_stats, inputs)
            set_dropout(model, hparams)
            outputs = forward(model, views, cached_features, dropout_key) | {"params": params}
            terms = [loss(outputs, batch, references, hparams) for loss in spec.losses]
            total = sum(weight * term for weight, term in zip(hparams["loss_weights"], terms, strict=True))
            correct = spec.task.train_metric(outputs, batch).sum(dtype=jnp.float32)
            updated = params_lib.batch_stats(model)
            return total, ({"terms": jnp.stack(terms), "correct": correct}, {p: updated[p] for p in state.batch_stats})

        (loss, (metrics, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return grads, batch_stats, metrics | {"loss": loss}

    grad_fn = gradients if spec.grad_accum_steps == 1 else accumulate(gradients, spec.grad_accum_steps)

    def train_step(state: TrainState, inputs: StepInputs, batch: Batch, hparams: Mapping, key: jax.Array):
        key = jax.random.fold_in(key, state.step)
        grads, batch_stats, metrics = grad_fn(state, inputs, batch, hparams, key)
        optimizer = make_optimizer(spec.optimizer, hparams, dict(spec.param_groups))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = metrics | {"finite": jnp.isfinite(metrics["loss"]) & jnp.isfinite(optax.tree.norm(updates))}
        ema = update_ema(state.ema, params | batch_stats, state.step, hparams) if spec.ema else {}
        return TrainState(params, batch_stats, opt_state, state.step + 1, ema), metrics

    return train_step


def views_fn(spec: StepSpec) -> Callable[[jax.Array, Batch], tuple[Batch, dict[str, jax.Array]]]:
    """Return the function `(key, batch) → (augmented batch, {view: preprocessed images})`.

    The views are "labelled" if the batch has images, "weak" and "strong" of the unlabelled images, and "ema", the weak
    view for the averaged weights.
    """
    preprocess = make_preprocess(spec.preprocess, spec.preprocess.size, spec.dtype)
    # All views of an image have the same class. Masks and boxes are comparable only between views with the same key.
    spatial = spec.task.spatial
    augment = make_augment(spec.augment, spec.preprocess.size if spatial else None, spec.preprocess.crop_share)

    def make_views(key: jax.Array, batch: Batch) -> tuple[Batch, dict[str, jax.Array]]:
        views = {}
        if "image" in batch:
            batch = augment["weak"](key, batch)
            views["labelled"] = preprocess(batch["image"])
        unlabelled: dict[str, Any] = {"image": batch.get("unlabelled")}
        keys = [jax.random.fold_in(key, 0 if spatial else i) for i in range(3)]
        for view_key, name in zip(keys, spec.views, strict=False):
            views[name] = preprocess(augment[name](view_key, unlabelled)["image"])
        if "ema" in spec.requires:
            views["ema"] = preprocess(augment["weak"](keys[-1], unlabelled)["image"])
        return batch, views

    return make_views


def frozen_outputs(spec: StepSpec, inputs: StepInputs, batch: Batch) -> dict[str, Any]:
    """Return the outputs of the frozen networks, cached in the batch or computed, as losses read them."""
    outputs = {name: value for name, value in batch.items() if "/" in name}
    for network, variables in zip(spec.networks, inputs.networks, strict=True):
        outputs |= apply_frozen(network, variables, batch["image"])
    return group_outputs(outputs)


def forward(model: Model, views: Mapping[str, jax.Array], cached_features: Mapping, key: jax.Array) -> dict:
    """Return the outputs for labelled images, and `{view: outputs}` for other views, from one forward pass."""
    images = jnp.concatenate(list(views.values())) if len(views) > 1 else views.get("labelled")
    outputs = model.forward_all(images, train=True, rngs=nnx.Rngs(dropout=key), cached_features=cached_features)
    if len(views) < 2:
        return outputs
    by_view, start = {}, 0
    for name, view in views.items():
        rows = slice(start, start + len(view))
        by_view[name] = jax.tree.map(lambda x, rows=rows: x[rows], outputs)
        start += len(view)
    return by_view.pop("labelled") | by_view


def set_dropout(model: Model, hparams: Mapping) -> None:
    """Set the dropout rate of the head, a hyperparameter, so that runs with different rates share one program."""
    drop = getattr(model.head, "drop", None)
    if drop is not None and drop.rate:
        drop.rate_override = nnx.data(hparams["dropout"])


def accumulate(gradients: Callable, parts: int) -> Callable:
    """Return a function that averages `gradients` over equal parts of the batch, computed one after another."""

    def accumulated(state: TrainState, inputs: StepInputs, batch: Batch, hparams: Mapping, key: jax.Array):
        # Part i has every parts-th row, so that rows stay on their device.
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)

        def compute_part(batch_stats: Variables, indexed_part):
            i, part = indexed_part
            part_state = state._replace(batch_stats=batch_stats)
            grads, batch_stats, metrics = gradients(part_state, inputs, part, hparams, jax.random.fold_in(key, i))
            return batch_stats, (grads, metrics)

        # XLA on CPU computes convolutions inside a loop many times slower.
        unroll = jax.default_backend() == "cpu"
        indexed_parts = jnp.arange(parts), split
        batch_stats, (grads, metrics) = jax.lax.scan(compute_part, state.batch_stats, indexed_parts, unroll=unroll)
        correct = metrics["correct"].sum()
        grads, metrics = jax.tree.map(lambda x: x.mean(0), (grads, metrics))
        return grads, batch_stats, metrics | {"correct": correct}

    return accumulated


def update_ema(ema: Variables, new: Variables, step: jax.Array, hparams: Mapping) -> Variables:
    """Return the updated average of weights, with less decay in the first steps (Tarvainen & Valpola 2017)."""
    decay = jnp.minimum(hparams["ema_decay"], 1 - 1 / (step + 1))
    return {path: decay * ema[path] + (1 - decay) * new[path] for path in new}
