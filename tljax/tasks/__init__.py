"""Tasks: what a network is for, and what it is judged by. The head says which."""

from tljax.tasks.classification import CLASSIFICATION
from tljax.tasks.detection import DETECTION
from tljax.tasks.segmentation import SEGMENTATION
from tljax.tasks.task import Task

__all__ = ["TASKS", "Task"]

# By the name of the head.
TASKS = {"classifier": CLASSIFICATION, "unet": SEGMENTATION, "fcn": SEGMENTATION, "detector": DETECTION}
