"""Which runs of a sweep train as one compiled program: those that differ in numbers alone."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from tljax import config as schema
from tljax.config import Config, StrategyConfig
from tljax.models.model import feature_shapes
from tljax.run.experiment import Experiment, prepare, with_hparams
from tljax.run.workdir import result_fields
from tljax.train.plan import PhasePlan

# Fraction of a device's memory for the states and features of runs that train together.
MEMORY_FRACTION = 0.3
# Fields of `strategy` that may differ within a group. Where one changes the program after all, `plan_groups` divides
# the group by the plans of the runs.
NUMERIC_FIELDS = ("hparams", *(f.name for f in dataclasses.fields(StrategyConfig) if f.type == "float"))


def group_key(config: Config) -> str:
    """Return what runs that may train together have in common.

    It includes the seed: runs of different seeds read different images in a different order.
    """
    tree = result_fields(schema.to_dict(config))
    del tree["optim"]
    tree["model"]["dropout"] = tree["model"]["dropout"] > 0
    tree["strategy"] = {name: value for name, value in tree["strategy"].items() if name not in NUMERIC_FIELDS}
    return json.dumps(tree, sort_keys=True)


def plan_groups(configs: Sequence[Config]) -> Iterator[list[tuple[int, Experiment]]]:
    """Prepare runs of one `group_key`, and divide them into groups that are one program and fit into memory.

    Yields:
      For each group, the index in `configs` and the experiment of each of its runs.
    """
    first = prepare(configs[0])
    groups: dict[tuple, list[tuple[int, Experiment]]] = {}
    for index, config in enumerate(configs):
        run = first if index == 0 else with_hparams(first, config)
        program = tuple((p.spec, p.steps, p.evaluations, p.checkpoints, p.frozen_stages) for p in run.plans)
        groups.setdefault(program, []).append((index, run))
    for group in groups.values():
        size = _max_group_size(group[0][1])
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _max_group_size(run: Experiment) -> int:
    """Return how many such runs train at once.

    1 where single channels train, since each run may select others, and where an earlier phase changes stages that a
    later one freezes, since each run then has other frozen features.
    """
    if must_run_sequentially(run):
        return 1
    changed: set[str] = set()
    for plan in run.plans:
        frozen = tuple(f"{stage}/" for stage in plan.frozen_stages)
        if plan.layers or any(path.startswith(frozen) for path in changed):
            return 1
        changed.update(plan.changing)
    memory = MEMORY_FRACTION * run.predictor.mesh.device_memory()
    return max(1, int(memory / max(_step_bytes(run, plan) for plan in run.plans)))


def batching_mode(run: Experiment) -> str:
    """Return "vmap" if replicas of a run are computed at once within a step, "map" if one after another.

    Products with small dense layers become one product for all replicas: 32 heads on VGG-16's features take 0.6 ms per
    step at once and 2.3 ms one after another (two CPU cores). Convolutions with kernels of their own become grouped
    convolutions, which are not faster.
    """
    return "vmap" if _only_dense(run) else "map"


def must_run_sequentially(run: Experiment) -> bool:
    """Return whether such runs train one after another, with the same program, instead of together.

    XLA on CPU runs convolutions inside a loop many times slower, and those of several runs would be in one: a step of
    four ResNet-8 takes 117 ms sequentially, 1,400 ms in a loop and 2,500 ms at once (two cores).
    """
    return jax.default_backend() == "cpu" and not _only_dense(run)


def _only_dense(run: Experiment) -> bool:
    return all(plan.spec.dense for plan in run.plans)


def _step_bytes(run: Experiment, plan: PhasePlan) -> int:
    """Return roughly the bytes of one run's state, gradients and features in a step."""
    variables = run.predictor.flat.variables
    sizes = (math.prod(variables[path].shape) * np.dtype(variables[path].dtype).itemsize for path in plan.changing)
    shapes = feature_shapes(run.predictor.model, run.predictor.preprocess.side)
    numbers = sum(math.prod(shape) for stage, shape in shapes.items() if stage not in plan.frozen_stages)
    # A stage has about ten inner feature maps of the size of its output, in float32.
    return 6 * sum(sizes) + 4 * 10 * numbers * run.config.train.batch_size + (1 << 20)
