"""Work directories: each holds one run, is locked by one process, and has only completely written files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tljax import config as schema
from tljax.config import Config
from tljax.config.validate import OUTPUT_ONLY
from tljax.errors import UserError
from tljax.storage.run_files import read_config, read_json


def result_fields(tree: Mapping) -> dict:
    """Return the fields of a config that determine the result; those of output and cache do not.

    Args:
      tree: the config as nested dicts.
    """
    fields = {name: value for name, value in tree.items() if name not in OUTPUT_ONLY}
    if "data" in tree:  # images are the same in memory and on disk
        fields["data"] = {name: value for name, value in tree["data"].items() if name != "max_memory_gb"}
    return fields | ({"cache": {"num_views": tree["cache"]["num_views"]}} if "cache" in tree else {})


def config_hash(config: Config) -> str:
    """Return the SHA-256 of the fields that determine the result."""
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
    """The folder of one run, or of a sweep.

    Args:
      path: of the folder, which need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    @contextlib.contextmanager
    def create(cls, config: Config, inputs: dict) -> Iterator[WorkDir]:
        """Create the folder of a run, or open it again to resume, and lock it against other processes.

        Args:
          config: of the run, with its `workdir`.
          inputs: what the run depends on besides its config, as JSON.

        Raises:
          UserError: the folder holds a run of another config, other data or other weights, or another process is
            running in it.
        """
        workdir = cls(config.folder)
        workdir.path.mkdir(parents=True, exist_ok=True)
        with (workdir.path / ".lock").open("w") as lock:
            try:
                # The kernel releases the lock when the process ends, even if it is killed.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"Another process is running in {workdir.path}.") from error
            workdir.check(config, inputs)
            if workdir.read("result.json") is None:
                workdir.write("config.json", schema.to_dict(config))
                workdir.write("inputs.json", inputs)
            yield workdir

    def check(self, config: Config, inputs: dict) -> None:
        """Raise UserError if the folder holds a run of another config, other data or other weights."""
        recorded = self.read("inputs.json")
        differences = diff_configs(recorded, json.loads(json.dumps(inputs))) if recorded is not None else []
        if (self.path / "config.json").is_file():
            old, new = schema.to_dict(self.read_config()), schema.to_dict(config)
            differences = diff_configs(result_fields(old), result_fields(new)) + differences
        if differences:
            raise UserError(
                f"{self.path} holds another run; it differs in {'; '.join(differences)}. Choose another --workdir."
            )

    def read(self, name: str) -> dict | None:
        """Return the content of a JSON file of the folder, or None if there is none."""
        path = self.path / name
        return read_json(path) if path.is_file() else None

    def read_result(self) -> dict | None:
        """Return the content of result.json, or None; `cells` of a sweep by an older version are read as `trials`."""
        result = self.read("result.json")
        if result is None or "cells" not in result:
            return result
        trials = result.pop("cells")
        if (self.path / "trials").is_dir():  # renamed since
            trials = [trial | {"workdir": f"trials/{Path(trial['workdir']).name}"} for trial in trials]
        return result | {"trials": trials}

    def rename_old_trials(self) -> None:
        """Rename the folder of a sweep's trials, `cells` in older versions, to `trials`."""
        if (self.path / "cells").is_dir() and not (self.path / "trials").exists():
            (self.path / "cells").rename(self.path / "trials")

    def read_config(self) -> Config:
        """Return the config that the folder was created with."""
        return read_config(self.path / "config.json")

    def write(self, name: str, value: dict) -> None:
        """Write a JSON file atomically."""
        partial = self.path / f"{name}.part"
        partial.write_text(json.dumps(value, indent=2) + "\n")
        partial.replace(self.path / name)

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write an .npz file atomically."""
        partial = self.path / f"{name}.part"
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(self.path / name)
