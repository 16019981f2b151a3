"""`python -m tljax.config` prints every field with its type, unit, default and description."""

from tljax.config import schema_table

print(schema_table())
