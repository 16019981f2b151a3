"""Store the metadata that torchvision, timm and Keras publish about their weight files, as golden values.

Writes catalog.json: `rows` maps the names in tljax to the entries of their tables. `mean` and `std` describe the input
of the first layer for images in 0..1, in channel order `order`; they are measured on the models of torchvision, which
may rescale their input, and on the functions of Keras. Nothing is downloaded.

Run with torchvision's and timm's wheels unpacked at WHEELS (torchvision's compiled operators are not needed):
    pip install torch keras numpy huggingface_hub safetensors pyyaml
    PYTHONPATH=WHEELS python tests/golden/make_catalog.py
"""

import json
import os
import re
import sys
import types
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
# This module registers the compiled operators, and fails without them.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from keras.src.utils import file_utils  # noqa: E402
from torchvision.transforms._presets import ImageClassification, SemanticSegmentation  # noqa: E402

SHARED = [
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    "inception_v3",
    *(f"convnext_{size}" for size in ("tiny", "small", "base")),
]
EFFICIENTNETS = ["efficientnet_lite0", *(f"tf_efficientnet_lite{k}" for k in range(5))]
KERAS = {
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "resnet": "ResNet50 ResNet101 ResNet152",
    "densenet": "DenseNet121 DenseNet169 DenseNet201",
    "inception_v3": "InceptionV3",
}


def numbers(values):
    return [round(float(v), 8) for v in values]


def affine(function):
    """Return mean and standard deviation of a function that normalizes an image [3] in 0..1 by them."""
    offset = function(np.zeros(3))
    response = np.stack([function(np.eye(3)[c]) - offset for c in range(3)])
    order = "rgb" if response[0, 0] else "bgr"
    gain = np.diag(response if order == "rgb" else response[::-1])
    return {"mean": numbers(-offset / gain), "std": numbers(1 / gain), "order": order}


def from_torchvision():
    """Return the rows of all weights in torchvision's enumerations."""
    # Create the models as for pretrained weights, but do not load any.
    torchvision.models.WeightsEnum.get_state_dict = lambda *args, **kwargs: {}
    torch.nn.Module.load_state_dict = lambda *args, **kwargs: None
    rows = {}
    for name in [*SHARED, "googlenet", "fcn_resnet50", "fcn_resnet101"]:
        for weights in torchvision.models.get_model_weights(name):
            with torch.device("meta"):
                model = torchvision.models.get_model(name, weights=weights)
            transforms = weights.transforms()
            if isinstance(transforms, ImageClassification):
                size, resize = transforms.crop_size[0], transforms.resize_size[0]
            else:
                assert isinstance(transforms, SemanticSegmentation)
                size = resize = transforms.resize_size[0]
            rows[f"torchvision:{name}.{weights.name}"] = {
                "architecture": name,
                "source": weights.url,
                # As in torch.hub.
                "digest": re.search(r"-([a-f0-9]*)\.", weights.url).group(1),
                "classes": len(weights.meta["categories"] or ()),
                "size": size,
                "crop": round(size / resize, 8),
                "interpolation": transforms.interpolation.value,
                **affine(lambda picture, t=transforms, m=model: seen(picture, t, m)),
            }
    return rows


def seen(picture, transforms, model):
    """Return the input of the first layer for an image [3] in 0..1."""
    x = torch.from_numpy(picture).reshape(1, 3, 1, 1)
    x = torchvision.transforms.functional.normalize(x, transforms.mean, transforms.std)
    return (model._transform_input(x) if hasattr(model, "_transform_input") else x).numpy().reshape(3)


def from_timm():
    """Return the rows of all classifiers on the hub whose architecture is exactly one of tljax's."""
    rows = {}
    for model in timm.list_pretrained():
        architecture, _, _ = model.partition(".")
        cfg = timm.get_pretrained_cfg(model)
        # With fewer there are no classes at all, or the embedding that CLIP shares with text.
        if architecture not in (*SHARED, *EFFICIENTNETS) or cfg.num_classes < 1000:
            continue
        rows[f"hf:{cfg.hf_hub_id}"] = {
            "architecture": architecture,
            "source": cfg.hf_hub_id,
            "digest": None,
            "classes": cfg.num_classes,
            "size": cfg.input_size[-1],
            "crop": cfg.crop_pct,
            "squash": cfg.crop_mode == "squash",
            "interpolation": cfg.interpolation,
            "mean": numbers(cfg.mean),
            "std": numbers(cfg.std),
            "order": "rgb",
            "licence": cfg.license,
        }
    return rows


def from_keras():
    """Return the rows of Keras' weights, with and without the classifier."""
    rows, asked = {}, {}

    def get_file(fname, origin, file_hash, **kwargs):
        asked.update(source=origin, digest=file_hash)
        return fname

    file_utils.get_file = get_file
    keras.Model.load_weights = lambda *args, **kwargs: None
    for module, classes in KERAS.items():
        module = getattr(keras.applications, module)
        for name in classes.split():
            for include_top in (True, False):
                model = getattr(module, name)(include_top=include_top)
                if include_top:
                    size = model.input_shape[1]
                architecture = "inception_v3" if name == "InceptionV3" else name.lower()
                rows[f"keras:{architecture}{'' if include_top else '_notop'}"] = {
                    "architecture": architecture,
                    **asked,
                    "classes": model.output_shape[-1] if include_top else 0,
                    "size": size,
                    **affine(lambda x, f=module.preprocess_input: f(255 * x.reshape(1, 1, 1, 3)).reshape(3)),
                }
    return rows


def main():
    made_with = {m.__name__: m.__version__ for m in (torchvision, timm, keras, torch, np)}
    # Keras first: it uses the torch backend, and from_torchvision replaces torch.nn.Module.load_state_dict.
    rows = {**from_keras(), **from_timm(), **from_torchvision()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items()))
    text = f'{{\n "made_with": {json.dumps(made_with)},\n "rows": {{\n{lines}\n }}\n}}\n'
    (Path(__file__).parent / "catalog.json").write_text(text)


if __name__ == "__main__":
    main()
