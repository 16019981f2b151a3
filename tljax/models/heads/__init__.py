"""What stands on a backbone: takes every stage's map, returns what its task needs."""

from tljax.models.heads.classifier import Classifier

__all__ = ["HEADS", "Classifier"]

HEADS = {"classifier": Classifier}
