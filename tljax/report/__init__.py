"""Figures, tables and the Markdown report of a run; takes plain dicts and arrays only."""
