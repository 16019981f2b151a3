"""The content of a run's phase diagram as plain data: which share of each stage is trained, and how."""

from __future__ import annotations

from collections.abc import Sequence

from tljax.inference.predictor import Predictor
from tljax.models.params import FlatModel
from tljax.train.plan import PhasePlan


def phase_rows(plans: Sequence[PhasePlan], predictor: Predictor) -> list[dict]:
    """Describe each phase by stages, as JSON.

    Args:
      plans: of the phases, in order.
      predictor: config and model of the run.

    Returns:
      For each phase, its `name`, its `share` of the epochs, `cells`, {stage, head or auxiliary output: fields of
      `tljax.report.phase_diagram.StageCell`}, and `badges`, what it uses besides the labelled images.
    """
    model = predictor.model
    flat = predictor.flat
    lr = predictor.config.optim.lr
    epochs = sum(plan.phase.length for plan in plans)
    auxiliary = {f"head/{name}/": name for name, _ in model.head.auxiliary_stages}
    # Prefixes of paths; those of auxiliary outputs come before the one of the head.
    prefixes = {f"{stage}/": stage for stage in model.stage_names} | auxiliary | {"head/": "head"}
    paths: dict[str, list[str]] = {name: [] for name in (*model.stage_names, "head", *auxiliary.values())}
    for path in flat.params | flat.batch_stats:
        paths[next(name for prefix, name in prefixes.items() if path.startswith(prefix))].append(path)
    paths_by_cell = {name: cell for name, cell in paths.items() if set(cell) & flat.params.keys()}
    return [
        {
            "name": plan.phase.name,
            "share": plan.phase.length / epochs,
            "cells": {name: _cell(plan, cell, flat, lr) for name, cell in paths_by_cell.items()},
            "badges": _badges(plan),
        }
        for plan in plans
    ]


def _cell(plan: PhasePlan, paths: list[str], flat: FlatModel, lr: float) -> dict:
    params = set(paths) & flat.params.keys()
    trained = set(paths) & set(plan.trainable)
    share = sum(flat.params[p].size for p in trained) / sum(flat.params[p].size for p in params)
    layers = {layer: kernel for layer, (kernel, *_) in plan.layers.items() if kernel in params}
    partial = bool(trained) and all(plan.groups[p].partial for p in trained)
    if partial:
        outputs = sum(flat.params[kernel].shape[-1] for kernel in layers.values())
        share = sum(plan.channel_counts[layer] for layer in layers) / outputs
    statistics = set(paths) & flat.batch_stats.keys()
    return {
        "share": share,
        "partial": partial,
        "lr_multipliers": sorted({plan.groups[p].lr_multiplier * plan.optim.lr / lr for p in trained}),
        "batch_stats": bool(statistics & set(plan.batch_stats)) if statistics else None,
    }


def _badges(plan: PhasePlan) -> list[str]:
    requires = plan.spec.requires
    used = {
        "teacher": "teachers" in requires,
        "source": bool(requires & {"source_maps", "source_logits", "source_params"}),
        "weak": "weak" in requires,
        "strong": "strong" in requires,
        "ema": plan.phase.ema_decay is not None,
    }
    return [badge for badge, is_used in used.items() if is_used]
