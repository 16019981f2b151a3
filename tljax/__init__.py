"""Transfer learning in JAX: one config in, one honest answer out."""

import importlib

__version__ = "0.1.0"


def __getattr__(name: str):
    # Late, so that `import tljax.config` and `python run.py --help` do not pay for JAX.
    if name in ("config", "data", "models", "strategies", "weights"):
        return importlib.import_module(f"tljax.{name}")
    raise AttributeError(f"module 'tljax' has no attribute {name!r}")
