"""Where a result comes from: what result.json holds besides the metrics, so that somebody else can get the same."""

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


def provenance(run: Experiment, progress: TrainProgress) -> dict:
    """Return the entries of result.json that are known when training ends."""
    config, source = run.config, run.source
    versions = {"python": platform.python_version(), "tljax": __version__}
    return {
        "task": run.predictor.task.name,
        "metric": run.predictor.task.metrics[0][0],
        "strategy": config.strategy.name,
        "phases": progress.phases,
        "phase_rows": phase_rows(run.plans, run.predictor),
        "best": progress.best,
        "seed": config.seed,
        "versions": versions | {package: importlib.metadata.version(package) for package in PACKAGES},
        "devices": [str(d) for d in jax.devices()],
        "weights": source.describe() if run.strategy.pretrained else None,
        "teachers": {name: teacher.describe() for name, teacher in run.networks.items()},
        "files": run.files,
        "preprocess": schema.to_dict(run.predictor.preprocess),
        "data": run.data.describe(),
        "config_digest": config_hash(config),
    }


def peak_memory() -> int:
    """Bytes: of the device where it keeps count, else of this process."""
    on_device = [d.memory_stats() for d in jax.local_devices()]
    if all(s and "peak_bytes_in_use" in s for s in on_device):
        return max(s["peak_bytes_in_use"] for s in on_device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
