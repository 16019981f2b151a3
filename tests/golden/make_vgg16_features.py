"""Store feature maps of the ImageNet VGG16 on a photograph, as golden values.

Writes vgg16_features.npz next to this file:
    block3         features.15 (the last ReLU before the third pool), HWC, every
                   4th row and column and 8th channel: (6, 6, 32) of (24, 24, 256)
    pool5          features.30 (after the last pool), complete: (3, 3, 512)
    image_sha256   of the bytes of the (96, 96, 3) uint8 RGB crop, because JPEG decoders differ

Both feature maps are computed in float64 and stored in float32. The image is scikit-learn's china.jpg, rows
100-195, columns 200-295, in BGR minus the Caffe means. The weights are
vgg16_imagenet_notop.safetensors (the first convolution takes BGR) in the folder of the
environment variable TLJAX_WEIGHTS_DIR.

Run with:
    pip install torch numpy safetensors scikit-learn pillow
    TLJAX_WEIGHTS_DIR=... python tests/golden/make_vgg16_features.py
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image
from torch import nn

HERE = Path(__file__).resolve().parent
BLOCKS = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
MEAN_BGR = np.array([103.939, 116.779, 123.68])


def trunk():
    layers, channels = [], 3
    for block in BLOCKS:
        for width in block:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.ModuleDict({"features": nn.Sequential(*layers)})


def nhwc(x):
    return x[0].permute(1, 2, 0).numpy().astype(np.float32)


def main():
    torch.set_num_threads(1)
    net = trunk()
    weights = Path(os.environ["TLJAX_WEIGHTS_DIR"]) / "vgg16_imagenet_notop.safetensors"
    net.load_state_dict(load_file(weights))
    features = net["features"].double().eval()

    image = np.ascontiguousarray(load_sample_image("china.jpg")[100:196, 200:296])
    x = image[..., ::-1].astype(np.float64) - MEAN_BGR
    with torch.no_grad():
        block3 = features[:16](torch.from_numpy(x).permute(2, 0, 1)[None])
        pool5 = features[16:](block3)
    np.savez_compressed(
        HERE / "vgg16_features.npz",
        block3=nhwc(block3)[::4, ::4, ::8],
        pool5=nhwc(pool5),
        image_sha256=hashlib.sha256(image.tobytes()).hexdigest(),
    )


if __name__ == "__main__":
    main()
