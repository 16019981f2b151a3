"""`--mode=plan`: what would learn and what it would cost, before anything is trained or written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tljax.config import Config
from tljax.models import state as leaves_of
from tljax.report.report import humanise_bytes
from tljax.run.prepare import Prepared, prepare
from tljax.run.recipes import with_made_weights
from tljax.run.sweep import cells, one_per_setting
from tljax.train.loop import optimizer_bytes
from tljax.train.optimizer import hyper_of
from tljax.train.phases import PhasePlan
from tljax.train.step import init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a phase costs.

    Attributes:
      learned_parameters: how many numbers learn.
      optimizer_bytes: of the optimizer's moments.
      forward_flops: of one batch in inference mode, by the compiler's own count.
      step_flops: of one training step; the difference is backward pass, loss and update.
    """

    learned_parameters: int
    optimizer_bytes: int
    forward_flops: float
    step_flops: float


def show(config: Config, console: Console) -> None:
    """Prints the plan of a config; of a sweep, once for every setting but the seed."""
    # A config without a sweep has one cell, without a name.
    settings = one_per_setting(cells(config))
    singles = with_made_weights([c.config for c in settings.values()], Path(config.workdir).parent, None)
    for name, single in zip(settings, singles, strict=True):
        prepared = prepare(single)
        if name:
            console.rule(name)
        for plan in prepared.plans:
            _show_phase(plan, cost(prepared, plan), prepared, console)
    console.print("Nothing was trained or written.", highlight=False)


def cost(prepared: Prepared, plan: PhasePlan) -> Cost:
    """Counts a phase's cost from shapes alone."""
    leaves = prepared.network.leaves()
    learned, moving, frozen = plan.take(leaves)
    hyper = hyper_of(plan.optim)
    state = jax.eval_shape(lambda a, b: init_state(plan.spec, a, b, hyper), learned, moving)
    shape = (prepared.config.train.batch_size, *prepared.data.train.images.shape[1:])
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    batch = {"image": images, "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32)}
    step = make_train_step(plan.spec).lower(state, frozen, batch, hyper | {"lr": 0.0}, jax.random.key(0))
    forward = prepared.network.predictor().lower(leaves, images)
    return Cost(
        learned_parameters=sum(int(np.prod(x.shape)) for x in learned.values()),
        optimizer_bytes=optimizer_bytes(state.opt),
        forward_flops=forward.cost_analysis()["flops"],
        step_flops=step.cost_analysis()["flops"],
    )


def _show_phase(plan: PhasePlan, cost: Cost, prepared: Prepared, console: Console) -> None:
    leaves = prepared.network.leaves()
    table = Table(title=f"Phase: {plan.phase.name}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("path", overflow="fold")
    for name in ("shape", "group", "learns", "lr ×", "decay"):
        table.add_column(name, justify="left" if name in ("shape", "group") else "right")
    for path, group in plan.groups.items():
        kind = "moves" if path in plan.moving else "yes" if group.learns else "-"
        table.add_row(
            path,
            "×".join(map(str, leaves[path].shape)),
            Text(group.rule),
            kind,
            f"{group.multiplier:g}" if path in plan.learned else "-",
            "yes" if group.decay and plan.optim.weight_decay > 0 else "-",
            style=None if group.learns else "dim",
        )
    console.print(table)
    total = sum(x.size for x in leaves_of.split(prepared.network.model).params.values())
    after = [s for s in prepared.network.model.stage_names if s not in plan.prefix]
    backward = cost.step_flops - cost.forward_flops
    rows = {
        "length": f"{plan.phase.epochs:g} epochs, {plan.steps} steps of {prepared.config.train.batch_size} pictures",
        "optimizer": f"{plan.optim.name}, learning rate {plan.optim.lr:g}, {plan.optim.schedule}",
        "learned parameters": f"{cost.learned_parameters:,} of {total:,}",
        "optimizer state": humanise_bytes(cost.optimizer_bytes),
        "step": f"{_flops(cost.step_flops)}: forward {_flops(cost.forward_flops)}, backward {_flops(backward)}",
        "frozen prefix": (
            f"{plan.prefix[0]} to {plan.prefix[-1]}; gradients begin at {(after or ['head'])[0]}"
            if plan.prefix
            else "none"
        ),
    }
    for name, value in rows.items():
        console.print(f"  {name:<19} {value}", highlight=False)
    console.print()


def _flops(count: float) -> str:
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.3g} TFLOP"
