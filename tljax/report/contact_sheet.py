"""Contact sheet of a data set: some images of each class, one class a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tljax.report.overlays import rgb
from tljax.report.style import WIDTH, new_figure, save_figure, shorten

LABEL_WIDTH = 1.6  # inches, for the class names at the left
GAP = 4  # pixels between images
MAX_CLASSES = 60


def draw_contact_sheet(images: Mapping[str, Sequence[np.ndarray]], columns: int, path: str | Path) -> Path:
    """Draw a PNG with a row of images for each class.

    Args:
      images: images of each class by its name, uint8 [S, S, 1 or 3], all of the same size; of more than `MAX_CLASSES`
        classes the first ones are drawn.
      columns: number of images in a row.
      path: of the PNG.

    Returns:
      `path`.
    """
    rows = list(images.items())[:MAX_CLASSES]
    side = next(len(image) for _, row in rows for image in row)
    step = side + GAP
    sheet = np.full((len(rows) * step, columns * step, 3), 255, np.uint8)
    for i, (_, row) in enumerate(rows):
        for j, image in enumerate(row[:columns]):
            sheet[i * step : i * step + side, j * step : j * step + side] = rgb(image)
    row_height = (WIDTH - LABEL_WIDTH) / columns
    figure = new_figure(len(rows) * row_height, layout="none")
    axes = figure.add_axes((LABEL_WIDTH / WIDTH, 0, 1 - LABEL_WIDTH / WIDTH, 1))
    axes.imshow(sheet, aspect="auto")
    axes.set_axis_off()
    for i, (name, _) in enumerate(rows):
        y = 1 - (i + 0.5 * side / step) / len(rows)
        figure.text((LABEL_WIDTH - 0.1) / WIDTH, y, shorten(name, 22), ha="right", va="center", fontsize=8)
    return save_figure(figure, path)
