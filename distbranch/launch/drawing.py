"""Pictures of decisions for TensorBoard and trackers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def log_decision(writer: Any, decision: Mapping[str, Any], run_directory: Path | str) -> None:
    """`report.tensorboard.log_decision`, loaded when the first decision is drawn: most ranks draw none, and need no matplotlib."""
    from distbranch.report import tensorboard

    tensorboard.log_decision(writer, decision, run_directory)
