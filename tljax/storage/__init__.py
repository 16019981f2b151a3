"""Files that outlive a run: checkpoints and caches."""
