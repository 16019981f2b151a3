"""Transfer learning for vision in JAX: pretrained backbones, fine-tuning strategies and reproducible evaluation."""

import importlib

__version__ = "0.1.0"


def __getattr__(name: str):
    # Imported on first use: `import tljax.config` and `python run.py --help` need not wait for JAX.
    if name in ("config", "data", "models", "strategies", "weights"):
        return importlib.import_module(f"tljax.{name}")
    raise AttributeError(f"module 'tljax' has no attribute {name!r}")
