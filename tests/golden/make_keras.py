"""Store results of Keras' optimizers and image preprocessing, as golden values.

Writes keras.json next to this file:
    optimizers   {name: 5 vectors}: the parameters after each of 5 steps from `start`. The gradient
                 of step t (from 0) is default_rng([11, t]).standard_normal(4) in float32. In the
                 `*_small` entries it is multiplied by 1e-4 (in float32), so that it matters
                 whether epsilon is inside or outside of the root.
    preprocess   the `input` (H, W, RGB, uint8) and the output of each of Keras' three modes

Run with:
    pip install torch keras numpy
    python tests/golden/make_keras.py
"""

import json
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from keras.applications import imagenet_utils, vgg16

HERE = Path(__file__).resolve().parent
START = [1.0, -2.0, 3.0, 0.5]
STEPS = 5
SMALL = 1e-4


def gradient(step, scale):
    rng = np.random.default_rng([11, step])
    return rng.standard_normal(4).astype(np.float32) * np.float32(scale)


def apply(optimizer, scale=1.0):
    """Return the parameters after each step."""
    variable = keras.Variable(np.array(START, np.float32))
    path = []
    for step in range(STEPS):
        optimizer.apply([keras.ops.convert_to_tensor(gradient(step, scale))], [variable])
        path.append(listed(keras.ops.convert_to_numpy(variable)))
    return path


def listed(array):
    """Return nested lists with nine significant digits, which represent a float32 exactly."""
    array = np.asarray(array)
    assert array.dtype == np.float32
    return [listed(a) if a.ndim else float(f"{a:.9g}") for a in array]


def main():
    opt = keras.optimizers
    image = np.random.default_rng(3).integers(0, 256, (2, 3, 3)).astype(np.uint8)
    content = {
        "made_with": {
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "start": START,
        "small": SMALL,
        "optimizers": {
            "rmsprop": apply(opt.RMSprop()),
            "sgd_nesterov": apply(opt.SGD(0.1, momentum=0.9, nesterov=True)),
            "adam": apply(opt.Adam()),
            "rmsprop_small": apply(opt.RMSprop(), SMALL),
            "adam_small": apply(opt.Adam(), SMALL),
        },
        "preprocess": {
            "input": image.tolist(),
            "caffe": listed(vgg16.preprocess_input(image.copy())),
            "torch": listed(imagenet_utils.preprocess_input(image.copy(), mode="torch")),
            "tf": listed(imagenet_utils.preprocess_input(image.copy(), mode="tf")),
        },
    }
    (HERE / "keras.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
