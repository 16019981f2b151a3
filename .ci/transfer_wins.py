"""Exits with an error unless stage 5's features beat training from scratch in every seed of a quickstart."""

import json
import sys
from pathlib import Path

trials = json.loads(Path(sys.argv[1]).read_text())["trials"]
test = {(trial["settings"]["method"], trial["settings"]["seed"]): trial["test"] for trial in trials}
seeds = sorted({seed for _, seed in test})
for seed in seeds:
    scratch, transfer = test["ResNet-8 from scratch", seed], test["stage 5 features", seed]
    print(f"seed {seed}: scratch {scratch:.4f}, stage 5 features {transfer:.4f}")
    if transfer <= scratch:
        sys.exit("transfer did not win")
