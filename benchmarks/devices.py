"""The same training steps on one device, on several virtual devices, and on devices of two processes.

    python benchmarks/devices.py STEPS [PROCESS PROCESSES PORT]

runs one configuration: a ResNet on digits with batch size 64. It prints the losses and the seconds per step.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

from bench import REPO, Bench, row

BATCH = 64


def devices(bench: Bench) -> list[dict]:
    """The same steps on 1, 2, 4 and 8 virtual CPU devices, and on two devices of two processes."""
    steps = 3 if bench.quick else 20
    rows = []
    expected_losses = None
    for count, processes in ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2)):
        name = f"tljax, {count} device{'s' * (count > 1)}" + (f" of {processes} processes" if processes > 1 else "")
        bench.on_status(f"devices: {name}")
        output, error = _run(bench, steps, count // processes, processes)
        if error:
            rows.append(row("devices", name, [], "s/step", error=error))
            continue
        losses = output["losses"]
        expected_losses = expected_losses or losses
        difference = max(abs(a - b) for a, b in zip(expected_losses, losses, strict=True))
        note = f"{steps} losses, {expected_losses[0]:.4f} to {expected_losses[-1]:.4f}; "
        note += f"largest difference to one device {difference:.1e}"
        rows.append(row("devices", name, output["seconds"], "s/step", note=note, losses=losses))
    return rows


def _run(bench: Bench, steps: int, devices_per_process: int, processes: int) -> tuple[dict, str]:
    """Return the output of the first process, and an error message or an empty string."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices_per_process}"
    env = bench.env | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, str(steps)]
    started = [
        subprocess.Popen(
            [*command, str(process), str(processes), str(port)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        )
        for process in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=600) for process in started]
    except subprocess.TimeoutExpired:
        return {}, "did not end within ten minutes"
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, outputs, strict=True):
        if process.returncode:
            return {}, (errors.strip().splitlines() or ["no output"])[-1][:200]
    return json.loads(outputs[0][0].strip().splitlines()[-1]), ""


class MultiProcessMesh:
    """A mesh over the devices of all processes, each of which has the whole arrays and places its own parts."""

    def __init__(self, mesh):
        self.mesh = mesh

    def put(self, tree):
        """Replicate arrays over all devices."""
        return self._place(tree, self.mesh.replicated)

    def put_batch(self, batch):
        """Shard the leading axis over the devices."""
        return self._place(batch, self.mesh.batch_sharding)

    def _place(self, tree, sharding):
        import jax
        import numpy as np

        def place(x):
            if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(place(jax.random.key_data(x)))
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

        return jax.tree.map(place, tree)


def run_steps(steps: int, process: int = 0, processes: int = 1, port: int = 0) -> None:
    """Run the steps and print losses and seconds; the first step, which compiles, is left out of the seconds."""
    sys.path.insert(0, str(REPO))
    import jax

    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", processes, process)
    from tljax_step import RULES, TljaxStep

    from tljax import config
    from tljax.data.loader import train_batches

    c = config.default()
    c.data.image_size = 32
    c.train.batch_size = BATCH
    c.optim.name = "momentum"
    # A small learning rate: at 0.02, weights that differ by 1e-7 give losses that differ by 1e-3 five steps later.
    c.optim.lr = 5e-4
    c.strategy.name = "custom"
    c.strategy.phases = (config.Phase("all", RULES["all"]),)
    step = TljaxStep(config.parse(c), MultiProcessMesh if processes > 1 else lambda mesh: mesh)
    train = step.experiment.data.train
    arrays = {"image": train.images, "label": train.labels}
    losses, seconds = [], []
    for batch in train_batches(arrays, BATCH, (0, 0), steps):
        start = time.perf_counter()
        losses.append(float(step(step.batch(batch["image"], batch["label"]))["loss"]))
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"losses": losses, "seconds": seconds[1:], "devices": jax.device_count()}))


if __name__ == "__main__":
    run_steps(*map(int, sys.argv[1:]))
