"""The tutorial's script as a config: `configs/vgg16_fashion.py:classic` in either precision.

    python run.py --config=benchmarks/tutorial.py:float32 --config.data.path=FOLDER

The variant is a precision; `-8x4` behind it makes a sweep of it over so many learning rates and weight decays.
benchmarks/run.py writes the folder, whose test files have few pictures more than validation takes, for the peers have
no test split.
"""

from configs import vgg16_fashion

RATES = (3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3)
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)


def get_config(variant="float32"):
    """The recipe; `variant` is float32 or bfloat16, or either with -8x4."""
    precision, _, sweep = variant.partition("-")
    c = vgg16_fashion.get_config("classic")
    c.train.compute_dtype = precision
    c.report.figures = False
    c.report.tensorboard = False
    if sweep:
        rates, decays = map(int, sweep.split("x"))
        c.sweep = {"optim.lr": RATES[:rates], "optim.weight_decay": DECAYS[:decays]}
    return c
