"""`python -m tljax.config`: every field with its type, unit, default and meaning."""

from tljax.config import schema_table

print(schema_table())
