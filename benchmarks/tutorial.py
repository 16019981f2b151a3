"""The tutorial's script as a config: `configs/vgg16_fashion.py:classic` in float32 or bfloat16.

    python run.py --config=benchmarks/tutorial.py:float32 --config.data.path=FOLDER

The variant is a dtype, optionally followed by a grid: `float32-8x4` is a sweep over eight learning rates and four
weight decays. benchmarks/run.py writes the folder. Its test files have few images beyond those for validation, because
the peers' scripts have no test split.
"""

from configs import vgg16_fashion

RATES = (3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3)
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)


def get_config(variant="float32"):
    """Return the config; `variant` is float32 or bfloat16, or one of them followed by a grid such as -8x4."""
    dtype, _, grid = variant.partition("-")
    c = vgg16_fashion.get_config("classic")
    c.train.compute_dtype = dtype
    c.report.figures = False
    c.report.tensorboard = False
    if grid:
        num_rates, num_decays = map(int, grid.split("x"))
        c.sweep = {"optim.lr": RATES[:num_rates], "optim.weight_decay": DECAYS[:num_decays]}
    return c
