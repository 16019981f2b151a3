"""A run's folder: one config, one owner at a time, and files that appear whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tljax import config as schema
from tljax.config import Config
from tljax.config.validate import OUTPUT_ONLY
from tljax.errors import UserError
from tljax.storage.run_files import read_config, read_json


def result_fields(tree: Mapping) -> dict:
    """Return those fields of a config's tree that decide the result: not where and how it is written and cached."""
    fields = {name: value for name, value in tree.items() if name not in OUTPUT_ONLY}
    return fields | ({"cache": {"num_views": tree["cache"]["num_views"]}} if "cache" in tree else {})


def config_hash(config: Config) -> str:
    """Return the SHA-256 of the fields that decide the result."""
    return hashlib.sha256(json.dumps(result_fields(schema.to_dict(config)), sort_keys=True).encode()).hexdigest()


def diff_configs(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """Return the dotted fields in which two config trees differ, as `optim.lr: 0.1 → 0.2`."""
    differences = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differences += diff_configs(a, b, f"{prefix}{key}.")
        elif a != b:
            differences.append(f"{prefix}{key}: {a!r} → {b!r}")
    return differences


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
        differences = []
        if (self.path / "config.json").is_file():
            old, new = schema.to_dict(self.read_config()), schema.to_dict(config)
            differences += diff_configs(result_fields(old), result_fields(new))
        if (recorded := self.read("inputs.json")) is not None:
            differences += diff_configs(recorded, json.loads(json.dumps(inputs)))
        if differences:
            raise UserError(
                f"{self.path} holds another run; it differs in {'; '.join(differences)}. Take another --workdir."
            )

    def read(self, name: str) -> dict | None:
        """A JSON file of the folder, or None."""
        path = self.path / name
        if not path.is_file():
            return None
        return read_json(path)

    def read_config(self) -> Config:
        """Return the config that the folder was made with."""
        return read_config(self.path / "config.json")

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
