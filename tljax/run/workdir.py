"""A run's folder: one config, one owner at a time, and files that appear whole."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tljax import config as schema
from tljax.config import Config
from tljax.errors import UserError


class WorkDir:
    """The folder of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    @contextlib.contextmanager
    def create(cls, config: Config, inputs: dict) -> Iterator[WorkDir]:
        """Makes the folder of a run, or takes it again, and locks it against other processes.

        Args:
          config: of the run, with its `workdir`.
          inputs: what the run is made of besides its config, as JSON.

        Raises:
          UserError: it holds another run, of another config, other data or other weights; or another process runs in
            it.
        """
        workdir = cls(config.workdir)
        workdir.path.mkdir(parents=True, exist_ok=True)
        with (workdir.path / ".lock").open("w") as lock:
            try:
                # The kernel drops the lock with the process, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"Another process is running in {workdir.path}.") from error
            workdir.check(config, inputs)
            if workdir.read("result.json") is None:
                workdir.write("config.json", schema.to_dict(config))
                workdir.write("inputs.json", inputs)
            yield workdir

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

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes an .npz file that is there whole or not at all."""
        partial = self.path / f"{name}.part"
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(self.path / name)
