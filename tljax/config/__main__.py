"""`python -m tljax.config`: every field with its type, unit, default and meaning."""

from tljax.config import describe

print(describe())
