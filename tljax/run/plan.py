"""`--mode=plan`: what each phase trains and what it costs, computed from shapes; nothing is trained or written."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tljax.config import Config
from tljax.features.frozen_network import FROZEN_STAGES, apply_frozen
from tljax.models.params import Variables
from tljax.report.markdown import format_bytes
from tljax.run.experiment import Experiment, prepare
from tljax.run.recipes import run_recipes
from tljax.run.sweep import drop_seeds, expand_grid
from tljax.train.optimizer import optimizer_bytes
from tljax.train.plan import PhasePlan
from tljax.train.state import StepInputs, init_state
from tljax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class PhaseCost:
    """The cost of a phase; FLOPs as counted by XLA's cost analysis.

    Attributes:
      trainable_parameters: how many numbers train.
      optimizer_bytes: size of the optimizer state.
      forward_flops: of one batch in inference mode.
      step_flops: of one training step, without what is computed once and cached.
      saved_flops: what caching the features of the frozen stages saves over the whole phase.
    """

    trainable_parameters: int
    optimizer_bytes: int
    forward_flops: float
    step_flops: float
    saved_flops: float


def print_plan(config: Config, console: Console) -> None:
    """Print the plan of a config; of a sweep, one for each combination of settings, without the seeds.

    Raises:
      UserError: an error of `prepare`.
    """
    trials = drop_seeds(expand_grid(config))  # one trial with an empty name if there is no sweep
    configs = run_recipes([trial.config for trial in trials.values()], config.folder.parent, None)
    for name, trial_config in zip(trials, configs, strict=True):
        experiment = prepare(trial_config)
        if name:
            console.rule(name)
        for plan in experiment.plans:
            _print_phase(plan, experiment, console)
    console.print("Nothing was trained or written.", highlight=False)


def phase_cost(experiment: Experiment, plan: PhasePlan) -> PhaseCost:
    """Return the cost of a phase; nothing is computed but shapes."""
    predictor = experiment.predictor
    variables = predictor.flat.variables
    index = abstract_index(plan)
    params, batch_stats, frozen = jax.eval_shape(plan.partition, variables, index)
    state = jax.eval_shape(lambda p, s: init_state(plan.spec, p, s, plan.hparams), params, batch_stats)
    networks = {name: teacher.flat.variables for name, teacher in experiment.networks.items()}
    inputs = StepInputs(
        frozen=frozen,
        channel_index=index,
        source_params=experiment.source_params(params) if "source_params" in plan.spec.requires else {},
        networks=tuple(network.variables(networks, variables) for network in plan.spec.networks),
    )
    images = _abstract_images(experiment, experiment.config.train.batch_size)
    batch = _abstract_batch(experiment, plan)
    for network in plan.cache_plan.cached:
        outputs = functools.partial(apply_frozen, network)
        batch |= jax.eval_shape(outputs, network.variables(networks, variables), images)
    hparams = plan.hparams | {"lr": 0.0, "progress": 0.0}
    step = make_train_step(plan.spec).lower(state, inputs, batch, hparams, jax.random.key(0))
    forward = predictor.predict_fn().lower(variables, {"image": images})
    return PhaseCost(
        trainable_parameters=sum(int(np.prod(x.shape)) for x in params.values()),
        optimizer_bytes=optimizer_bytes(state.opt_state),
        forward_flops=_flops(forward),
        step_flops=_flops(step),
        saved_flops=_saved_flops(plan, variables, images),
    )


def _abstract_images(experiment: Experiment, count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *experiment.data.train.images.shape[1:]), jnp.uint8)


def _abstract_batch(experiment: Experiment, plan: PhasePlan) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a training batch, without the outputs of cached networks."""
    size = experiment.config.train.batch_size
    targets = experiment.data.train.targets(plan.spec.preprocess.side)
    batch = {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for name, x in targets.items()}
    if "boundary_weights" in plan.spec.requires:
        batch["weight"] = jax.ShapeDtypeStruct(batch["label"].shape, jnp.float32)
    if plan.needs_images:
        batch["image"] = _abstract_images(experiment, size)
    if plan.spec.views:
        batch["unlabelled"] = _abstract_images(experiment, size * experiment.config.strategy.unlabelled_ratio)
    return batch


def _saved_flops(plan: PhasePlan, variables: Variables, images: jax.ShapeDtypeStruct) -> float:
    """Return the FLOPs of the frozen stages in all passes over the images after the first, which caching saves."""
    cache_plan = plan.cache_plan
    network = cache_plan.cached_valid
    if network is None:
        return 0.0
    forward = jax.jit(functools.partial(apply_frozen, network)).lower(network.variables({}, variables), images)
    passes = 0.0  # in images
    if network in cache_plan.cached:
        passes += (plan.phase.length - max(1, cache_plan.num_views)) * plan.steps_per_epoch * len(images)
    # Validation images are evaluated once more at the end.
    passes += len(plan.evaluations) * cache_plan.cached_valid_bytes / network.output_bytes
    return _flops(forward) / images.shape[0] * max(0.0, passes)


def _flops(program: jax.stages.Lowered) -> float:
    cost: Any = program.cost_analysis()
    return cost["flops"]


def abstract_index(plan: PhasePlan) -> dict[str, Any]:
    """Return the shape of the channel index of each partially trained parameter; the weights determine its values."""
    counts = {path: plan.channel_counts[layer] for layer, paths in plan.layers.items() for path in paths}
    return {path: jax.ShapeDtypeStruct((count,), jnp.int32) for path, count in counts.items() if count}


def _print_phase(plan: PhasePlan, experiment: Experiment, console: Console) -> None:
    console.print(_variable_table(plan, experiment))
    for name, value in _summary_rows(plan, experiment).items():
        console.print(f"  {name:<20} {value}", highlight=False, markup=False, soft_wrap=True)
    console.print()


def _variable_table(plan: PhasePlan, experiment: Experiment) -> Table:
    """Return a table of all variables with their parameter groups."""
    variables = experiment.predictor.flat.variables
    counts = {path: x.shape[0] for path, x in abstract_index(plan).items()}
    table = Table(title=f"Phase: {plan.phase.name}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("path", overflow="fold")
    for name in ("shape", "group", "trains", "lr ×", "decay"):
        table.add_column(name, justify="left" if name in ("shape", "group") else "right")
    for path, group in plan.groups.items():
        if path in plan.batch_stats:
            trains = "updated"
        elif group.partial:
            trains = f"{counts[path]} of {variables[path].shape[-1]}"
        else:
            trains = "yes" if group.trainable else "-"
        table.add_row(
            path,
            "×".join(map(str, variables[path].shape)),
            Text(group.rule),
            trains,
            f"{group.lr_multiplier:g}" if path in plan.trainable else "-",
            "yes" if group.decay and plan.optim.weight_decay > 0 else "-",
            style=None if group.trainable else "dim",
        )
    return table


def _summary_rows(plan: PhasePlan, experiment: Experiment) -> dict[str, str]:
    """Return the lines below the table of variables, {name: text}."""
    predictor = experiment.predictor
    cost = phase_cost(experiment, plan)
    total = sum(x.size for x in predictor.flat.params.values())
    frozen = "none"
    if plan.frozen_stages:
        trained = [stage for stage in predictor.model.stage_names if stage not in plan.frozen_stages]
        frozen = (
            f"{plan.frozen_stages[0]} to {plan.frozen_stages[-1]}; the backward pass ends at {(trained or ['head'])[0]}"
        )
    saved = f"; saves {_format_flops(cost.saved_flops)}" if cost.saved_flops else ""
    forward = _format_flops(cost.forward_flops)
    return {
        "length": f"{plan.phase.epochs:g} epochs, {plan.steps} steps of {experiment.config.train.batch_size} images",
        "optimizer": f"{plan.optim.name}, learning rate {plan.optim.lr:g}, {plan.optim.schedule}",
        "losses": " + ".join(f"{weight:g} {name}" for name, weight in plan.phase.losses),
        **_optional_rows(plan, experiment),
        "trainable parameters": f"{cost.trainable_parameters:,} of {total:,}",
        "optimizer state": format_bytes(cost.optimizer_bytes),
        "step": f"{_format_flops(cost.step_flops)}; the forward pass of the whole network is {forward}",
        "frozen stages": frozen,
        "features": plan.cache_plan.describe() + saved,
    }


def _optional_rows(plan: PhasePlan, experiment: Experiment) -> dict[str, str]:
    """Return lines about what only some phases have: other networks, unlabelled images, averages, partial training."""
    rows = {}
    config = experiment.config
    if stages := experiment.predictor.model.head.auxiliary_stages:
        outputs = ", ".join(f"head/{name} on {stage}" for name, stage in stages)
        rows["auxiliary outputs"] = f"{outputs}, in training only"
    for network in (*plan.cache_plan.cached, *plan.spec.networks):
        if network.name == FROZEN_STAGES:
            continue
        outputs = ["logits"] if network.logits else []
        if network.maps:
            outputs.append(f"features of {', '.join(stage for stage, _ in network.maps)}")
        cached = network in plan.cache_plan.cached
        when = "computed once for every image" if cached else "computed in every step, on augmented images"
        rows[network.name] = f"{experiment.networks[network.name].name}: {' and '.join(outputs)}, {when}"
    if plan.spec.views:
        count = config.train.batch_size * config.strategy.unlabelled_ratio
        assert experiment.data.unlabelled is not None  # `prepare` checks it
        total = len(experiment.data.unlabelled)
        rows["unlabelled"] = f"{count} of {total} images per step: {', '.join(plan.spec.views)}"
    if plan.phase.ema_decay is not None:
        rows["weight average"] = f"decay {plan.phase.ema_decay:g} per step; the average is validated and saved"
    if plan.layers:
        neurons = plan.phase.neurons
        scope = "all layers together" if neurons.scope == "global" else "each layer"
        count = sum(plan.channel_counts.values())
        rows["neurons"] = f"{count} in {len(plan.layers)} layers, the best of {scope} by {neurons.criterion}"
    return rows


def _format_flops(count: float) -> str:
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.3g} TFLOP"
