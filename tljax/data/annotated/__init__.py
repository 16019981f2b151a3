"""Readers of pictures with masks or boxes; each has `source(config, task, on_bad_file)`, which makes a Source."""
