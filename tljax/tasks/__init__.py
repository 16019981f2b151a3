"""Tasks: the loss, the metrics and the pictures that go with a head."""
