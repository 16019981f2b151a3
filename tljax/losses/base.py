"""What an objective is: a pure function from what networks say to one number, and what must be there for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.errors import UserError, did_you_mean

Outputs = Batch = References = HParams = Mapping[str, Any]

REQUIREMENTS = {
    "maps": "The student's maps of all stages are kept, those of its frozen first stages too.",
    "source_output": "The student has a second classifier on the same features, for the classes of its source.",
    "source_logits": "The untouched source network classifies each batch.",
    "source_maps": "The untouched source network gives its stages' maps of each batch.",
    "source_leaves": "The values that the learning leaves had in the source network are kept.",
    "teachers": "There are one or more teachers, which run on each batch in inference mode.",
    "teacher_logits": "Every teacher classifies each batch into the student's classes.",
    "teacher_maps": "Every teacher gives the maps that are paired with stages of the student.",
    "hints": "A learning regressor takes the student's map of each pair to the channels of the teacher's.",
    "weak": "Each batch has unlabelled pictures, of which the student classifies a weakly augmented view.",
    "strong": "The student classifies a strongly augmented view of the same unlabelled pictures.",
    "average": "A running average of the student's weights classifies another weak view of the unlabelled pictures.",
    "masks": "The labels are masks, as segmentation has them.",
    "boxes": "The labels are boxes, as detection has them.",
    "boundary_weights": "Each labelled picture comes with the weight of each of its pixels by its distance from two "
    "objects.",
}

MAPS = frozenset({"maps", "teacher_maps", "source_maps"})


@dataclasses.dataclass(frozen=True)
class Loss:
    """A function of outputs, batch, reference and numbers, which a phase weighs and adds to its loss.

    It is called as `objective(outputs, batch, reference, hyper)` inside the compiled step, and returns a scalar, in
    float32 at least. B pictures have labels, U have none; C are the student's classes, S those of its source.

    `outputs` is what the student says, and gradients flow through it:
      logits: [B, C]; of segmentation [B, h, w, C], which may be coarser than the labels; of detection [B, P, C], at P
        places.
      boxes, centre, places: of detection, the box and the centre-ness at each place, and where the places are.
      maps: {stage: [B, h, w, c]}, in no particular order: of every stage, needs "maps"; of those that are paired with
        another network's, "teacher_maps" or "source_maps" will do.
      aux1, ...: [B, C], of auxiliary classifiers, for networks that have them.
      source: [B, S], of the second classifier; needs "source_output".
      hint_STAGE: [B, h, w, c'], the stage's map with as many channels as its pair in the teacher; needs "hints".
      weak, strong: {"logits": [U, C]}, of two views of the unlabelled pictures; need "weak", "strong".
      leaves: {path: array}, the learning leaves.
    `batch` is what is known of the pictures:
      label: [B], integers; of segmentation [B, H, W], 255 where a pixel does not count; of detection [B, M], -1 behind
        the last box.
      boxes: [B, M, 4], of detection, [y0, x0, y1, x1] in pixels of the network's input.
      weight: [B, H, W], of segmentation, what a pixel's place adds to the weight of its class; needs
        "boundary_weights".
    `reference` is what others say; no gradient flows through it, whatever a function does:
      teachers: a tuple of {"logits": [B, C], "maps": {stage of the student: [B, h', w', c']}}, with the parts that
        "teacher_logits" and "teacher_maps" ask for.
      source: {"logits": [B, S], "maps": {stage: [B, h, w, c]}}, with the parts that "source_logits" and "source_maps"
        ask for.
      average: {"logits": [U, C]}, needs "average".
      leaves: {path: array}, values of the source network; needs "source_leaves".
    `hyper` is numbers, which may be traced: changing them compiles nothing.
      label_smoothing: share of the target spread evenly over all classes.
      temperature: divides the logits of soft labels.
      threshold: least confidence of a pseudo-label.
      balance: 1.0 aligns pseudo-labels with `prior`, 0.0 leaves them.
      prior: [C], class frequencies of the labelled pictures.
      progress: share of the phase that is done, 0 to 1.
      ramp: share of the phase over which the weight of unlabelled pictures rises; 0: it is full at once.
      and the user's own `strategy.hparams`.

    Attributes:
      name: in logs and errors.
      function: of the four arguments above.
      needs: keys of `NEEDS`, what is computed for it and costs something.
    """

    name: str
    function: Callable[[Outputs, Batch, References, HParams], jax.Array]
    requires: frozenset[str] = frozenset()

    def __call__(self, outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
        # Maps that nobody asked for may be there or not, as frozen stages are computed or read: none are seen.
        sees = outputs if self.requires & MAPS else {name: x for name, x in outputs.items() if name != "maps"}
        try:
            return self.function(sees, batch, jax.lax.stop_gradient(reference), hyper)
        except KeyError as error:
            if error.args != ("maps",):
                raise
            raise UserError(f'{self.name} looks at outputs["maps"]: it must say @loss("maps").') from error


def loss(*needs: str) -> Callable[[Callable], Loss]:
    """Makes a function an `Loss` of its name, as in `@loss("teachers", "teacher_logits")`.

    Raises:
      UserError: a need that is not in `NEEDS`.
    """
    for need in needs:
        if need not in REQUIREMENTS:
            raise UserError(f'There is no need "{need}" of an objective{did_you_mean(need, REQUIREMENTS)}')
    return lambda function: Loss(function.__name__, function, frozenset(needs))


def at_least_f32(x: jax.Array) -> jax.Array:
    """The array in float32, unless it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def sum_or_zero(terms: Iterable[jax.Array]) -> jax.Array:
    """The sum of scalars, 0.0 of none."""
    return sum(terms, start=jnp.zeros((), jnp.float32))


def half_sq_norm(x: jax.Array) -> jax.Array:
    """Half the squared norm over all axes."""
    return 0.5 * jnp.square(at_least_f32(x)).sum()
