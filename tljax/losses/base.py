"""The `Loss` type, the `@loss` decorator, and what a loss can require."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.errors import UserError, did_you_mean

Outputs = Batch = References = HParams = Mapping[str, Any]
LossFn = Callable[[Outputs, Batch, References, HParams], jax.Array]

REQUIREMENTS = {
    "maps": "The student's feature maps of all stages, frozen first stages included.",
    "source_output": "A second head on the student's features, for the classes of the source task.",
    "source_logits": "The logits of the frozen source network for each batch.",
    "source_maps": "The feature maps of the frozen source network for each batch.",
    "source_params": "The pretrained values of the trainable parameters.",
    "teachers": "One or more teachers, which run on each batch in inference mode.",
    "teacher_logits": "The logits of every teacher, over the student's classes.",
    "teacher_maps": "Every teacher's feature maps of the stages that are paired with stages of the student.",
    "hints": "A trainable projection of the student's feature map to the teacher's channels, for each pair of stages.",
    "weak": "The student's outputs for a weakly augmented view of each batch's unlabelled images.",
    "strong": "The student's outputs for a strongly augmented view of the same unlabelled images.",
    "ema": "The outputs of an exponential moving average of the student for another weak view of these images.",
    "masks": "Labels that are masks (segmentation).",
    "boxes": "Labels that are boxes (detection).",
    "boundary_weights": "A weight for each pixel of a labelled image, from its distance to the two nearest objects.",
}

_FEATURE_REQUIREMENTS = frozenset({"maps", "teacher_maps", "source_maps"})


@dataclasses.dataclass(frozen=True)
class Loss:
    """A term of the training loss: a function of outputs, batch, references and hparams.

    It is called as `loss(outputs, batch, references, hparams)` inside the compiled step and returns a scalar, in
    float32 or wider. B is the number of labelled images, U of unlabelled ones; C is the number of the student's
    classes, S of the source's.

    `outputs` are the student's outputs; gradients flow through them:
      logits: [B, C]; segmentation: [B, h, w, C], possibly coarser than the labels; detection: [B, P, C], at P
        locations.
      boxes, centre, places: detection only: box, centerness logit and coordinates of each location.
      maps: {stage: [B, h, w, c]}, in no particular order: of every stage if the loss requires "maps"; of the stages
        that are paired with another network's if it requires "teacher_maps" or "source_maps".
      aux1, ...: [B, C], of auxiliary classifiers, for networks that have them.
      source: [B, S], of the second head; requires "source_output".
      hint_STAGE: [B, h, w, c'], the stage's feature map projected to the channels of its pair in the teacher; requires
        "hints".
      weak, strong: {"logits": [U, C]}, of two views of the unlabelled images; require "weak", "strong".
      params: {path: array}, the trainable parameters.
    `batch` has the targets:
      label: [B], integers; segmentation: [B, H, W], 255 for ignored pixels; detection: [B, M], -1 after the last box.
      boxes: [B, M, 4], detection only, [y0, x0, y1, x1] in pixels of the network's input.
      weight: [B, H, W], segmentation only, what is added to the class weight of each pixel; requires
        "boundary_weights".
    `references` are outputs of other networks and fixed values; no gradient flows through them:
      teachers: a tuple of {"logits": [B, C], "maps": {stage of the student: [B, h', w', c']}}, with the entries that
        "teacher_logits" and "teacher_maps" require.
      source: {"logits": [B, S], "maps": {stage: [B, h, w, c]}}, with the entries that "source_logits" and "source_maps"
        require.
      ema: {"logits": [U, C]}; requires "ema".
      params: {path: array}, pretrained parameters; requires "source_params".
    `hparams` are numbers, possibly traced, so that changing them does not recompile the step:
      label_smoothing: share of the target that is spread evenly over all classes.
      temperature: divides the logits of soft labels.
      threshold: minimum confidence of a pseudo-label.
      distribution_alignment: 1.0 aligns pseudo-labels with `prior`, 0.0 does not.
      prior: [C], class frequencies of the labelled images.
      progress: completed share of the phase, 0 to 1.
      unlabelled_warmup: share of the phase over which the weight of unlabelled images rises; 0: full weight from the
        first step.
      and all of `strategy.hparams`.

    Attributes:
      name: for logs and errors.
      function: takes the four arguments above.
      requires: keys of `REQUIREMENTS`: inputs that are computed only for losses that require them.
    """

    name: str
    function: LossFn
    requires: frozenset[str] = frozenset()

    def __call__(self, outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
        # Without a requirement, which maps are present depends on the cache; so none are passed on.
        if not self.requires & _FEATURE_REQUIREMENTS:
            outputs = {name: value for name, value in outputs.items() if name != "maps"}
        try:
            return self.function(outputs, batch, jax.lax.stop_gradient(references), hparams)
        except KeyError as error:
            if error.args != ("maps",):
                raise
            raise UserError(f'{self.name} reads outputs["maps"]: declare it with @loss("maps").') from error


def loss(*requires: str) -> Callable[[Callable], Loss]:
    """Return a decorator that turns a function into a `Loss` of the same name.

    For example `@loss("teachers", "teacher_logits")`.

    Args:
      *requires: keys of `REQUIREMENTS`.

    Raises:
      UserError: an unknown requirement.
    """
    for requirement in requires:
        if requirement not in REQUIREMENTS:
            raise UserError(f'There is no loss requirement "{requirement}"{did_you_mean(requirement, REQUIREMENTS)}')
    return lambda function: Loss(function.__name__, function, frozenset(requires))


def at_least_f32(x: jax.Array) -> jax.Array:
    """Cast an array to float32, unless it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def sum_or_zero(terms: Iterable[jax.Array]) -> jax.Array:
    """Return the sum of scalars, or 0.0 if there are none."""
    return sum(terms, start=jnp.zeros((), jnp.float32))


def half_sq_norm(x: jax.Array) -> jax.Array:
    """Return half the squared norm over all axes."""
    return 0.5 * jnp.square(at_least_f32(x)).sum()
