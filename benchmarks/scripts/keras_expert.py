"""The same model by an expert: features of the frozen network are computed once, and the head is fitted on them."""

import json
import time

import fashion
import keras
from keras_as_written import preprocess, vgg16


def main():
    """Train and print the last validation accuracy and the seconds of fitting the head."""
    args = fashion.options()
    (x_train, y_train), (x_valid, y_valid) = fashion.load_splits(args)
    base = vgg16(args.size, args.weights)
    x_train = base.predict(preprocess(x_train, args.size), batch_size=32, verbose=0)
    x_valid = base.predict(preprocess(x_valid, args.size), batch_size=32, verbose=0)
    start = time.perf_counter()
    head = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")])
    head.compile(keras.optimizers.RMSprop(1e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = head.fit(
        x_train, y_train, batch_size=32, epochs=args.epochs, validation_data=(x_valid, y_valid), verbose=0
    )
    print(json.dumps({"accuracy": history.history["val_accuracy"][-1], "head_seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
