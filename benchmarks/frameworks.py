"""The networks of each framework, as variants for the workers (worker.py) that models.py starts.

A function takes a task (model, train, dtype, size, batch; classes of a new head) and returns {variant: make}, where
make is as in worker.py. Imports are inside the functions, because the peers' environment need not have tljax or rich.
"""

from __future__ import annotations

import copy
import functools
import os
import sys

from machine import matmul
from worker import Framework, serve

CLASSES = 1000
VGG_HEAD = {"pool": "flatten", "pool_size": 7, "hidden": (4096, 4096)}
KERAS = {"vgg16": "VGG16", "resnet50": "ResNet50", "densenet121": "DenseNet121", "inception_v3": "InceptionV3"}
# Variants of Keras, to compare equal networks; torchvision does not have them.
KERAS |= {"resnet50_v1": "ResNet50", "densenet121_keras": "DenseNet121", "inception_v3_keras": "InceptionV3"}


def tljax(task):
    """Return the variant of this project: pure functions of flat variables, as in tljax/train/step.py."""
    import jax.numpy as jnp
    from flax import nnx

    from tljax import models
    from tljax.models import params as params_lib

    head = VGG_HEAD if has_dense_layers(task) else {}
    dtype = jnp.dtype(task["dtype"])
    model = models.create_model(
        task["model"], num_classes=CLASSES, image_size=task["size"], dtype=dtype, rngs=nnx.Rngs(0), **head
    )
    graphdef, params, batch_stats = params_lib.flatten_model(model)

    def call(params, batch_stats, x, train):
        model = params_lib.merge(graphdef, params | batch_stats)
        return model(x, train=train), params_lib.batch_stats(model)

    return {"jit": lambda: jax_step(task, call, params, batch_stats)}


def keras_jax(task):
    """Return the variant of Keras 3 on JAX: its stateless call in the same step as tljax."""
    model = keras_model(task, "jax")
    params = [v.value for v in model.trainable_variables]
    batch_stats = [v.value for v in model.non_trainable_variables]

    def call(params, batch_stats, x, train):
        return model.stateless_call(params, batch_stats, x, training=train)

    return {"jit": lambda: jax_step(task, call, params, batch_stats)}


def jax_step(task, call, params, batch_stats):
    """Return the step of `call(params, batch_stats, images, train) → (logits, new batch_stats)`, and its FLOPs.

    The FLOPs are XLA's count of the program before optimization: 2 per multiply-add of convolutions and products except
    with padding, 1 per elementwise operation. It excludes transcendental functions (XLA counts them separately) and
    changes by the compiler: recomputation in fusions, Winograd, custom calls.
    """
    import jax
    import jax.numpy as jnp

    images, labels = batch_of(task)
    images, labels = jnp.asarray(images), jnp.asarray(labels)

    def loss_fn(params, batch_stats, x, y):
        logits, batch_stats = call(params, batch_stats, x, True)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        return -jnp.take_along_axis(log_probs, y[:, None], axis=1).mean(), batch_stats

    def infer(params, batch_stats, x, y):
        return call(params, batch_stats, x, False)[0]

    # The running statistics are returned; otherwise XLA would remove their updates, which the peers compute.
    program = jax.jit(jax.value_and_grad(loss_fn, has_aux=True) if task["train"] else infer)
    flops = program.lower(params, batch_stats, images, labels).cost_analysis()["flops"]
    return lambda: jax.block_until_ready(program(params, batch_stats, images, labels)), flops


def keras_tensorflow(task):
    """Return the variants of Keras 3 on TensorFlow: compiled by XLA, and as a graph with oneDNN kernels."""
    model = keras_model(task, "tensorflow")
    import tensorflow as tf

    images, labels = map(tf.constant, batch_of(task))

    def train(x, y):
        with tf.GradientTape() as tape:
            logits = tf.cast(model(x, training=True), tf.float32)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        return loss, tape.gradient(loss, model.trainable_weights)

    def infer(x, y):
        return model(x, training=False)

    def make(compiled):
        function = tf.function(train if task["train"] else infer, jit_compile=compiled)
        select = (lambda out: out[1][0]) if task["train"] else (lambda out: out)
        return lambda: select(function(images, labels)).numpy(), None  # reading a result waits for it

    return {"jit_compile": lambda: make(True), "graph": lambda: make(False)}


def keras_model(task, backend):
    """Return a network of keras.applications with the same head as in the other frameworks."""
    os.environ["KERAS_BACKEND"] = backend  # read at the first import
    import keras

    keras.backend.clear_session()
    keras.config.set_dtype_policy("mixed_bfloat16" if task["dtype"] == "bfloat16" else "float32")
    make = getattr(keras.applications, KERAS[task["model"]])
    shape = (task["size"], task["size"], 3)
    if has_dense_layers(task):
        return make(weights=None, input_shape=shape, classes=CLASSES, classifier_activation=None)
    backbone = make(weights=None, input_shape=shape, include_top=False, pooling="avg")
    return keras.Model(backbone.input, keras.layers.Dense(task.get("classes", CLASSES))(backbone.output))


def torch(task):
    """Return the variants of PyTorch with torchvision's networks: eager in two layouts, and compiled."""
    import torch

    net, device = torch_network(task)
    images, labels = torch_batch(task, device)

    def make(layout, compiled=False):
        model = copy.deepcopy(net).to(device, memory_format=layout).train(task["train"])
        x = images.contiguous(memory_format=layout)
        call = torch.compile(model) if compiled else model

        def step():
            with torch.autocast(device, torch.bfloat16, enabled=task["dtype"] == "bfloat16"):
                with torch.inference_mode(not task["train"]):
                    logits = call(x)
                loss = torch.nn.functional.cross_entropy(logits, labels) if task["train"] else None
            if task["train"]:
                model.zero_grad(set_to_none=True)
                loss.backward()
            if device == "cuda":
                torch.cuda.synchronize()

        return step, None

    return torch_layouts(make, task)


def torch_network(task):
    """Return a network of torchvision with the same head as in the other frameworks, and the device's name."""
    import torch
    import torchvision

    torch._dynamo.reset()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # JAX also multiplies float32 in TF32 on GPUs
    # No dropout, as in the other frameworks, and no auxiliary classifier.
    options = {"vgg16": {"dropout": 0.0}, "inception_v3": {"aux_logits": False, "dropout": 0.0, "init_weights": False}}
    classes = task.get("classes", CLASSES)
    make = getattr(torchvision.models, task["model"])
    net = make(weights=None, num_classes=classes, **options.get(task["model"], {}))
    if task["model"].startswith("vgg") and not has_dense_layers(task):
        net.avgpool, net.classifier = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(512, classes)
    return net, device


def torch_batch(task, device):
    """Return images [B, 3, H, W] and labels [B] on the device."""
    import torch

    images, labels = (torch.from_numpy(array).to(device) for array in batch_of(task))
    return images.permute(0, 3, 1, 2), labels.long()


def torch_layouts(make, task):
    """Return `make(layout, compiled)` for both layouts, and for both compiled if the task sets `torch_compile`."""
    import torch

    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    eager = {name: functools.partial(make, layout) for name, layout in layouts.items()}
    if not task["torch_compile"]:
        return eager
    return eager | {f"compile, {name}": functools.partial(make, layout, True) for name, layout in layouts.items()}


def batch_of(task):
    """Return random images [B, H, W, 3] and labels [B]."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.standard_normal((task["batch"], task["size"], task["size"], 3), np.float32)
    return images, rng.integers(0, task.get("classes", CLASSES), task["batch"]).astype(np.int32)


def has_dense_layers(task) -> bool:
    """Return whether VGG keeps its dense layers, which need 224 pixels and 1000 classes; otherwise it has one."""
    return task["model"].startswith("vgg") and task["size"] == 224 and "classes" not in task


FRAMEWORKS = {
    "matmul": Framework(matmul, ("jax",)),
    "tljax": Framework(tljax, ("jax", "flax", "tljax")),
    "torch": Framework(torch, ("torch", "torchvision")),
    "keras-tensorflow": Framework(keras_tensorflow, ("tensorflow", "keras")),
    "keras-jax": Framework(keras_jax, ("jax", "keras")),
}


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), FRAMEWORKS)
