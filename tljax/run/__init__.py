"""Commands on a config or a work directory: train, plan, evaluate, predict, features, probe and sweep."""
