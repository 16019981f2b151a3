"""What the diagram of a run's phases shows, as plain data: which share of each stage is trainable, and how."""

from __future__ import annotations

from collections.abc import Sequence

from tljax.models import Model
from tljax.models import params as params_lib
from tljax.train.plan import PhasePlan


def phase_rows(plans: Sequence[PhasePlan], model: Model, lr: float) -> list[dict]:
    """Describe phases stage by stage, as JSON.

    Args:
      plans: of the phases, in order.
      model: which may be abstract.
      lr: learning rate that multiples are of.

    Returns:
      For each phase its `name`, its `share` of the epochs, `cells`, the fields of
      `tljax.report.phase_diagram.StageCell` by the name of a stage, the head or an auxiliary output, and `marks`: what
      it uses besides the labelled images.
    """
    leaves, epochs = params_lib.flatten_model(model), sum(plan.phase.epochs for plan in plans)
    further = {f"head/{name}/": name for name, _ in model.head.auxiliary_stages}
    starts = {f"{stage}/": stage for stage in model.stage_names} | further | {"head/": "head"}
    paths: dict[str, list[str]] = {name: [] for name in (*model.stage_names, "head", *further.values())}
    for path in leaves.params | leaves.batch_stats:
        paths[next(name for start, name in starts.items() if path.startswith(start))].append(path)
    with_params = {name: stage for name, stage in paths.items() if set(stage) & leaves.params.keys()}
    return [
        {
            "name": plan.phase.name,
            "share": plan.phase.epochs / epochs,
            "cells": {name: _block(plan, stage, leaves, lr) for name, stage in with_params.items()},
            "marks": _marks(plan),
        }
        for plan in plans
    ]


def _block(plan: PhasePlan, paths: list[str], leaves: params_lib.FlatModel, lr: float) -> dict:
    params, learned = set(paths) & leaves.params.keys(), set(paths) & set(plan.trainable)
    share = sum(leaves.params[p].size for p in learned) / sum(leaves.params[p].size for p in params)
    layers = {layer: kernel for layer, (kernel, *_) in plan.layers.items() if kernel in params}
    single = bool(learned) and all(plan.groups[p].partial for p in learned)
    if single:
        outputs = sum(leaves.params[kernel].shape[-1] for kernel in layers.values())
        share = sum(plan.channel_counts[layer] for layer in layers) / outputs
    statistics = set(paths) & leaves.batch_stats.keys()
    return {
        "share": share,
        "partial": single,
        "lr_multipliers": sorted({plan.groups[p].lr_multiplier * plan.optim.lr / lr for p in learned}),
        "batch_stats": bool(statistics & set(plan.batch_stats)) if statistics else None,
    }


def _marks(plan: PhasePlan) -> list[str]:
    needs = plan.spec.requires
    used = {
        "teacher": "teachers" in needs,
        "source": any(need in needs for need in ("source_maps", "source_logits", "source_leaves")),
        "weak": "weak" in needs,
        "strong": "strong" in needs,
        "average": plan.phase.ema_decay is not None,
    }
    return [mark for mark, here in used.items() if here]
