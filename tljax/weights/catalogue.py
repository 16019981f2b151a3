"""Known weights: where they lie, what they must hash to, and what they want to be fed."""

from __future__ import annotations

import dataclasses

from tljax.weights.preprocess import PRESETS, Preprocess


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file of weights, `<name>.safetensors` in `$TLJAX_WEIGHTS_DIR`.

    Attributes:
      name: as `model.weights` takes it.
      backbone: the network it fits.
      sha256: of the file.
      preprocess: what it was trained on.
      origin: where it comes from, and its licence.
    """

    name: str
    backbone: str
    sha256: str
    preprocess: Preprocess
    origin: str


CATALOGUE = {
    e.name: e
    for e in (
        Entry(
            "vgg16_imagenet_notop",
            "vgg16",
            "42530430a0f2ebdb770e531ae3d09a4e15b324de26bde4e9ef40cb20d2e02e24",
            PRESETS["caffe"],
            "Keras' ImageNet VGG-16 without its dense layers (Oxford VGG, CC BY 4.0), torchvision names",
        ),
    )
}
