"""Shared parts of the scripts: options, the first images of Fashion-MNIST, and ImageNet's weights of VGG-16."""

import argparse
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from images import first_per_class, read

# Output channels of the convolutions; M: a 2x2 max pool.
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
MEAN_BGR = (103.939, 116.779, 123.68)


def options(**defaults):
    """Return the parsed command line; `defaults` adds options with their default values."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder of the four IDX files")
    parser.add_argument("--weights", required=True, help="safetensors file with torchvision's names")
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default)
    return parser.parse_args()


def load_splits(args):
    """Yield the first images of each class, gray uint8 [N, 28, 28, 1], and labels [N]: training, then validation."""
    for prefix in ("train", "t10k"):
        images, labels = read(Path(args.data), prefix)
        indices = first_per_class(labels, args.per_class)
        yield images[indices][..., None], labels[indices].astype(np.int64)


def load_convolutions(path):
    """Return kernels [out, in, 3, 3] and biases [out] of the thirteen convolutions, in order."""
    tensors = load_file(path)
    numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("features.")})
    return [(tensors[f"features.{n}.weight"], tensors[f"features.{n}.bias"]) for n in numbers]
