"""Backbones: one module per family, with its `VARIANTS` and the function `stages` that builds a variant.

A family's module, or the file of a custom backbone, has the function `stages(variant, *, inputs, dtype, rngs)` →
{stage: module}, and optionally `HEAD_OPTIONS` (defaults of the classifier), `INITIALIZERS`, `NORM_AFTER` and
`auxiliary` (auxiliary classifiers), which the families here show.
"""

from types import ModuleType

from tljax import plugins
from tljax.models.backbones import convnext, densenet, efficientnet, inception, resnet, unet, vgg

FAMILIES = {
    "vgg": vgg,
    "resnet": resnet,
    "densenet": densenet,
    "inception": inception,
    "convnext": convnext,
    "efficientnet": efficientnet,
    "unet": unet,
}


def get_family(name: str) -> ModuleType:
    """Return the module of a family.

    Args:
      name: key of `FAMILIES`, or the path of the file of a custom backbone.

    Raises:
      UserError: there is no such file.
    """
    return FAMILIES[name] if name in FAMILIES else plugins.load_file(name, "backbone")
