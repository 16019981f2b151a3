"""Small networks and helpers for tests of heads."""

import jax.numpy as jnp
import numpy as np

from tljax import models
from tljax.models import params as params_lib
from tljax.models.backbones import convnext, densenet, efficientnet, resnet, unet, vgg

VGG = vgg.Variant(((2,), (3,), (3,), (4,), (4,)))
RESNET = resnet.Variant((1, 1, 1, 1), (4, 4, 6, 8), bottleneck=False)
CONVNEXT = convnext.Variant((1, 1, 1, 1), (4, 6, 8, 10))
DENSENET = densenet.Variant((1, 1, 1, 1), growth=2, initial=4)
EFFICIENTNET = efficientnet.Variant(0.05, 0.1)
TINY = unet.Variant((2, 3, 4))


def build(config, head, image_size=32, classes=3, rngs=None, **options):
    return models.create_model(config, num_classes=classes, head=head, image_size=image_size, rngs=rngs, **options)


def with_random_values(model, seed=0):
    """Fill every variable of the model with random values, and return the model."""
    rng = np.random.default_rng(seed)
    values = {p: rng.uniform(0.2, 0.9, v.shape) * rng.choice([-1, 1], v.shape) for p, v in variables(model).items()}
    values = {p: np.abs(x) if p.endswith("/var") else x for p, x in values.items()}
    params_lib.set_variables(model, {path: jnp.asarray(x, jnp.float32) for path, x in values.items()})
    return model


def variables(model):
    return params_lib.variables(model)


def conv_transpose_reference(x, kernel, stride):
    """Transposed convolution by loops, without cropping."""
    batch, height, width, _ = x.shape
    size, _, _, outputs = kernel.shape
    y = np.zeros((batch, (height - 1) * stride + size, (width - 1) * stride + size, outputs))
    for i, j in np.ndindex(height, width):
        rows = slice(i * stride, i * stride + size)
        columns = slice(j * stride, j * stride + size)
        y[:, rows, columns] += np.einsum("bc,hwco->bhwo", x[:, i, j], kernel)
    return y
