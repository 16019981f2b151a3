"""Write boxes.npz: overlaps by torchvision and non-maximum suppression by TensorFlow of random boxes.

Needs torch, torchvision and tensorflow.
"""

import sys
import types
from pathlib import Path

import numpy as np

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")


def swapped(boxes):
    """Convert between [y0, x0, y1, x1] and [x0, y0, x1, y1]."""
    return boxes[..., [1, 0, 3, 2]]


def main() -> None:
    import tensorflow as tf
    import torch
    from torchvision import ops

    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 40, (40, 2))], -1)
    a, b = boxes[:20], boxes[20:]
    scores, classes = rng.permutation(40) / 40, rng.integers(0, 3, 40)
    ta, tb = (torch.from_numpy(swapped(x)) for x in (a, b))
    found = {
        "boxes": boxes,
        "scores": scores,
        "classes": classes,
        "iou": ops.box_iou(ta, tb).numpy(),
        "giou": ops.generalized_box_iou(ta, tb).numpy().diagonal(),
    }
    for threshold in (0.3, 0.5):
        kept = []
        for kind in range(3):
            (rows,) = np.nonzero(classes == kind)
            best = tf.image.non_max_suppression(boxes[rows].astype("f4"), scores[rows].astype("f4"), 40, threshold)
            kept.extend(rows[best.numpy()])
        found[f"nms{threshold}"] = sorted(kept, key=lambda i: -scores[i])
    np.savez_compressed(Path(__file__).with_name("boxes.npz"), **found)


if __name__ == "__main__":
    main()
