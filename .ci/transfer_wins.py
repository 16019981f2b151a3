"""Exits with an error unless LP-FT beats training from scratch in a quickstart's result.json, on the test split."""

import json
import sys
from pathlib import Path

rows = json.loads(Path(sys.argv[1]).read_text())["rows"]
test = {row["settings"]["strategy.name"]: row["test"][0] for row in rows}
print({name: round(accuracy, 4) for name, accuracy in test.items()})
if test["lp_ft"] <= test["scratch"]:
    sys.exit("transfer did not win")
