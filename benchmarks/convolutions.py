"""The forms of a convolution beside XLA's own, shape by shape: what `rule` in tljax/ops/convolution.py rests on.

python benchmarks/convolutions.py [--models resnet50 --size 64 --batch 16] [--dtype bfloat16] [--json FILE]

The shapes are those of the networks' convolutions. All forms of a shape run in turns and the fastest time counts, in
GFLOP/s; `rule` marks the form chosen, and `best` is the fastest form's time over the chosen one's.
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


def shapes_of(model: str, size: int, batch: int) -> list[tuple]:
    """(x, kernel, window) of the convolutions of a network, each once."""
    found, whole = {}, convolution.convolve
    network = models.create_model(model, num_classes=2, image_size=size, rngs=nnx.Rngs(0))

    def seen(x, kernel, window):
        found[x.shape, kernel.shape, window] = None
        return whole(x, kernel, window)

    models_layers = sys.modules["tljax.models.layers"]
    models_layers.convolve = seen
    nnx.eval_shape(lambda x: network(x), jnp.zeros((batch, size, size, 3)))
    models_layers.convolve = whole
    return list(found)


def programs(x, kernel, window: ConvSpec) -> dict[tuple[str, str], object]:
    """(part, form) → a compiled step that waits for its result."""
    keys = jax.random.split(jax.random.key(0))
    x, kernel = (jax.random.normal(k, s.shape, s.dtype) for k, s in zip(keys, (x, kernel), strict=True))
    dy = jnp.ones_like(convolution.xla_conv(x, kernel, window))
    depthwise = window.groups == x.shape[-1] == kernel.shape[-1]
    names = ("xla_conv", "depthwise_shift") if depthwise else tuple(n for n in ALGORITHMS if n != "depthwise_shift")
    names = ("xla_conv",) if window.groups > 1 and not depthwise else names
    steps = {}
    for name in names:
        forms = ConvAlgorithms(name, "im2col" if name == "columns" else name, name)
        if name == "rows" and max(window.strides) > 1:
            forms = forms._replace(to_input="im2col")

        def gradients(saved, dy, forms=forms):
            return convolution._backward((forms, window, x.shape, kernel.shape), saved, dy)

        calls = {
            "value": (lambda x, k, form=ALGORITHMS[name]: form(x, k, window), (x, kernel)),
            "to_input": (lambda k, dy, f=gradients: f((None, k), dy)[0], (kernel, dy)),
            "to_kernel": (lambda x, dy, f=gradients: f((x, None), dy)[1], (x, dy)),
        }
        for part, (function, arguments) in calls.items():
            program = jax.jit(function)
            jax.block_until_ready(program(*arguments))
            steps[part, name] = lambda p=program, a=arguments: jax.block_until_ready(p(*a))
    return steps


def times(steps: dict, seconds: float) -> dict:
    """The fastest run of each step, in seconds; all have their turns for a while."""
    best, end = dict.fromkeys(steps, np.inf), time.perf_counter() + seconds
    while time.perf_counter() < end or np.inf in best.values():
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=["resnet50"], type=lambda text: text.split(","))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each shape")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shapes = dict.fromkeys(shape for model in args.models for shape in shapes_of(model, args.size, args.batch))
    rows = []
    for x, kernel, window in shapes:
        like = (jax.ShapeDtypeStruct(x, args.dtype), jax.ShapeDtypeStruct(kernel, args.dtype))
        result = jax.eval_shape(lambda a, b, w=window: convolution.xla_conv(a, b, w), *like)
        flops = 2 * np.prod(result.shape) * np.prod(kernel[:3])
        best, chosen = (
            times(programs(*like, window), args.seconds),
            select_algorithms(x, kernel, window, jnp.dtype(args.dtype)),
        )
        print(f"{x} {kernel} strides {window.strides} groups {window.groups}")
        for part in PARTS:
            of_part = {form: taken for (p, form), taken in best.items() if p == part}
            share = min(of_part.values()) / of_part[getattr(chosen, part)]
            rates = {form: float(flops / taken / 1e9) for form, taken in of_part.items()}
            text = "  ".join(
                f"{form}{' (rule)' * (form == getattr(chosen, part))} {r:.0f}" for form, r in rates.items()
            )
            print(f"  {part:9}  {text}   best: {share:.2f}", flush=True)
            rows.append({"x": x, "kernel": kernel, "window": window._asdict(), "part": part, "gflops": rates})
            rows[-1] |= {"rule": getattr(chosen, part), "best": share}
    if args.json:
        args.json.write_text(json.dumps({"settings": vars(args) | {"json": None}, "rows": rows}, default=str, indent=1))


if __name__ == "__main__":
    main()
