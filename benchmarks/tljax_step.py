"""The training step of tljax, assembled as in `tljax.train.loop`."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import images as image_files
import numpy as np

# Rules of a phase by the trainable part of a task: pairs of path pattern and learning-rate multiple.
RULES = {
    "all": ((".*", 1.0),),
    "last": (("stage4/.*", 1.0), ("head/.*", 1.0), (".*", 0.0)),
    "head": (("head/.*", 1.0), (".*", 0.0)),
}


class TljaxStep:
    """The compiled step of a config's first phase with its state; random weights unless the config names some.

    Args:
      config: the run's config.
      wrap_mesh: function from the run's mesh to the one that arrays are placed on.
    """

    def __init__(self, config, wrap_mesh=lambda mesh: mesh):
        import jax

        from tljax.run.experiment import prepare
        from tljax.train.state import StepInputs, init_state
        from tljax.train.step import make_train_step

        self.experiment = prepare(config)
        self.plan = self.experiment.plans[0]
        self.mesh = wrap_mesh(self.experiment.predictor.mesh)
        self.variables = self.mesh.put(self.experiment.load_variables())
        self.params, batch_stats, frozen = self.plan.partition(self.variables, {})
        copies = jax.tree.map(jax.numpy.copy, (self.params, batch_stats))
        self.state = self.mesh.put(init_state(self.plan.spec, *copies, self.plan.hparams))
        self.hparams = self.plan.hparams | {"lr": config.optim.lr, "progress": 0.0}
        frozen_networks = tuple(network.variables({}, self.variables) for network in self.plan.spec.networks)
        self.key = self.mesh.put(jax.random.key(config.seed))
        self.inputs = self.mesh.put(StepInputs(frozen, {}, {}, frozen_networks))
        self.step = make_train_step(self.plan.spec)

    def batch(self, images: np.ndarray, labels: np.ndarray) -> dict:
        """Return a batch on the devices; features of the cached stages replace images that the step does not need."""
        batch = self.mesh.put_batch({"image": images, "label": labels.astype(np.int32)})
        if not self.plan.cache_plan.cached:
            return batch
        import jax

        from tljax.features.frozen_network import apply_frozen

        for network in self.plan.cache_plan.cached:
            outputs = jax.jit(functools.partial(apply_frozen, network))
            batch |= outputs(network.variables({}, self.variables), batch["image"])
        return {name: value for name, value in batch.items() if name != "image" or self.plan.needs_images}

    def __call__(self, batch: dict) -> dict:
        """Run one step and return its metrics as device arrays."""
        self.state, metrics = self.step(self.state, self.inputs, batch, self.hparams, self.key)
        return metrics

    def flops(self, batch: dict) -> float:
        """Return the FLOPs of one step as counted by XLA before optimization."""
        program = self.step.lower(self.state, self.inputs, batch, self.hparams, self.key)
        return program.cost_analysis()["flops"]

    def facts(self) -> dict:
        """Return the bytes of the trainable parameters and of the optimizer's moments."""
        from tljax.train.optimizer import optimizer_bytes

        trainable = sum(x.nbytes for x in self.params.values())
        return {"trainable_bytes": int(trainable), "optimizer_bytes": optimizer_bytes(self.state.opt_state)}


def tljax_variants(task):
    """Return the variant of a task of training.py, from uint8 images on the device or from cached features."""
    import jax

    def make():
        with tempfile.TemporaryDirectory() as folder:
            step = TljaxStep(task_config(task, Path(folder)))
        split = step.experiment.data.train.select(np.arange(task["batch"]))
        batch = jax.block_until_ready(step.batch(split.images, split.labels))
        flops = step.flops(batch)
        return lambda: jax.block_until_ready((step(batch), step.state)), flops, step.facts

    return {"cached features" if task["cached"] else "jit": make}


def task_config(task, folder: Path):
    """Return the config of a task, after writing its data, random gray images, to the folder."""
    from tljax import config

    per_class = -(-task["batch"] // task["classes"])
    for prefix, count in (("train", 2 * per_class), ("t10k", 1)):
        images, labels = image_files.random_images(count, task["size"], task["classes"])
        image_files.write(folder, prefix, images, labels)
    c = config.default()
    c.data.name = "idx"
    c.data.path = str(folder)
    c.data.image_size = task["size"]
    c.model.backbone = task["model"]
    c.model.preprocess = "torch"
    c.strategy.name = "custom"
    c.strategy.phases = (config.Phase("step", RULES[task["trainable"]]),)
    c.optim.name = task["optimizer"]
    c.train.batch_size = task["batch"]
    c.train.compute_dtype = task["dtype"]
    c.augment.flip = task["augment"]
    c.augment.crop_padding = 4 if task["augment"] else 0
    c.cache.storage = "memory" if task["cached"] else "none"
    return config.parse(c)
