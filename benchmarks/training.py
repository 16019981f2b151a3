"""Whole training steps of each framework, with optimizer, freezing and augmentation, as functions of workers.

A task has model, learns ("all", "last": the last stage and the head, or "head"), augment, optimizer, dtype, size,
batch, classes and cached; networks are those of frameworks.py under one dense layer. What learns nothing is in
inference mode and gets no gradient, in every framework.
"""

from __future__ import annotations

import copy
import sys

from frameworks import batch_of, keras_model, torch_batch, torch_layouts, torch_network
from machine import matmul, torch_matmul, triad
from ours import our_step
from worker import Peer, work

RATE = 1e-3
PADDING = 4


def torch(task):
    """PyTorch, with its fused optimizer."""
    import torch

    net, device = torch_network(task)
    images, labels = torch_batch(task, device)
    optimizers = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}

    def make(layout, compiled=False):
        model = copy.deepcopy(net).to(device, memory_format=layout).train()
        freeze(model, task["learns"])
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizers[task["optimizer"]](learning, RATE, fused=True)
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
            return {"learning_bytes": nbytes(learning), "optimizer_bytes": nbytes(moments)}

        return step, None, facts

    return torch_layouts(make, task)


def freeze(model, learns: str) -> None:
    """No gradients and inference mode for what does not learn."""
    last = {"last": ("layer4", "fc"), "head": ("classifier", "fc")}.get(learns)
    for name, child in model.named_children():
        if last and name not in last:
            child.requires_grad_(False).eval()


def flip_and_crop(x):
    """Each picture mirrored or not, padded and cropped back at a place of its own."""
    import torch

    count, _, height, width = x.shape
    flipped = torch.where(torch.rand(count, 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
    padded = torch.nn.functional.pad(flipped, (PADDING,) * 4)
    tops, lefts = torch.randint(2 * PADDING + 1, (2, count), device=x.device)
    rows = tops[:, None] + torch.arange(height, device=x.device)
    columns = lefts[:, None] + torch.arange(width, device=x.device)
    every = torch.arange(count, device=x.device)[:, None, None]
    # Indexing puts the channels last, so that the result has the layout of channels_last.
    cropped = padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None]]
    return cropped.permute(0, 3, 1, 2)


def keras_network(task, backend):
    """A network of Keras that learns in part, behind Keras' layers for augmentation, and its optimizer."""
    model = keras_model(task, backend)
    import keras

    first = {"last": "conv5", "head": model.layers[-1].name}.get(task["learns"], "")
    for layer in model.layers[:-1]:
        layer.trainable = layer.name.startswith(first)
    if task["augment"]:
        layers, size = keras.layers, task["size"]
        crop = [layers.ZeroPadding2D(PADDING), layers.RandomCrop(size, size)]
        if backend == "jax":  # where RandomCrop cannot be compiled, but this can, which moves each picture by itself
            crop = [layers.RandomTranslation(PADDING / size, PADDING / size, fill_mode="constant")]
        model = keras.Sequential([keras.Input((size, size, 3)), layers.RandomFlip("horizontal"), *crop, model])
    optimizer = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[task["optimizer"]](RATE)
    optimizer.build(model.trainable_variables)

    def facts():
        moments = [v.value for v in optimizer.variables if len(v.shape)]
        return {"learning_bytes": nbytes(model.trainable_variables), "optimizer_bytes": nbytes(moments)}

    return model, optimizer, facts


def keras_tensorflow(task):
    """Keras on TensorFlow: compiled by XLA, and as a plain graph."""
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
            optimizer.iterations.numpy()  # the update is done when its last variable is there

        return step, None, facts

    return {"jit_compile": lambda: make(True), "graph": lambda: make(False)}


def keras_jax(task):
    """Keras on JAX: its stateless calls in one compiled step, its state donated."""
    model, optimizer, facts = keras_network(task, "jax")
    import jax
    import jax.numpy as jnp

    images, labels = map(jnp.asarray, batch_of(task))

    def train(params, stats, moments, x, y):
        def loss_of(params):
            logits, moved = model.stateless_call(params, stats, x, training=True)
            logs = jax.nn.log_softmax(logits.astype(jnp.float32))
            return -jnp.take_along_axis(logs, y[:, None], axis=1).mean(), moved

        (loss, moved), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        params, moments = optimizer.stateless_apply(moments, grads, params)
        return params, moved, moments, loss

    def make():
        program = jax.jit(train, donate_argnums=(0, 1, 2))
        variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        state = [[jnp.copy(v.value) for v in of_kind] for of_kind in variables]
        flops = program.lower(*state, images, labels).cost_analysis()["flops"]

        def step():
            *state[:], _ = jax.block_until_ready(program(*state, images, labels))

        return step, flops, facts

    return {"jit": make}


def nbytes(arrays) -> int:
    """Bytes of arrays of any framework, all of float32."""
    count = 0
    for array in arrays:
        elements = 1
        for side in array.shape:
            elements *= int(side)
        count += 4 * elements
    return count


PEERS = {
    "matmul": Peer(matmul, ("jax",)),
    "matmul-torch": Peer(torch_matmul, ("torch",)),
    "triad": Peer(triad, ("jax",)),
    "tljax": Peer(our_step, ("jax", "flax", "tljax")),
    "torch": Peer(torch, ("torch", "torchvision")),
    "keras-tensorflow": Peer(keras_tensorflow, ("tensorflow", "keras")),
    "keras-jax": Peer(keras_jax, ("jax", "keras")),
}

if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), PEERS)
