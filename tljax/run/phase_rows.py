"""What the diagram of a run's phases shows, as plain data: which share of each stage is trainable, and how."""

from __future__ import annotations

from collections.abc import Sequence

from tljax.inference.predictor import Predictor
from tljax.models.params import FlatModel
from tljax.train.plan import PhasePlan


def phase_rows(plans: Sequence[PhasePlan], predictor: Predictor) -> list[dict]:
    """Describe phases stage by stage, as JSON.

    Args:
      plans: of the phases, in order.
      predictor: config and model of the run.

    Returns:
      For each phase its `name`, its `share` of the epochs, `cells`, the fields of
      `tljax.report.phase_diagram.StageCell` by the name of a stage, the head or an auxiliary output, and `badges`: what
      it uses besides the labelled images.
    """
    model, flat, lr = predictor.model, predictor.flat, predictor.config.optim.lr
    epochs = sum(plan.phase.epochs for plan in plans)
    auxiliary = {f"head/{name}/": name for name, _ in model.head.auxiliary_stages}
    starts = {f"{stage}/": stage for stage in model.stage_names} | auxiliary | {"head/": "head"}
    paths: dict[str, list[str]] = {name: [] for name in (*model.stage_names, "head", *auxiliary.values())}
    for path in flat.params | flat.batch_stats:
        paths[next(name for start, name in starts.items() if path.startswith(start))].append(path)
    with_params = {name: stage for name, stage in paths.items() if set(stage) & flat.params.keys()}
    return [
        {
            "name": plan.phase.name,
            "share": plan.phase.epochs / epochs,
            "cells": {name: _cell(plan, stage, flat, lr) for name, stage in with_params.items()},
            "badges": _badges(plan),
        }
        for plan in plans
    ]


def _cell(plan: PhasePlan, paths: list[str], flat: FlatModel, lr: float) -> dict:
    params, trained = set(paths) & flat.params.keys(), set(paths) & set(plan.trainable)
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
    needs = plan.spec.requires
    used = {
        "teacher": "teachers" in needs,
        "source": any(need in needs for need in ("source_maps", "source_logits", "source_params")),
        "weak": "weak" in needs,
        "strong": "strong" in needs,
        "ema": plan.phase.ema_decay is not None,
    }
    return [mark for mark, here in used.items() if here]
