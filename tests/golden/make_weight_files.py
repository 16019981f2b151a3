"""Store small weight files written by torch and Keras, and their contents, as golden values.

Writes next to this file:
    torch_zip.pth, torch_legacy.pth    one state dict in torch's two formats
    torch_nested.pth                   {"state_dict": ..., "epoch", ...} of a DataParallel model
    torch_files.npz                    the values of the state dict; bfloat16 as float32, without loss
    keras_old.h5, keras_legacy.h5      a model in the layout of keras-applications, with names of Keras 1 and 2
    keras3_legacy.h5                   the same layout, written by Keras 3
    keras3.weights.h5                  the layout of Keras 3
    keras_files.npz                    the values of the model, "layer/variable"

Run with:
    pip install torch keras h5py numpy
    python tests/golden/make_weight_files.py
"""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

os.environ["KERAS_BACKEND"] = "torch"
HERE = Path(__file__).resolve().parent
OLD = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}


def make_torch():
    torch.manual_seed(0)
    net = torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(3, 4, 3), bn=torch.nn.BatchNorm2d(4)))
    net(torch.randn(2, 3, 5, 5))
    state = net.state_dict()
    pool = torch.randn(5, 6)
    state["view"] = pool.T[1:, ::2]  # not contiguous, with an offset
    state["tied.a"] = state["tied.b"] = torch.randn(3)
    state["half"], state["bfloat16"] = torch.randn(2, 3).half(), torch.randn(2, 3).bfloat16()
    state["scalar"], state["empty"] = torch.tensor(2.5, dtype=torch.float64), torch.zeros(0, 3)
    state["flags"] = torch.tensor([True, False])
    torch.save(state, HERE / "torch_zip.pth")
    torch.save(state, HERE / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    wrapped = OrderedDict((f"module.{name}", tensor) for name, tensor in state.items()) | {"mask_values": [0, 1]}
    torch.save({"state_dict": wrapped, "epoch": 3, "best": 0.5, "args": {"lr": 0.1}}, HERE / "torch_nested.pth")
    values = {n: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for n, t in state.items()}
    np.savez_compressed(HERE / "torch_files.npz", **values)


def make_keras():
    import h5py
    import keras
    from keras import layers
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    x = inputs = keras.Input((8, 8, 3), name="input")
    x = layers.Conv2D(4, 3, name="block1_conv1")(x)
    x = layers.BatchNormalization(scale=False, name="bn_beta")(x)
    x = layers.Conv2D(4, 3, use_bias=False)(x)  # named by Keras
    x = layers.BatchNormalization(name="bn_both")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(2, name="predictions")(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    model.save_weights(HERE / "keras3.weights.h5")
    with h5py.File(HERE / "keras3_legacy.h5", "w") as file:
        save_weights_to_hdf5_group(file, model)
    for name, spell in (("keras_old.h5", spell_old), ("keras_legacy.h5", "{0}/{1}:0".format)):
        with h5py.File(HERE / name, "w") as file:
            file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
            for layer in model.layers:
                group = file.create_group(layer.name)
                names = [spell(layer.name, weight.name) for weight in layer.weights]
                group.attrs["weight_names"] = [name.encode() for name in names]
                for weight_name, weight in zip(names, layer.weights, strict=True):
                    group[weight_name] = weight.numpy()
    values = {f"{layer.name}/{weight.name}": weight.numpy() for layer in model.layers for weight in layer.weights}
    np.savez_compressed(HERE / "keras_files.npz", **values)


def spell_old(layer, variable):
    return f"{layer}_{OLD.get(variable, variable)}_1:0"


if __name__ == "__main__":
    make_torch()
    make_keras()
