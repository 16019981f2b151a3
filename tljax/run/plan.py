"""`--mode=plan`: what would learn and what it would cost, before anything is trained or written."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

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
    """What a phase costs.

    Attributes:
      learned_parameters: how many numbers learn.
      optimizer_bytes: of the optimizer's moments.
      forward_flops: of one batch in inference mode, by the compiler's own count.
      step_flops: of one training step; without what is computed once for all pictures.
      saved_flops: what that spares the phase.
    """

    trainable_parameters: int
    optimizer_bytes: int
    forward_flops: float
    step_flops: float
    saved_flops: float


def show(config: Config, console: Console) -> None:
    """Prints the plan of a config; of a sweep, once for every setting but the seed."""
    # A config without a sweep has one cell, without a name.
    settings = drop_seeds(expand_grid(config))
    singles = run_recipes([c.config for c in settings.values()], Path(config.workdir).parent, None)
    for name, single in zip(settings, singles, strict=True):
        prepared = prepare(single)
        if name:
            console.rule(name)
        for plan in prepared.plans:
            _show_phase(plan, phase_cost(prepared, plan), prepared, console)
    console.print("Nothing was trained or written.", highlight=False)


def phase_cost(prepared: Experiment, plan: PhasePlan) -> PhaseCost:
    """Counts a phase's cost from shapes alone."""
    leaves = prepared.predictor.flat.variables
    index = abstract_index(plan)
    learned, moving, frozen = jax.eval_shape(plan.partition, leaves, index)
    state = jax.eval_shape(lambda a, b: init_state(plan.spec, a, b, plan.hparams), learned, moving)
    size, picture = prepared.config.train.batch_size, prepared.data.train.images.shape[1:]
    images = jax.ShapeDtypeStruct((size, *picture), jnp.uint8)
    targets = prepared.data.train.targets(plan.spec.preprocess.size)
    batch = {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for name, x in targets.items()}
    if "boundary_weights" in plan.spec.requires:
        batch["weight"] = jax.ShapeDtypeStruct(batch["label"].shape, jnp.float32)
    batch |= {"image": images} if plan.needs_images else {}
    if plan.spec.views:
        pictures = size * prepared.config.strategy.unlabelled_ratio
        batch["unlabelled"] = jax.ShapeDtypeStruct((pictures, *picture), jnp.uint8)
    theirs = {name: teacher.flat.variables for name, teacher in prepared.networks.items()}
    for network in plan.cache_plan.cached:
        batch |= jax.eval_shape(functools.partial(apply_frozen, network), network.variables(theirs, leaves), images)
    origin = prepared.source_params(learned) if "source_params" in plan.spec.requires else {}
    networks = tuple(network.variables(theirs, leaves) for network in plan.spec.networks)
    given = StepInputs(frozen, index, origin, networks)
    now = {"lr": 0.0, "progress": 0.0}
    step = make_train_step(plan.spec).lower(state, given, batch, plan.hparams | now, jax.random.key(0))
    forward = prepared.predictor.predict_fn().lower(leaves, {"image": images})
    return PhaseCost(
        trainable_parameters=sum(int(np.prod(x.shape)) for x in learned.values()),
        optimizer_bytes=optimizer_bytes(state.opt_state),
        forward_flops=forward.cost_analysis()["flops"],
        step_flops=step.cost_analysis()["flops"],
        saved_flops=_saved(plan, leaves, images) if plan.cache_plan.cached_valid else 0.0,
    )


def _saved(plan: PhasePlan, leaves: Variables, images: jax.ShapeDtypeStruct) -> float:
    """Of the frozen first stages: what each pass over the pictures after the first would have cost again."""
    network, keeping = plan.cache_plan.cached_valid, plan.cache_plan
    ours = network.variables({}, leaves)
    run = jax.jit(functools.partial(apply_frozen, network)).lower(ours, images)
    kept = network in keeping.cached
    again = (plan.phase.epochs - max(1, keeping.num_views)) * plan.steps_per_epoch * len(images) * kept
    # Pictures that were validated on are judged once more, at the end.
    again += len(plan.evaluations) * keeping.cached_valid_bytes / network.output_bytes
    return run.cost_analysis()["flops"] / images.shape[0] * max(0.0, again)


def abstract_index(plan: PhasePlan) -> dict[str, jax.ShapeDtypeStruct]:
    """Which channels single neurons are of, as far as it is known before the weights: how many."""
    paths = {path: plan.channel_counts[layer] for layer, paths in plan.layers.items() for path in paths}
    return {path: jax.ShapeDtypeStruct((count,), jnp.int32) for path, count in paths.items() if count}


def _show_phase(plan: PhasePlan, cost: PhaseCost, prepared: Experiment, console: Console) -> None:
    leaves, counts = prepared.predictor.flat.variables, {path: x.shape[0] for path, x in abstract_index(plan).items()}
    table = Table(title=f"Phase: {plan.phase.name}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("path", overflow="fold")
    for name in ("shape", "group", "learns", "lr ×", "decay"):
        table.add_column(name, justify="left" if name in ("shape", "group") else "right")
    for path, group in plan.groups.items():
        single = f"{counts[path]} of {leaves[path].shape[-1]}" if group.partial else "yes"
        kind = "moves" if path in plan.batch_stats else single if group.trainable else "-"
        table.add_row(
            path,
            "×".join(map(str, leaves[path].shape)),
            Text(group.rule),
            kind,
            f"{group.lr_multiplier:g}" if path in plan.trainable else "-",
            "yes" if group.decay and plan.optim.weight_decay > 0 else "-",
            style=None if group.trainable else "dim",
        )
    console.print(table)
    total = sum(x.size for x in prepared.predictor.flat.params.values())
    after = [s for s in prepared.predictor.model.stage_names if s not in plan.frozen_stages]
    rows = {
        "length": f"{plan.phase.epochs:g} epochs, {plan.steps} steps of {prepared.config.train.batch_size} pictures",
        "optimizer": f"{plan.optim.name}, learning rate {plan.optim.lr:g}, {plan.optim.schedule}",
        "losses": " + ".join(f"{weight:g} {name}" for name, weight in plan.phase.losses),
        **_beside(plan, prepared),
        "learned parameters": f"{cost.trainable_parameters:,} of {total:,}",
        "optimizer state": format_bytes(cost.optimizer_bytes),
        "step": f"{_flops(cost.step_flops)}; the whole network's forward pass is {_flops(cost.forward_flops)}",
        "frozen prefix": (
            f"{plan.frozen_stages[0]} to {plan.frozen_stages[-1]}; gradients begin at {(after or ['head'])[0]}"
            if plan.frozen_stages
            else "none"
        ),
        "features": plan.cache_plan.describe() + (f"; saves {_flops(saved)}" if (saved := cost.saved_flops) else ""),
    }
    for name, value in rows.items():
        console.print(f"  {name:<19} {value}", highlight=False, markup=False, soft_wrap=True)
    console.print()


def _beside(plan: PhasePlan, prepared: Experiment) -> dict[str, str]:
    """Rows for what only some phases have: networks they look at, unlabelled pictures, an average, single neurons."""
    rows, config, head = {}, prepared.config, prepared.predictor.model.head
    if head.auxiliary_stages:
        added = (f"head/{name} on {stage}" for name, stage in head.auxiliary_stages)
        rows["further outputs"] = f"{', '.join(added)}, in training only"
    for network in (*plan.cache_plan.cached, *plan.spec.networks):
        if network.name == FROZEN_STAGES:
            continue
        when = "once for every picture" if network in plan.cache_plan.cached else "in every step, on augmented pictures"
        what = ["logits"] * network.logits + [f"maps of {', '.join(ours for ours, _ in network.maps)}"] * bool(
            network.maps
        )
        rows[network.name] = f"{prepared.networks[network.name].name}: {' and '.join(what)}, {when}"
    if plan.spec.views:
        count = config.train.batch_size * config.strategy.unlabelled_ratio
        rows["unlabelled"] = f"{count} of {len(prepared.data.unlabelled)} pictures a step: {', '.join(plan.spec.views)}"
    if plan.phase.ema_decay is not None:
        rows["average"] = f"of the weights, decay {plan.phase.ema_decay:g} a step; it is validated and kept"
    if plan.layers:
        chosen, where = (
            plan.phase.neurons,
            "all layers together" if plan.phase.neurons.scope == "global" else "each layer",
        )
        rows["neurons"] = (
            f"{sum(plan.channel_counts.values())} in {len(plan.layers)} layers, best of {where} by {chosen.criterion}"
        )
    return rows


def _flops(count: float) -> str:
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.3g} TFLOP"
