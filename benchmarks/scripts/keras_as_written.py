"""VGG-16, frozen, under Flatten and Dense, as every tutorial has it: `fit` runs the whole network in every epoch."""

import json
import time

import fashion
import keras


def vgg16(size, weights):
    """The network without its classifier, with ImageNet's weights."""
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(size, size, 3))
    layers = [layer for layer in base.layers if isinstance(layer, keras.layers.Conv2D)]
    for layer, (kernel, bias) in zip(layers, fashion.convolutions(weights), strict=True):
        layer.set_weights([kernel.transpose(2, 3, 1, 0), bias])
    base.trainable = False
    return base


def prepared(images, size):
    """Grey pictures → what the network was trained on."""
    colour = keras.ops.repeat(keras.ops.convert_to_tensor(images, "float32"), 3, axis=-1)
    resized = keras.ops.image.resize(colour, (size, size), interpolation="bilinear")
    return keras.applications.vgg16.preprocess_input(keras.ops.convert_to_numpy(resized))


def main():
    """Trains and prints the last validation accuracy."""
    args = fashion.options()
    (x_train, y_train), (x_valid, y_valid) = fashion.pictures(args)
    x_train, x_valid = prepared(x_train, args.size), prepared(x_valid, args.size)
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
