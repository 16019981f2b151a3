"""Whole training steps of each framework, with optimizer, freezing and augmentation, as variants for workers.

A task has model, trainable ("all", "last": the last stage and the head, or "head"), augment, optimizer, dtype, size,
batch, classes and cached; networks are those of frameworks.py with one dense layer. In every framework, frozen parts
are in inference mode and get no gradient.
"""

from __future__ import annotations

import copy
import sys

from frameworks import batch_of, keras_model, torch_batch, torch_layouts, torch_network
from machine import matmul, torch_matmul, triad
from tljax_step import tljax_variants
from worker import Framework, serve

LEARNING_RATE = 1e-3
PADDING = 4


def torch(task):
    """Return the variants of PyTorch with its fused optimizer."""
    import torch

    net, device = torch_network(task)
    images, labels = torch_batch(task, device)
    optimizers = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}

    def make(layout, compiled=False):
        model = copy.deepcopy(net).to(device, memory_format=layout).train()
        freeze(model, task["trainable"])
        params = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizers[task["optimizer"]](params, LEARNING_RATE, fused=True)
        x = images.contiguous(memory_format=layout)
        call = torch.compile(model) if compiled else model

        def step():
            with torch.autocast(device, torch.bfloat16, enabled=task["dtype"] == "bfloat16"):
                logits = call(flip_and_crop(x) if task["augment"] else x)
                loss = torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()

        def facts():
            moments = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.ndim]
            return {"trainable_bytes": nbytes(params), "optimizer_bytes": nbytes(moments)}

        return step, None, facts

    return torch_layouts(make, task)


def freeze(model, trainable: str) -> None:
    """Disable gradients and training mode for the frozen children of a module."""
    names = {"last": ("layer4", "fc"), "head": ("classifier", "fc")}.get(trainable)
    for name, child in model.named_children():
        if names and name not in names:
            child.requires_grad_(False).eval()


def flip_and_crop(x):
    """Return images [B, C, H, W] flipped at random, padded, and cropped at random positions."""
    import torch

    count, _, height, width = x.shape
    flipped = torch.where(torch.rand(count, 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
    padded = torch.nn.functional.pad(flipped, (PADDING,) * 4)
    tops, lefts = torch.randint(2 * PADDING + 1, (2, count), device=x.device)
    rows = tops[:, None] + torch.arange(height, device=x.device)
    columns = lefts[:, None] + torch.arange(width, device=x.device)
    index = torch.arange(count, device=x.device)[:, None, None]
    # Indexing puts the channels last, so the result has the layout of channels_last.
    cropped = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]]
    return cropped.permute(0, 3, 1, 2)


def keras_network(task, backend):
    """Return a partly frozen Keras model with augmentation layers, its optimizer, and a function of its facts."""
    model = keras_model(task, backend)
    import keras

    prefix = {"last": "conv5", "head": model.layers[-1].name}.get(task["trainable"], "")
    for layer in model.layers[:-1]:
        layer.trainable = layer.name.startswith(prefix)
    if task["augment"]:
        layers = keras.layers
        size = task["size"]
        crop = [layers.ZeroPadding2D(PADDING), layers.RandomCrop(size, size)]
        if backend == "jax":  # RandomCrop does not compile there; RandomTranslation does, with one shift per image
            crop = [layers.RandomTranslation(PADDING / size, PADDING / size, fill_mode="constant")]
        model = keras.Sequential([keras.Input((size, size, 3)), layers.RandomFlip("horizontal"), *crop, model])
    optimizer = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[task["optimizer"]](LEARNING_RATE)
    optimizer.build(model.trainable_variables)

    def facts():
        moments = [v.value for v in optimizer.variables if len(v.shape)]
        return {"trainable_bytes": nbytes(model.trainable_variables), "optimizer_bytes": nbytes(moments)}

    return model, optimizer, facts


def keras_tensorflow(task):
    """Return the variants of Keras on TensorFlow: compiled by XLA, and as a graph."""
    model, optimizer, facts = keras_network(task, "tensorflow")
    import tensorflow as tf

    images, labels = map(tf.constant, batch_of(task))

    def train(x, y):
        with tf.GradientTape() as tape:
            logits = tf.cast(model(x, training=True), tf.float32)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
        return loss

    def make(compiled):
        function = tf.function(train, jit_compile=compiled)

        def step():
            function(images, labels).numpy()
            optimizer.iterations.numpy()  # waits for the update, of which this variable is the last

        return step, None, facts

    return {"jit_compile": lambda: make(True), "graph": lambda: make(False)}


def keras_jax(task):
    """Return the variant of Keras on JAX: its stateless calls in one compiled step with donated state."""
    model, optimizer, facts = keras_network(task, "jax")
    import jax
    import jax.numpy as jnp

    images, labels = map(jnp.asarray, batch_of(task))

    def train(params, batch_stats, moments, x, y):
        def loss_fn(params):
            logits, new_stats = model.stateless_call(params, batch_stats, x, training=True)
            log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
            return -jnp.take_along_axis(log_probs, y[:, None], axis=1).mean(), new_stats

        (loss, new_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        params, moments = optimizer.stateless_apply(moments, grads, params)
        return params, new_stats, moments, loss

    def make():
        program = jax.jit(train, donate_argnums=(0, 1, 2))
        variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        state = [[jnp.copy(v.value) for v in group] for group in variables]
        flops = program.lower(*state, images, labels).cost_analysis()["flops"]

        def step():
            *state[:], _ = jax.block_until_ready(program(*state, images, labels))

        return step, flops, facts

    return {"jit": make}


def nbytes(arrays) -> int:
    """Return the bytes of float32 arrays of any framework."""
    total = 0
    for array in arrays:
        elements = 1
        for side in array.shape:
            elements *= int(side)
        total += 4 * elements
    return total


FRAMEWORKS = {
    "matmul": Framework(matmul, ("jax",)),
    "matmul-torch": Framework(torch_matmul, ("torch",)),
    "triad": Framework(triad, ("jax",)),
    "tljax": Framework(tljax_variants, ("jax", "flax", "tljax")),
    "torch": Framework(torch, ("torch", "torchvision")),
    "keras-tensorflow": Framework(keras_tensorflow, ("tensorflow", "keras")),
    "keras-jax": Framework(keras_jax, ("jax", "keras")),
}

if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), FRAMEWORKS)
