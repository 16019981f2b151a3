"""Store Batch Spectral Shrinkage of its authors' library, as golden values for docs/batch_spectral_shrinkage.py.

Writes bss.npz next to this file, in float64: "{case}:features" [B, C], multiples of 1/1024, which float32 represents
exactly; "{case}:smallest", the number of penalized singular values; "{case}:value" and "{case}:gradient" of TLLib's
BatchSpectralShrinkage.

Run with TLLIB, a checkout of github.com/thuml/Transfer-Learning-Library:
    pip install torch numpy
    python tests/golden/make_bss.py TLLIB
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

# With more images than channels, and with fewer.
CASES = {"tall": (12, 5, 1), "tall-3": (12, 5, 3), "wide": (4, 9, 1), "wide-all": (4, 9, 4)}


def main():
    path = Path(sys.argv[1]) / "tllib" / "regularization" / "bss.py"
    spec = importlib.util.spec_from_file_location("bss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng, arrays = np.random.default_rng(19), {}
    for case, (batch, channels, smallest) in CASES.items():
        # Features are averages of ReLU outputs, so not negative.
        features = np.abs(np.round(rng.standard_normal((batch, channels)) * 1024) / 1024)
        leaf = torch.from_numpy(features).requires_grad_()
        value = module.BatchSpectralShrinkage(smallest)(leaf)
        value.backward()
        found = {"features": features, "smallest": smallest, "value": value.item(), "gradient": leaf.grad.numpy()}
        arrays |= {f"{case}:{name}": np.asarray(x) for name, x in found.items()}
    np.savez_compressed(Path(__file__).parent / "bss.npz", **arrays)


if __name__ == "__main__":
    main()
