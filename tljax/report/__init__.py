"""Figures, tables and the Markdown report of a run, drawn from plain dicts and arrays, and the metric loggers."""
