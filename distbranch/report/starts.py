"""What a run was made of, for its page: a row per start, and the commands that train it again from the same code."""

import shlex
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pandas
from markupsafe import Markup

from distbranch.engine.provenance import DIGITS, list_starts, shorten_commit
from distbranch.engine.run_directory import RunDirectory
from distbranch.report.run_files import RunFiles

# A word per key of environment.json whose value the rows show in short.
HASHES = {"uncommitted_sha256": "changes", "packages_sha256": "packages", "data": "data"}
CODE = Markup("<code>{}</code>")


def tabulate_starts(environment: Mapping[str, Any]) -> pandas.DataFrame:
    """Of every start when, after which step and where; its commit, the first digits of what else it was made of, its command."""
    rows = []
    for start in list_starts(environment):
        row: dict[str, Any] = {
            "started (UTC)": format_time(start.get("at")),
            "after step": f"{start['iteration']:,}" if "iteration" in start else "",
            "host": start.get("host", ""),
            "ranks": start.get("world_size", ""),
            "commit": shorten_commit(start.get("commit")),
        }
        row |= {head: (start.get(key) or "none")[:DIGITS] for key, head in HASHES.items()}
        row["command"] = CODE.format(start.get("command", ""))
        rows.append(row)
    # as objects: a column of texts would make plain ones of Markup
    return pandas.DataFrame(rows, dtype=object)


def select_last_start(environment: Mapping[str, Any]) -> dict[str, Any]:
    """All that is on record of the last start: the others have the table."""
    return {key: value for key, value in environment.items() if key != "starts"}


def format_time(at: str | None) -> str:
    """An ISO time to the minute."""
    return datetime.fromisoformat(at).strftime("%Y-%m-%d %H:%M") if at else ""


def list_repeat_commands(run: RunFiles) -> list[str]:
    """What trains the run again: the code of its last start (in a checkout of it), its packages, its configuration."""
    files = RunDirectory(run.directory)
    commit = run.environment.get("commit")
    commands = []
    if commit:
        commands.append(f"git checkout {commit.rstrip('+')}")
    if files.uncommitted.exists():
        commands.append(f"git apply {_quote(files.uncommitted)}")
    if files.packages.exists():
        commands.append(f"pip install -r {_quote(files.packages)}")
    return [*commands, f"distbranch train {_quote(files.config)} --fresh"]


def _quote(path: object) -> str:
    return shlex.quote(str(path))
