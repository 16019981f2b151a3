"""Store results of PyTorch's antialiased image resizing, as golden values.

Writes resize.npz next to this file, all float32 and (H, W, 1):
    input                              9x7, integers in 0..255 from default_rng(5)
    {bilinear,bicubic}_{16x16,4x5}     the input resized to that height x width

Run with:
    pip install torch numpy
    python tests/golden/make_resize.py
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

HERE = Path(__file__).resolve().parent


def resize(image, size, mode):
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    y = interpolate(x, size, mode=mode, align_corners=False, antialias=True)
    return y[0].permute(1, 2, 0).contiguous().numpy()


def main():
    image = np.random.default_rng(5).integers(0, 256, (9, 7, 1)).astype(np.float32)
    arrays = {"input": image}
    for mode in ("bilinear", "bicubic"):
        for height, width in ((16, 16), (4, 5)):
            arrays[f"{mode}_{height}x{width}"] = resize(image, (height, width), mode)
    np.savez_compressed(HERE / "resize.npz", **arrays)


if __name__ == "__main__":
    main()
