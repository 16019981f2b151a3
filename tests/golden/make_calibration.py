"""Store the expected calibration error of random predictions by torchmetrics, as golden values.

Writes calibration.json: for seeds 0, 1, 2 the error over 15 bins of 200 predictions of 4 classes, where
numpy.random.default_rng(seed) draws first the probabilities, dirichlet([0.5] * 4), then the labels.

Run with:
    pip install torch torchmetrics numpy
    python tests/golden/make_calibration.py
"""

import json
from pathlib import Path

import numpy as np
import torch
import torchmetrics


def error(seed):
    rng = np.random.default_rng(seed)
    probabilities, labels = rng.dirichlet([0.5] * 4, 200), rng.integers(0, 4, 200)
    metric = torchmetrics.classification.MulticlassCalibrationError(num_classes=4, n_bins=15, norm="l1")
    return metric(torch.from_numpy(probabilities), torch.from_numpy(labels)).item()


def main():
    made_with = {"torchmetrics": torchmetrics.__version__, "torch": torch.__version__, "numpy": np.__version__}
    content = {"made_with": made_with, "ece": [error(seed) for seed in range(3)]}
    (Path(__file__).parent / "calibration.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
