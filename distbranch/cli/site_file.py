"""A site's own defaults for `distbranch submit`, so that none of them is typed twice: ~/.config/distbranch/site.yaml.

Its keys are the options of the commands, from whose signatures they are read, so that the two cannot differ.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from typer.models import OptionInfo

from distbranch.errors import UsageError, reason_of
from distbranch.permissions import make_denied_error
from distbranch.registry import find_near

VARIABLE = "DISTBRANCH_SITE"
# The sections, and the commands that read each.
SECTIONS = {"slurm": ("slurm", "slurm-array"), "ray": ("ray",)}
WORDS = {
    "int_parsing": "should be a whole number",
    "bool_parsing": "should be true or false",
    "list_type": "should be a text or a list of texts",
    "string_type": "should be a text",
}
ASKED_EACH_TIME = ("dry_run",)


@dataclass(frozen=True)
class SiteFile:
    """The site's defaults by section and key; `path` is None where there is no such file."""

    path: Path | None
    sections: Mapping[str, Mapping[str, Any]]


def find_site_file() -> Path | None:
    """The file that DISTBRANCH_SITE names (an empty name: none), else the user's, if there is one.

    Raises:
        UsageError: the variable names a file that is not there.
    """
    named = os.environ.get(VARIABLE)
    if named is not None:
        file = Path(named).expanduser()
        if named and not file.is_file():
            raise UsageError(
                f"{VARIABLE} names {named}, which should be a YAML file and is none. Correct it, or unset it."
            )
        return file if named else None
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    file = Path(home, "distbranch", "site.yaml")
    return file if file.is_file() else None


def read_site_file() -> SiteFile:
    """The site's defaults, checked.

    Raises:
        UsageError: a file that is no YAML, or keys and values that are no options; all of them at once.
    """
    file = find_site_file()
    if file is None:
        return SiteFile(None, {})
    try:
        # All as text, for YAML takes a time of 12:00:00 for a number; pydantic makes numbers of those that should be.
        values = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader) or {}
    except PermissionError as error:
        raise make_denied_error(error) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"The site file {file} cannot be read as YAML ({reason_of(error)})."
        ) from None
    if not isinstance(values, dict):
        raise UsageError(
            f"The site file {file} should hold the sections {' and '.join(SECTIONS)}, found a {type(values).__name__}."
        )
    problems = [
        f"{name}: there is no such section, only {' and '.join(SECTIONS)}"
        for name in values.keys() - SECTIONS.keys()
    ]
    sections = {}
    for name in SECTIONS:
        given = values.get(name) or {}
        if not isinstance(given, dict):
            problems.append(
                f"{name}: it should hold `option: value` lines, found {str(given)[:40]!r}"
            )
            continue
        # A key without a value gives nothing.
        given = {key.replace("-", "_"): value for key, value in given.items() if value != ""}
        try:
            model = _make_model(name).model_validate(given)
            sections[name] = model.model_dump(exclude_unset=True)
        except ValidationError as error:
            problems += _explain(name, error)
    if problems:
        told = [f"{problem}." for problem in problems]
        raise UsageError(f"The site file {file}", problems=told)
    return SiteFile(file, sections)


def describe_site_file() -> tuple[str, str]:
    """What was found, and what to do about it if something is wrong with it."""
    try:
        site = read_site_file()
    except UsageError as error:
        return "not valid", str(error)
    if site.path is None:
        return (
            "none (~/.config/distbranch/site.yaml would hold defaults of `distbranch submit`)",
            "",
        )
    keys = [
        f"{section}: {', '.join(values)}" for section, values in site.sections.items() if values
    ]
    return f"{site.path} ({'; '.join(keys) or 'empty'})", ""


def _explain(section: str, error: ValidationError) -> Iterator[str]:
    known = _make_model(section).model_fields
    for problem in error.errors():
        key = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            near = ", ".join(find_near(key, known))
            yield f"{section}.{key}: unknown, the nearest are {near}"
        else:
            said = WORDS.get(problem["type"], problem["msg"])
            yield f"{section}.{key}: {said[:1].lower()}{said[1:]}, found {problem['input']!r}"


def _make_model(section: str) -> type[BaseModel]:
    """A pydantic model of the options of a section's commands."""
    fields: dict[str, Any] = {}
    for command in SECTIONS[section]:
        fields |= {key: (kind, None) for key, (_, kind) in list_options(command).items()}
    return create_model(section, __config__=ConfigDict(extra="forbid"), **fields)


def list_options(command: str) -> dict[str, tuple[str, Any]]:
    """The options of a command that a site may give: as they are typed, with `_` for `-`; each with its parameter and type."""
    found = {}
    for parameter, annotated in get_type_hints(
        _find_function(command), include_extras=True
    ).items():
        kind, *about = get_args(annotated) or (annotated,)
        options = [one for one in about if isinstance(one, OptionInfo)]
        if not options or parameter in ASKED_EACH_TIME:
            continue
        [option] = options
        # Within Annotated the first word of an option stands where its default would.
        words = [
            word for word in (option.default, *(option.param_decls or ())) if isinstance(word, str)
        ]
        typed = [word for word in words if word.startswith("--")]
        key = [*typed, parameter][0].partition("/")[0].lstrip("-").replace("-", "_")
        if "list[" in str(kind):
            kind = Annotated[kind, BeforeValidator(_make_list)]
        found[key] = (parameter, Annotated[kind, Field(ge=option.min, le=option.max)])
    return found


def _make_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _find_function(command: str) -> Callable[..., Any]:
    from distbranch.cli.submit import submit_app

    functions = {one.name: one.callback for one in submit_app.registered_commands}
    function = functions[command]
    assert function is not None
    return function
