"""`python -m tljax.models`: list the backbones, or show one with `python -m tljax.models NAME`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from rich.console import Console

from tljax import models
from tljax.errors import TljaxError
from tljax.models import params as params_lib
from tljax.models.backbones import FAMILIES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tljax.models", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("name", nargs="?", help="a backbone, as for model.backbone")
    name = parser.parse_args(arguments).name
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        if name is None:
            for family, module in FAMILIES.items():
                console.print(f"{family:<10} {', '.join(module.VARIANTS)}")
        else:
            _show(name, console)
    except TljaxError as error:
        print(f"{error.label}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _show(name: str, console: Console) -> None:
    family, variant = models.get_variant(name)
    model = models.create_model(name, num_classes=0, rngs=None)
    count = sum(param.size for param in params_lib.flatten_model(model).params.values())
    console.print(f"{name} (family {family}): {count:,} parameters without the classifier")
    console.print("\nstages for model.out_stage, with stride in pixels and channels:")
    for stage, info in model.feature_info().items():
        console.print(f"  {stage:<8} {info.stride:>3} {info.channels:>6}")
    console.print("\nfields that model.options can set:")
    for field in dataclasses.fields(variant):
        value = repr(getattr(variant, field.name))
        console.print(f"  {field.name:<14} {value if len(value) < 90 else value[:87] + '...'}")


if __name__ == "__main__":
    sys.exit(main())
