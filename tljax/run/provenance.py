"""Provenance of a result: the entries of result.json besides the metrics, which are needed to reproduce it."""

from __future__ import annotations

import importlib.metadata
import platform
import resource

import jax

from tljax import __version__
from tljax import config as schema
from tljax.run.experiment import Experiment
from tljax.run.phase_rows import phase_rows
from tljax.run.workdir import config_hash
from tljax.train.callbacks import TrainProgress

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")


def provenance(experiment: Experiment, progress: TrainProgress) -> dict:
    """Return the entries of result.json that do not depend on the evaluation of the best model.

    Args:
      experiment: the finished run.
      progress: at the end of training.
    """
    config, source = experiment.config, experiment.source
    versions = {"python": platform.python_version(), "tljax": __version__}
    return {
        "task": experiment.predictor.task.name,
        "metric": experiment.predictor.task.metrics[0].name,
        "strategy": config.strategy.name,
        "phases": progress.phases,
        "phase_rows": phase_rows(experiment.plans, experiment.predictor),
        "best": progress.best,
        "seed": config.seed,
        "versions": versions | {package: importlib.metadata.version(package) for package in PACKAGES},
        "devices": [str(d) for d in jax.devices()],
        "weights": source.describe() if source and experiment.strategy.pretrained else None,
        "teachers": {name: teacher.describe() for name, teacher in experiment.networks.items()},
        "files": experiment.files,
        "preprocess": schema.to_dict(experiment.predictor.preprocess),
        "data": experiment.data.describe(),
        "config_digest": config_hash(config),
    }


def peak_memory() -> int:
    """Return the peak memory in bytes: of a device if it reports it, else of this process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(s and "peak_bytes_in_use" in s for s in stats):
        return max(s["peak_bytes_in_use"] for s in stats)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
