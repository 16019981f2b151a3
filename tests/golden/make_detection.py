"""Write detection.npz: the boxes that torchvision's FCOS assigns to locations of two levels, and its losses in float64.

Needs torch and torchvision.
"""

import sys
import types
from pathlib import Path

import numpy as np

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

SIDE, STRIDES, CLASSES = 96, (8, 16), 3


def swapped(boxes):
    """Convert between [y0, x0, y1, x1] and [x0, y0, x1, y1]."""
    return boxes[..., [1, 0, 3, 2]]


def main() -> None:
    import torch
    from torchvision.models.detection.fcos import FCOS, FCOSHead

    rng = np.random.default_rng(0)
    grids = [(np.arange(SIDE // s) + 0.5) * s for s in STRIDES]
    places = np.concatenate(
        [
            np.stack([*np.meshgrid(g, g, indexing="ij"), np.full((len(g),) * 2, s)], -1).reshape(-1, 3)
            for g, s in zip(grids, STRIDES, strict=True)
        ]
    )
    label = rng.integers(0, CLASSES, (3, 6))
    label[0, 4:], label[1] = -1, -1  # the second image is empty
    corners = rng.uniform(0, 70, (3, 6, 2))
    # From smaller than a cell to nearly the whole image.
    boxes = np.concatenate([corners, np.minimum(corners + np.exp(rng.uniform(1, 4.4, (3, 6, 2))), SIDE)], -1)
    shape = 3, len(places)
    given = {
        "logits": rng.normal(-2, 2, (*shape, CLASSES)),
        "distances": np.exp(rng.normal(0.5, 1, (*shape, 4))),  # in strides: up, left, down, right
        "centre": rng.normal(0, 2, shape),
    }

    head, matched = FCOSHead(32, 1, CLASSES, 1), []

    def compute_loss(targets, outputs, anchors, found):
        matched.extend(x.numpy() for x in found)
        return head.compute_loss(targets, outputs, anchors, found)

    anchor = np.concatenate([places[:, [1, 0]] - places[:, 2:] / 2, places[:, [1, 0]] + places[:, 2:] / 2], -1)
    real = [row >= 0 for row in label]
    targets = [
        {"labels": torch.from_numpy(kind[r]), "boxes": torch.from_numpy(swapped(box[r]))}
        for kind, box, r in zip(label, boxes, real, strict=True)
    ]
    tensors = {name: torch.from_numpy(x).requires_grad_() for name, x in given.items()}
    losses = FCOS.compute_loss(
        types.SimpleNamespace(center_sampling_radius=1.5, head=types.SimpleNamespace(compute_loss=compute_loss)),
        targets,
        {
            "cls_logits": tensors["logits"],
            "bbox_regression": swapped(tensors["distances"]),
            "bbox_ctrness": tensors["centre"][..., None],
        },
        [torch.from_numpy(anchor)] * 3,
        [len(g) ** 2 for g in grids],
    )
    sum(losses.values()).backward()
    np.savez_compressed(
        Path(__file__).with_name("detection.npz"),
        places=places,
        label=label,
        boxes=boxes,
        **given,
        matched=np.stack(matched),
        losses=[losses[name].item() for name in ("classification", "bbox_regression", "bbox_ctrness")],
        **{f"{name}_gradient": x.grad.numpy() for name, x in tensors.items()},
    )


if __name__ == "__main__":
    main()
