"""This project's own training step, put together as `tljax.train.loop` does it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pictures

# Rules of a phase: pairs of path pattern and learning-rate multiple.
LEARNS = {
    "all": ((".*", 1.0),),
    "last": (("stage4/.*", 1.0), ("head/.*", 1.0), (".*", 0.0)),
    "head": (("head/.*", 1.0), (".*", 0.0)),
}


class OurStep:
    """The compiled step of a config's first phase, with its state; random weights where the config names none.

    `mesh_of` makes of the project's mesh the one that arrays are put on.
    """

    def __init__(self, config, mesh_of=lambda mesh: mesh):
        import jax

        from tljax.run.experiment import prepare
        from tljax.train.step import StepInputs, init_state, make_train_step

        self.prepared = prepare(config)
        self.plan, self.mesh = self.prepared.plans[0], mesh_of(self.prepared.predictor.mesh)
        self.leaves = self.mesh.put(self.prepared.load_variables())
        self.learned, moving, self.frozen = self.plan.partition(self.leaves, {})
        copies = jax.tree.map(jax.numpy.copy, (self.learned, moving))
        self.state = self.mesh.put(init_state(self.plan.spec, *copies, self.plan.hparams))
        self.hyper = self.plan.hparams | {"lr": config.optim.lr, "progress": 0.0}
        observed = tuple(network.variables({}, self.leaves) for network in self.plan.spec.networks)
        self.key, self.given = self.mesh.put(jax.random.key(config.seed)), StepInputs({}, {}, observed)
        self.step = make_train_step(self.plan.spec)

    def batch(self, images: np.ndarray, labels: np.ndarray) -> dict:
        """A batch on the devices, with the maps of frozen stages where the plan keeps them, and then no pictures."""
        batch = self.mesh.put_batch({"image": images, "label": labels.astype(np.int32)})
        if not self.plan.cached:
            return batch
        import jax

        from tljax.features.frozen_network import apply_frozen

        for network in self.plan.cached:
            said = jax.jit(functools.partial(apply_frozen, network))
            batch |= said(network.variables({}, self.leaves), batch["image"])
        return {name: value for name, value in batch.items() if name != "image" or self.plan.needs_images}

    def __call__(self, batch: dict) -> dict:
        """One step; its metrics, which wait on the device."""
        self.state, metrics = self.step(self.state, self.frozen, batch, self.hyper, self.key, self.given)
        return metrics

    def flops(self, batch: dict) -> float:
        """XLA's count for one step, before optimization."""
        program = self.step.lower(self.state, self.frozen, batch, self.hyper, self.key, self.given)
        return program.cost_analysis()["flops"]

    def facts(self) -> dict:
        """Bytes of what learns, and of the optimizer's moments."""
        from tljax.train.optimizer import optimizer_bytes

        learning = sum(x.nbytes for x in self.learned.values())
        return {"learning_bytes": int(learning), "optimizer_bytes": optimizer_bytes(self.state.opt)}


def our_step(task):
    """The step of a task of training.py, from uint8 pictures on the device, or from maps of the frozen stages."""
    import jax

    def make():
        with tempfile.TemporaryDirectory() as folder:
            step = OurStep(config_of(task, Path(folder)))
        split = step.prepared.data.train.select(np.arange(task["batch"]))
        batch = jax.block_until_ready(step.batch(split.images, split.labels))
        flops = step.flops(batch)
        return lambda: jax.block_until_ready((step(batch), step.state)), flops, step.facts

    return {"kept maps" if task["cached"] else "jit": make}


def config_of(task, folder: Path):
    """The config of a task; its data, random grey pictures, are written to the folder."""
    from tljax import config

    enough = -(-task["batch"] // task["classes"])
    for prefix, per_class in (("train", 2 * enough), ("t10k", 1)):
        images, labels = pictures.random_pictures(per_class, task["size"], task["classes"])
        pictures.write(folder, prefix, images, labels)
    c = config.default()
    c.data.name, c.data.path, c.data.image_size = "idx", str(folder), task["size"]
    c.model.backbone, c.model.preprocess = task["model"], "torch"
    c.strategy.name = "custom"
    c.strategy.phases = (config.Phase("step", LEARNS[task["learns"]]),)
    c.optim.name = task["optimizer"]
    c.train.batch_size, c.train.compute_dtype = task["batch"], task["dtype"]
    c.augment.flip, c.augment.crop_padding = task["augment"], 4 if task["augment"] else 0
    c.cache.storage = "memory" if task["cached"] else "none"
    return config.parse(c)
