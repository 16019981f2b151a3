"""Frozen VGG-16 under Flatten and Dense, as in tutorials: `fit` runs the whole network in every epoch."""

import json
import time

import fashion
import keras


def vgg16(size, weights):
    """Return the frozen network without its classifier, with ImageNet's weights."""
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(size, size, 3))
    layers = [layer for layer in base.layers if isinstance(layer, keras.layers.Conv2D)]
    for layer, (kernel, bias) in zip(layers, fashion.load_convolutions(weights), strict=True):
        layer.set_weights([kernel.transpose(2, 3, 1, 0), bias])
    base.trainable = False
    return base


def preprocess(images, size):
    """Return the network's input [N, size, size, 3] of gray images."""
    rgb = keras.ops.repeat(keras.ops.convert_to_tensor(images, "float32"), 3, axis=-1)
    resized = keras.ops.image.resize(rgb, (size, size), interpolation="bilinear")
    return keras.applications.vgg16.preprocess_input(keras.ops.convert_to_numpy(resized))


def main():
    """Train and print the last validation accuracy and the seconds of `fit`."""
    args = fashion.options()
    (x_train, y_train), (x_valid, y_valid) = fashion.load_splits(args)
    x_train = preprocess(x_train, args.size)
    x_valid = preprocess(x_valid, args.size)
    model = keras.Sequential(
        [vgg16(args.size, args.weights), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    )
    model.compile(keras.optimizers.RMSprop(1e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    start = time.perf_counter()
    history = model.fit(
        x_train, y_train, batch_size=32, epochs=args.epochs, validation_data=(x_valid, y_valid), verbose=0
    )
    seconds = time.perf_counter() - start
    print(json.dumps({"accuracy": history.history["val_accuracy"][-1], "fit_seconds": seconds}))


if __name__ == "__main__":
    main()
