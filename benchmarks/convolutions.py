"""Time the convolution algorithms of tljax/ops/convolution.py against XLA's convolution, shape by shape.

    python benchmarks/convolutions.py [--models resnet50 --size 64 --batch 16] [--dtype bfloat16] [--json FILE]

The shapes are those of the networks' convolutions. All algorithms of a shape run in turns, and the fastest time of each
counts, in GFLOP/s. "(selected)" marks the algorithm of `select_algorithms`; "best" is the time of the fastest
algorithm divided by that of the selected one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax import models
from tljax.ops import convolution
from tljax.ops.convolution import ALGORITHMS, ConvAlgorithms, ConvSpec, select_algorithms

PARTS = ConvAlgorithms._fields


def conv_shapes(model: str, size: int, batch: int) -> list[tuple]:
    """Return the distinct (input shape, kernel shape, ConvSpec) of a network's convolutions."""
    shapes = {}
    convolve = convolution.convolve
    network = models.create_model(model, num_classes=2, image_size=size, rngs=nnx.Rngs(0))

    def record(x, kernel, spec):
        shapes[x.shape, kernel.shape, spec] = None
        return convolve(x, kernel, spec)

    layers = sys.modules["tljax.models.layers"]
    layers.convolve = record
    nnx.eval_shape(lambda x: network(x), jnp.zeros((batch, size, size, 3)))
    layers.convolve = convolve
    return list(shapes)


def algorithm_names(x_shape: tuple, kernel_shape: tuple, spec: ConvSpec) -> tuple[str, ...]:
    """Return the algorithms that apply to a shape."""
    if spec.groups == x_shape[-1] == kernel_shape[-1]:
        return ("xla_conv", "depthwise_shift")
    if spec.groups > 1:
        return ("xla_conv",)
    return tuple(name for name in ALGORITHMS if name != "depthwise_shift")


def make_steps(x, kernel, spec: ConvSpec) -> dict[tuple[str, str], object]:
    """Return {(part, algorithm): compiled step that waits for its result}."""
    names = algorithm_names(x.shape, kernel.shape, spec)
    keys = jax.random.split(jax.random.key(0))
    x, kernel = (jax.random.normal(k, s.shape, s.dtype) for k, s in zip(keys, (x, kernel), strict=True))
    dy = jnp.ones_like(convolution.xla_conv(x, kernel, spec))
    steps = {}
    for name in names:
        algorithms = ConvAlgorithms(name, "im2col" if name == "columns" else name, name)
        if name == "rows" and max(spec.strides) > 1:
            algorithms = algorithms._replace(to_input="im2col")

        def gradients(residuals, dy, algorithms=algorithms):
            return convolution._backward((algorithms, spec, x.shape, kernel.shape), residuals, dy)

        calls = {
            "value": (lambda x, k, algorithm=ALGORITHMS[name]: algorithm(x, k, spec), (x, kernel)),
            "to_input": (lambda k, dy, f=gradients: f((None, k), dy)[0], (kernel, dy)),
            "to_kernel": (lambda x, dy, f=gradients: f((x, None), dy)[1], (x, dy)),
        }
        for part, (function, arguments) in calls.items():
            program = jax.jit(function)
            jax.block_until_ready(program(*arguments))
            steps[part, name] = lambda p=program, a=arguments: jax.block_until_ready(p(*a))
    return steps


def fastest_times(steps: dict, seconds: float) -> dict:
    """Return the fastest time of each step in seconds, running all in turns for `seconds`."""
    best = dict.fromkeys(steps, np.inf)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or np.inf in best.values():
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure(x_shape: tuple, kernel_shape: tuple, spec: ConvSpec, dtype: str, seconds: float) -> list[dict]:
    """Time all algorithms of a shape, print a line per part, and return a row per part."""
    x = jax.ShapeDtypeStruct(x_shape, dtype)
    kernel = jax.ShapeDtypeStruct(kernel_shape, dtype)
    result = jax.eval_shape(lambda a, b: convolution.xla_conv(a, b, spec), x, kernel)
    flops = 2 * np.prod(result.shape) * np.prod(kernel_shape[:3])
    times = fastest_times(make_steps(x, kernel, spec), seconds)
    algorithms = select_algorithms(x_shape, kernel_shape, spec, jnp.dtype(dtype))
    print(f"{x_shape} {kernel_shape} strides {spec.strides} groups {spec.groups}")
    rows = []
    for part in PARTS:
        selected = getattr(algorithms, part)
        part_times = {name: t for (p, name), t in times.items() if p == part}
        best = min(part_times.values()) / part_times[selected]
        rates = {name: float(flops / t / 1e9) for name, t in part_times.items()}
        text = "  ".join(f"{name}{' (selected)' * (name == selected)} {r:.0f}" for name, r in rates.items())
        print(f"  {part:9}  {text}   best: {best:.2f}", flush=True)
        row = {"x": x_shape, "kernel": kernel_shape, "spec": spec._asdict(), "part": part, "gflops": rates}
        rows.append(row | {"selected": selected, "best": best})
    return rows


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=["resnet50"], type=lambda text: text.split(","))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=1.0, help="per shape")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shapes = dict.fromkeys(shape for model in args.models for shape in conv_shapes(model, args.size, args.batch))
    rows = []
    for x_shape, kernel_shape, spec in shapes:
        rows += measure(x_shape, kernel_shape, spec, args.dtype, args.seconds)
    if args.json:
        args.json.write_text(json.dumps({"settings": vars(args) | {"json": None}, "rows": rows}, default=str, indent=1))


if __name__ == "__main__":
    main()
