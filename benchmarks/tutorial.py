"""The tutorial's script as a config: ImageNet's VGG-16, frozen, under Flatten and Dense on Fashion-MNIST, by RMSprop.

    python run.py --config=benchmarks/tutorial.py:float32 --config.data.path=FOLDER

The variant is a precision; `-8x4` behind it makes a sweep of it over so many learning rates and weight decays.
benchmarks/run.py writes the folder, whose test files have few pictures more than validation takes, for the peers have
no test split.
"""

from tljax import config

RATES = (3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3)
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)


def get_config(variant="float32"):
    """The recipe; `variant` is float32 or bfloat16, or either with -8x4."""
    precision, _, sweep = variant.partition("-")
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.split = "first_per_class"
    c.data.labels_per_class = 200
    c.data.image_size = 64
    c.model.backbone = "vgg16"
    c.model.weights = "vgg16_imagenet_notop"
    c.model.pool = "flatten"
    c.strategy.name = "feature_extraction"
    c.optim.name = "rmsprop"
    c.train.batch_size = 32
    c.train.epochs = 10
    c.train.precision = precision
    c.report.figures = False
    c.report.tensorboard = False
    if sweep:
        rates, decays = map(int, sweep.split("x"))
        c.sweep = {"optim.lr": RATES[:rates], "optim.weight_decay": DECAYS[:decays]}
    return c
