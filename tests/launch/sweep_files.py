"""Sweep files for tests: a tiny base, and a sweep over it."""

from pathlib import Path
from typing import Any

import yaml
from tiny_runs import config_of


def write_sweep(
    folder: Path, data: Path | str = "data", *, run: dict[str, Any] | None = None, **keys: Any
) -> Path:
    """Write `base.yaml` (the tiny run, with dotted changes) and `sweep.yaml` into `folder`; returns the latter."""
    values_of_run = config_of(data, folder / "runs", **(run or {}))
    del values_of_run["run"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(values_of_run))
    values = {"base": "base.yaml", "name": "tiny", "directory": str(folder / "runs"), **keys}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file
