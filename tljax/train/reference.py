"""What a phase holds the student against: outputs of other networks, which never change, on the student's pictures.

Where the pictures do not change either, because nothing is augmented, they are computed once for the whole split, and
travel with the batches; else inside the step, on the same augmented pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from tljax.data import Split
from tljax.models import state as leaves_of
from tljax.models.state import Leaves
from tljax.train.features import extract
from tljax.train.sharding import Mesh
from tljax.weights import Preprocess, make_preprocess

# What is computed once is kept in host memory up to this; beyond it, every step computes its own.
MOST_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class Observed:
    """A network that a phase looks at, without the values of its leaves.

    Attributes:
      name: "teacher0", "teacher1", ... or "source".
      graphdef: of the network.
      preprocess: its own, at its own input size.
      dtype: of its computation.
      logits: whether its classifier's outputs are wanted.
      maps: pairs of the student's stage and its own, whose maps are wanted.
    """

    name: str
    graphdef: nnx.GraphDef
    preprocess: Preprocess
    dtype: str
    logits: bool
    maps: tuple[tuple[str, str], ...]


def observe(observed: Observed, leaves: Leaves, images: jax.Array) -> dict[str, jax.Array]:
    """Outputs in inference mode on uint8 pictures, by name: "teacher0/logits", "teacher0/maps/stage2"."""
    prepared = make_preprocess(observed.preprocess, observed.preprocess.size, observed.dtype)(images)
    outputs = leaves_of.merge(observed.graphdef, leaves).outputs(prepared)
    named = {f"{observed.name}/maps/{stage}": outputs["maps"][theirs] for stage, theirs in observed.maps}
    return named | ({f"{observed.name}/logits": outputs["logits"]} if observed.logits else {})


def nested(named: Mapping[str, jax.Array]) -> dict:
    """The outputs as objectives take them: `teachers`, a tuple, and `source`, each with `logits` and `maps`."""
    networks: dict[str, dict] = {}
    for name, value in named.items():
        network, kind, *stage = name.split("/", 2)
        outputs = networks.setdefault(network, {"maps": {}})
        if stage:
            outputs["maps"][stage[0]] = value
        else:
            outputs[kind] = value
    source = networks.pop("source", None)
    teachers = tuple(networks[name] for name in sorted(networks, key=lambda n: int(n.removeprefix("teacher"))))
    return ({"teachers": teachers} if teachers else {}) | ({"source": source} if source else {})


def bytes_of(observed: Observed, leaves: Mapping, picture: tuple[int, ...], pictures: int) -> int:
    """What the outputs for so many pictures [H, W, C] take, kept in float32; `leaves` may be shapes."""
    one = jax.ShapeDtypeStruct((1, *picture), np.uint8)
    shapes = jax.eval_shape(lambda leaves, image: observe(observed, leaves, image), leaves, one)
    return 4 * pictures * sum(math.prod(x.shape) for x in shapes.values())


def observe_split(
    observed: Observed, leaves: Leaves, split: Split, batch_size: int, mesh: Mesh, done: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """The outputs for all pictures of `split`, in their order; `done` hears of every batch's pictures."""
    return extract(jax.jit(functools.partial(observe, observed)), leaves, split, batch_size, mesh, done)
