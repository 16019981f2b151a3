"""A run's folder: one config, one owner at a time, and files that appear whole."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

from tljax import config as schema
from tljax.config import Config
from tljax.errors import UserError


class WorkDir:
    """The folder of one run; as a context manager it is locked against other processes."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = None

    def check(self, config: Config, inputs: dict) -> None:
        """Refuses a folder that holds another run: another config, other data, or other weights."""
        for name, mine in (("config.json", schema.to_dict(config)), ("inputs.json", inputs)):
            theirs = self.read(name)
            if theirs is not None and name == "config.json":
                theirs = schema.to_dict(schema.parse(theirs))  # fields that are newer than the run have their defaults
            if theirs is not None and (differ := schema.differences(schema.decisive(theirs), schema.decisive(mine))):
                raise UserError(
                    f"{self.path} holds another run; it differs in {'; '.join(differ)}. Take another --workdir."
                )

    def claim(self, config: Config, inputs: dict) -> None:
        """Makes the folder and writes what the run is made of."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write("config.json", schema.to_dict(config))
        self.write("inputs.json", inputs)

    def __enter__(self):
        self._lock = (self.path / ".lock").open("w")
        try:
            # The kernel drops the lock with the process, however it ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"Another process is running in {self.path}.") from error
        return self

    def __exit__(self, *_):
        self._lock.close()

    def read(self, name: str) -> dict | None:
        """A JSON file of the folder, or None."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged: {error}.") from error

    def write(self, name: str, value: dict) -> None:
        """Writes a JSON file that is there whole or not at all."""
        partial = self.path / f"{name}.part"
        partial.write_text(json.dumps(value, indent=2) + "\n")
        partial.replace(self.path / name)
