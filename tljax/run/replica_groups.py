"""Which runs of a sweep train together, as one compiled program: those that differ in numbers alone."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from tljax import config as schema
from tljax.config import Config, StrategyConfig
from tljax.models.factory import feature_shapes
from tljax.run.experiment import Experiment, prepare, with_hparams
from tljax.run.workdir import result_fields

# Of a device's memory, what the states and maps of runs that train together may take.
SHARE = 0.3
# Fields that may differ: where they shape a program after all, `batches` sees it in what they lead to.
NUMERIC_FIELDS = ("hparams", *(f.name for f in dataclasses.fields(StrategyConfig) if f.type == "float"))


def group_key(config: Config) -> str:
    """What runs that may train together have in common; runs of another seed see other pictures in another order."""
    tree = result_fields(schema.to_dict(config))
    del tree["optim"]
    tree["model"]["dropout"] = tree["model"]["dropout"] > 0
    tree["strategy"] = {name: value for name, value in tree["strategy"].items() if name not in NUMERIC_FIELDS}
    return json.dumps(tree, sort_keys=True)


def plan_groups(configs: Sequence[Config]) -> Iterator[list[tuple[int, Experiment]]]:
    """Prepares runs that are alike, and divides them into those that are one program and fit into memory.

    Yields:
      Pairs of a run's place in `configs` and what it is.
    """
    first = prepare(configs[0])
    groups: dict[tuple, list[tuple[int, Experiment]]] = {}
    for place, config in enumerate(configs):
        run = first if place == 0 else with_hparams(first, config)
        program = tuple((p.spec, p.steps, p.evaluations, p.checkpoints, p.frozen_stages) for p in run.plans)
        groups.setdefault(program, []).append((place, run))
    for group in groups.values():
        most = _most(group[0][1])
        for start in range(0, len(group), most):
            yield group[start : start + most]


def _most(run: Experiment) -> int:
    """How many such runs train at once.

    Where single neurons learn, each run may have chosen others; where first stages are frozen that an earlier phase has
    changed, each has others: such runs train alone.
    """
    if must_run_sequentially(run):
        return 1
    changed: set[str] = set()
    for plan in run.plans:
        if plan.layers or any(path.startswith(tuple(f"{stage}/" for stage in plan.frozen_stages)) for path in changed):
            return 1
        changed.update(plan.changing)
    return max(1, int(SHARE * run.predictor.mesh.device_memory() / max(_bytes(run, plan) for plan in run.plans)))


def batching_mode(run: Experiment) -> str:
    """Whether runs like this are computed all at once, or one after another within a step.

    Products with small dense layers become one product for all: 32 heads on VGG-16's features take 0.6 ms a step, one
    after another 2.3 ms (two cores). Convolutions with kernels of each run's own become grouped ones, which gain
    nothing.
    """
    return "vmap" if _dense(run) else "map"


def must_run_sequentially(run: Experiment) -> bool:
    """Whether runs like this train one after another, each by the same program, instead of together.

    On a processor, what is inside a loop is many times slower, and convolutions of several runs would be in one: a step
    of four ResNet-8 takes 117 ms in turns, 1,400 ms in a loop, and 2,500 ms all at once (two cores).
    """
    return jax.default_backend() == "cpu" and not _dense(run)


def _dense(run: Experiment) -> bool:
    return all(plan.spec.dense for plan in run.plans)


def _bytes(run: Experiment, plan) -> int:
    """What one run's state, gradients and maps take in a step, roughly."""
    leaves, model = run.predictor.flat.variables, run.predictor.model
    state = 6 * sum(math.prod(leaves[path].shape) * np.dtype(leaves[path].dtype).itemsize for path in plan.changing)
    maps = feature_shapes(model, run.predictor.preprocess.size)
    # A stage has about ten inner maps of the size of its own.
    places = sum(math.prod(shape) for name, shape in maps.items() if name not in plan.frozen_stages)
    return state + 4 * 10 * places * run.config.train.batch_size + (1 << 20)
