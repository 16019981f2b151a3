"""Write pixelwise.npz: losses of PyTorch and segmentation_models_pytorch for random logits and masks, in float64.

Needs torch and segmentation-models-pytorch, whose Lovász loss is in float32.
"""

import sys
import types
from pathlib import Path

import numpy as np

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")


def main() -> None:
    import torch
    from segmentation_models_pytorch import losses

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 5, 6, 4))
    labels = rng.integers(0, 3, (2, 5, 6))  # the last class is absent
    labels[rng.random(labels.shape) < 0.2] = 255
    weights = np.array([0.5, 1.0, 2.0, 3.0])
    target = torch.from_numpy(labels)

    def focal(x):
        log_p = -torch.nn.functional.cross_entropy(x, target, ignore_index=255, reduction="none")
        return (-((1 - log_p.exp()) ** 2) * log_p)[target != 255].mean()

    reference_losses = {
        "cross_entropy": lambda x: torch.nn.functional.cross_entropy(x, target, ignore_index=255),
        "weighted": lambda x: torch.nn.functional.cross_entropy(
            x, target, torch.from_numpy(weights), ignore_index=255, label_smoothing=0.1
        ),
        "focal": focal,
        "dice": lambda x: losses.DiceLoss("multiclass", ignore_index=255)(x, target),
        "lovasz": lambda x: losses.LovaszLoss("multiclass", ignore_index=255)(x.float(), target),
    }
    arrays = {"logits": logits, "labels": labels, "weights": weights}
    for name, loss in reference_losses.items():
        x = torch.from_numpy(logits.transpose(0, 3, 1, 2).copy()).requires_grad_()
        value = loss(x)
        value.backward()
        arrays[name] = value.item()
        arrays[f"{name}_gradient"] = x.grad.numpy().transpose(0, 2, 3, 1)
    np.savez_compressed(Path(__file__).with_name("pixelwise.npz"), **arrays)


if __name__ == "__main__":
    main()
