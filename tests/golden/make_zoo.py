"""Run the reference implementations of the model zoo and store their outputs as golden values.

Writes zoo_{torchvision,timm,keras,unet,segmentation}.npz next to this file. No weights are stored: every tensor is
`zoo_rule.draw` of its name and shape, the input is `zoo_rule.photos`, and arrays are subsampled by `zoo_rule.sample`.
Everything is computed in float64 and stored in float32. Images and features are NHWC; gradients have the layout of the
reference. Names of Keras' tensors are "layer/variable"; the layers of InceptionV3 are numbered from one in the order of
their creation, as in its published file.

Keys are "{variant}:{what}":
    tensors             JSON [[name, shape], ...] in the order of the reference's state dict
    parameters          number of trainable parameters
    size                rows and columns of the images
    shapes              JSON {what: shape} of every array below before subsampling
    map:STAGE           features in evaluation mode; STAGE as in tljax, or encoder0... for segmentation_models_pytorch
    logits              in evaluation mode
    train_logits        in training mode without dropout, from the same weights
    aux1, aux2          logits of the auxiliary heads in training mode; those of FCN in evaluation mode
    loss                mean cross-entropy against zoo_rule.LABELS in training mode, including auxiliary heads
    grad:NAME           gradient of the loss, for the first convolution and the classifier
    stats               JSON [[name, values], ...]: running statistics after one step in training mode, up to 4 of each
    norm:WHAT           2-norm of the whole array; gradnorm:NAME for gradients
    float32:WHAT        max |float32 - float64| / max |float64|, both by the reference: the error of float32

The keys of a variant depend on the reference: see CASES.

Run with (any build of torchvision; its compiled operators are not needed):
    pip install torch timm keras tensorflow numpy scikit-learn pillow
    pip install --no-deps torchvision segmentation_models_pytorch
    python tests/golden/make_zoo.py [torchvision timm keras unet segmentation]
"""

import json
import os
import re
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import zoo_rule
from torch import nn
from torch.nn import functional as F

# This module registers compiled operators, and fails if they were built for another version of PyTorch.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
# With its other backends, Keras computes means and dense layers in float32 whatever the type of the layers.
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras  # noqa: E402
import segmentation_models_pytorch as smp  # noqa: E402
import tensorflow as tf  # noqa: E402
import timm  # noqa: E402
import torchvision  # noqa: E402

HERE = Path(__file__).resolve().parent
MOVING = re.compile(r"running_(mean|var)$|moving_(mean|variance)$")
# Fields of torchvision's outputs in training mode. Inception v3 has one auxiliary head, GoogLeNet two.
AUXILIARY = (("aux1", "aux_logits1"), ("aux2", "aux_logits2"), ("aux1", "aux_logits"))


class Answer(NamedTuple):
    """Results of one run of a reference: `arrays` and `stats`, not subsampled."""

    tensors: list
    parameters: int
    arrays: dict
    stats: dict


class Case(NamedTuple):
    """A network. `run(make, maps, size, dtype, train)` returns its Answer; `maps` gives the module of each stage."""

    run: Callable
    make: Callable
    maps: dict | Callable
    size: int = 128
    train: bool = False


def nhwc(x):
    x = x.detach()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).double().numpy().copy()


def pictures(size, dtype):
    return torch.from_numpy(zoo_rule.photos(size)).to(dtype)


def loss_and_gradients(main, others, weight, wanted):
    """Return the loss and its gradients with respect to `wanted`, a dict of tensors, as arrays."""
    labels = torch.tensor(zoo_rule.LABELS)
    loss = F.cross_entropy(main, labels) + sum(weight * F.cross_entropy(x, labels) for x in others)
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    named = {f"grad:{name}": g.double().numpy() for name, g in zip(wanted, gradients, strict=True)}
    return {"loss": np.asarray(loss.item()), **named}


def ends(parameters):
    """Return the weight of the first convolution, and weight and bias of the classifier, of an ordered dict."""
    names = list(parameters)
    return {name: parameters[name] for name in (names[0], *names[-2:])}


# ---- PyTorch


def vgg_maps(net):
    """Return the modules before the second pool and after the last, whose indices depend on the norms."""
    pool = [i for i, layer in enumerate(net.features) if isinstance(layer, nn.MaxPool2d)]
    return {"stage2": f"features.{pool[1] - 1}", "pool": f"features.{pool[-1]}"}


RESNET = {"stage1": "layer1", "stage3": "layer3"}
FCN = {"stage1": "backbone.layer1", "stage4": "backbone.layer4"}
DENSENET = {"stage1": "features.denseblock1", "stage4": "features.norm5"}
GOOGLENET = {"stage2": "inception3b", "stage6": "inception5b"}
INCEPTION = {"stage2": "Mixed_5d", "stage4": "Mixed_7c"}
CONVNEXT = {"stage1": "features.1", "stage4": "features.7"}
CONVNEXT_TIMM = {"stage1": "stages.0", "stage4": "stages.3"}
UNET = {"stem": "inc", "stage1": "down1", "stage2": "down2", "stage3": "down3", "stage4": "down4"}
# PyTorch's DenseNets apply the last ReLU outside any module.
RELU_FOLLOWS = {"features.norm5"}


def load_torch(make, dtype):
    """Return the network with drawn weights, created without memory because its initial values are not used."""
    with torch.device("meta"):
        net = make()
    tensors = [[name, list(value.shape)] for name, value in net.state_dict().items()]
    drawn = {name: torch.from_numpy(zoo_rule.draw(name, tuple(shape))) for name, shape in tensors}
    drawn = {name: x.to(dtype) if x.is_floating_point() else x for name, x in drawn.items()}
    net.load_state_dict(drawn, assign=True)
    return net, tensors


def evaluate_torch(net, maps, x):
    """Return outputs and features in evaluation mode."""
    arrays, hooks = {}, []
    for stage, path in (maps(net) if callable(maps) else maps).items():

        def keep(module, args, output, key=f"map:{stage}", relu=path in RELU_FOLLOWS):
            arrays[key] = nhwc(torch.relu(output) if relu else output)

        hooks.append(net.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad():
        output = net.eval()(x)
    for hook in hooks:
        hook.remove()
    return output, arrays


def run_torch(make, maps, size, dtype, train):
    net, tensors = load_torch(make, dtype)
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    x = pictures(size, dtype).permute(0, 3, 1, 2).contiguous()
    output, arrays = evaluate_torch(net, maps, x)
    if torch.is_tensor(output):
        arrays["logits"] = nhwc(output)
    if isinstance(net, smp.Unet):
        with torch.no_grad():
            arrays |= {f"map:encoder{i}": nhwc(y) for i, y in enumerate(net.encoder(x))}
    if not train:
        return Answer(tensors, parameters, arrays, {})

    for module in net.modules():
        if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
    wanted = ends(dict(net.named_parameters()))
    net.requires_grad_(False)
    for p in wanted.values():
        p.requires_grad_(True)
    output = net.train()(x)
    others = {}
    if isinstance(output, tuple):
        named = output._asdict()
        output = named["logits"]
        others = {key: named[field] for key, field in AUXILIARY if field in named}
    arrays |= {"train_logits": nhwc(output), **{key: nhwc(x) for key, x in others.items()}}
    if output.ndim == 2:
        weight = 0.4 if isinstance(net, torchvision.models.Inception3) else 0.3
        arrays |= loss_and_gradients(output, others.values(), weight, wanted)
    stats = {name: x.double().numpy() for name, x in net.state_dict().items() if MOVING.search(name)}
    return Answer(tensors, parameters, arrays, stats)


class DoubleConv(nn.Module):
    def __init__(self, inputs, width, inner=None):
        super().__init__()
        layers, inner = [], inner or width
        for channels, outputs in ((inputs, inner), (inner, width)):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x):
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, width))

    def forward(self, x):
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2)
        self.conv = DoubleConv(inputs, width)

    def forward(self, x, skip):
        x = self.up(x)
        down, right = (b - a for a, b in zip(x.shape[2:], skip.shape[2:], strict=True))
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return self.conv(torch.cat([skip, x], 1))


class UpBilinear(Up):
    """Upsampling by interpolation; `inputs` includes the channels of the skip connection."""

    def __init__(self, inputs, width):
        nn.Module.__init__(self)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = DoubleConv(inputs, width, inputs // 2)


class UNet(nn.Module):
    """A U-Net with the state dict of milesial's Pytorch-UNet."""

    def __init__(self, bilinear=False, widths=(64, 128, 256, 512, 1024), classes=2):
        super().__init__()
        down = (*widths[:-1], widths[-1] // 2) if bilinear else widths
        up = (*(width // 2 for width in widths[3:0:-1]), widths[0]) if bilinear else widths[3::-1]
        self.inc = DoubleConv(3, widths[0])
        for i in range(1, 5):
            self.add_module(f"down{i}", Down(down[i - 1], down[i]))
        for i in range(1, 5):
            self.add_module(f"up{i}", (UpBilinear if bilinear else Up)(widths[5 - i], up[i - 1]))
        self.outc = nn.ModuleDict({"conv": nn.Conv2d(widths[0], classes, 1)})

    def forward(self, x):
        maps = [self.inc(x)]
        for i in range(1, 5):
            maps.append(self.get_submodule(f"down{i}")(maps[-1]))
        x = maps.pop()
        for i in range(1, 5):
            x = self.get_submodule(f"up{i}")(x, maps.pop())
        return self.outc["conv"](x)


def run_fcn(make, maps, size, dtype, train):
    """Run torchvision's FCN in evaluation mode."""
    net, tensors = load_torch(make, dtype)
    output, arrays = evaluate_torch(net, maps, pictures(size, dtype).permute(0, 3, 1, 2).contiguous())
    arrays |= {"logits": nhwc(output["out"]), "aux1": nhwc(output["aux"])}
    return Answer(tensors, sum(p.numel() for p in net.parameters()), arrays, {})


# ---- Keras


def keras_name(variable):
    """Return the path of a variable. Layers of InceptionV3 are numbered from one: conv2d becomes conv2d_1."""
    match = re.fullmatch(r"(conv2d|batch_normalization)(?:_(\d+))?/(\w+)", variable.path)
    return f"{match[1]}_{int(match[2] or 0) + 1}/{match[3]}" if match else variable.path


def run_keras(make, maps, size, dtype, train):
    keras.backend.clear_session()  # restarts the numbering of layers
    keras.config.set_floatx(str(dtype).removeprefix("torch."))
    net = make(weights=None, include_top=True, classifier_activation=None, input_shape=(size, size, 3))
    variables = {keras_name(v): v for v in net.variables}
    for name, v in variables.items():
        v.assign(zoo_rule.draw(name, tuple(v.shape)))
    tensors = [[name, list(v.shape)] for name, v in variables.items()]
    parameters = sum(int(np.prod(v.shape)) for v in net.trainable_variables)

    outputs = keras.Model(net.input, [net.get_layer(layer).output for layer in maps.values()] + [net.output])
    x = tf.constant(zoo_rule.photos(size), dtype=keras.config.floatx())
    *inner, logits = (y.numpy().astype(np.float64) for y in outputs(x, training=False))
    arrays = {f"map:{stage}": y for stage, y in zip(maps, inner, strict=True)} | {"logits": logits}

    wanted = ends({keras_name(v): v.value for v in net.trainable_variables})
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for value in wanted.values():
            tape.watch(value)
        logits = net(x, training=train)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(zoo_rule.LABELS, logits))
    gradients = tape.gradient(loss, list(wanted.values()))
    arrays |= {"train_logits": logits.numpy().astype(np.float64), "loss": loss.numpy().astype(np.float64)}
    arrays |= {f"grad:{name}": g.numpy().astype(np.float64) for name, g in zip(wanted, gradients, strict=True)}
    stats = {name: v.numpy().astype(np.float64) for name, v in variables.items() if MOVING.search(name)}
    return Answer(tensors, parameters, arrays, stats)


# ---- The cases


def by_torchvision(names, maps, size=128, train=True, **options):
    get = torchvision.models.get_model
    return {n: Case(run_torch, partial(get, n, weights=None, **options), maps, size, train) for n in names}


def by_timm(names, maps, size=128):
    return {n: Case(run_torch, partial(timm.create_model, n), maps, size) for n in names}


def by_keras(maps, size=128):
    return {n: Case(run_keras, getattr(keras.applications, n), stages, size, True) for n, stages in maps.items()}


def keras_resnet(blocks):
    return {"stage1": "conv2_block3_out", "stage3": f"conv4_block{blocks}_out"}


AUX_HEADS = {"aux_logits": True, "transform_input": False, "init_weights": False}
VGGS = [f"vgg{depth}{norm}" for norm in ("", "_bn") for depth in (11, 13, 16, 19)]
RESNETS = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
WIDE = ["resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"]
CONVNEXTS = [f"convnext_{size}" for size in ("tiny", "small", "base")]
KERAS_VGG = {"stage2": "block2_conv2", "pool": "block5_pool"}
KERAS_DENSENET = {"stage1": "conv2_block6_concat", "stage4": "relu"}

CASES = {
    "torchvision": by_torchvision(VGGS, vgg_maps, 64)
    | by_torchvision(RESNETS + WIDE, RESNET)
    | by_torchvision([f"densenet{depth}" for depth in (121, 161, 169, 201)], DENSENET)
    | by_torchvision(["googlenet"], GOOGLENET, **AUX_HEADS)
    | by_torchvision(["inception_v3"], INCEPTION, 299, **AUX_HEADS)
    | by_torchvision(CONVNEXTS, CONVNEXT)
    | by_torchvision(["fcn_resnet50", "fcn_resnet101"], FCN, train=False, weights_backbone=None, aux_loss=True),
    "timm": by_timm(["vgg11", "vgg16_bn"], vgg_maps, 64)
    | by_timm(["resnet50"], RESNET)
    | by_timm(["densenet121"], DENSENET)
    | by_timm(["inception_v3"], INCEPTION)
    | by_timm(CONVNEXTS, CONVNEXT_TIMM),
    # Keras flattens the last features of VGG, so that the published shapes need 224 pixels.
    "keras": by_keras({"VGG16": KERAS_VGG, "VGG19": KERAS_VGG}, 224)
    | by_keras({f"ResNet{depth}": keras_resnet(blocks) for depth, blocks in ((50, 6), (101, 23), (152, 36))})
    | by_keras({f"DenseNet{depth}": KERAS_DENSENET for depth in (121, 169, 201)})
    | by_keras({"InceptionV3": {"stage2": "mixed2", "stage4": "mixed10"}}, 192),
    "unet": {"milesial": Case(run_torch, UNet, UNET, train=True)}
    | {
        f"smp_{n}": Case(run_torch, partial(smp.Unet, n, encoder_weights=None), {})
        for n in ("resnet18", "resnet50", "vgg11", "vgg16_bn")
    },
    # An odd size, so that features are padded when upsampled.
    "segmentation": {
        "milesial_bilinear": Case(run_torch, partial(UNet, bilinear=True), {"stem": "inc"}, 61),
        "fcn_resnet50": Case(
            run_fcn,
            partial(torchvision.models.get_model, "fcn_resnet50", weights=None, weights_backbone=None, aux_loss=True),
            {},
            61,
        ),
    },
}


def gap(single, double):
    return np.float32(np.abs(single - double).max() / np.abs(double).max())


def entries(case):
    """Return the stored arrays of a case, with keys without the name of the variant."""
    double, single = (case.run(case.make, case.maps, case.size, x, case.train) for x in (torch.float64, torch.float32))
    arrays = double.arrays
    out = {
        "tensors": as_json(double.tensors),
        "parameters": double.parameters,
        "size": case.size,
        "shapes": as_json({what: list(x.shape) for what, x in arrays.items()}),
    }
    for what, x in arrays.items():
        assert np.isfinite(x).all(), what
        out[what] = (zoo_rule.sample(x) if x.ndim else x).astype(np.float32)
        out[f"float32:{what}"] = gap(single.arrays[what], x)
        if x.ndim:
            out[what.replace("grad:", "gradnorm:") if what.startswith("grad:") else f"norm:{what}"] = np.linalg.norm(x)
    if double.stats:
        stats = {name: [float(f"{v:.9g}") for v in zoo_rule.sample(x, 4)] for name, x in double.stats.items()}
        out["stats"] = as_json(list(stats.items()))
        out["float32:stats"] = max(gap(single.stats[name], x) for name, x in double.stats.items())
    show(out, arrays)
    return out


def as_json(content):
    """Return JSON as bytes, because NumPy strings need four bytes per letter."""
    return np.bytes_(json.dumps(content, separators=(",", ":")))


def show(out, arrays):
    """Print a line per array: maximum magnitude, difference between the two images, and error of float32."""
    for what, x in arrays.items():
        apart = np.abs(x[0] - x[-1]).max() / np.abs(x).max() if what.endswith("logits") or what[:3] == "map" else np.nan
        print(f"    {what:45s} max {np.abs(x).max():9.3g}  apart {apart:7.2g}  float32 {out[f'float32:{what}']:8.1e}")
    if "stats" in out:
        print(f"    {'stats':84s} {out['float32:stats']:8.1e}")


def main():
    for reference in sys.argv[1:] or CASES:
        stored = {"made_with": as_json({m.__name__: m.__version__ for m in (torch, torchvision, timm, keras, smp, np)})}
        for variant, case in CASES[reference].items():
            start = time.time()
            print(f"{reference} {variant}", flush=True)
            stored |= {f"{variant}:{what}": x for what, x in entries(case).items()}
            print(f"    {time.time() - start:.1f} s", flush=True)
        np.savez_compressed(HERE / f"zoo_{reference}.npz", **stored)


if __name__ == "__main__":
    main()
