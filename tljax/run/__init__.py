"""Runs: prepared, trained, judged and reported; sweeps of runs; and the command line."""
