"""YAML files and dotted overrides read into a configuration, and what two configurations differ in."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from distbranch.config.network import Section
from distbranch.config.packaged import find_config, list_packaged
from distbranch.config.paths import expand_places
from distbranch.config.sections import KEYS_FREE_TO_CHANGE, Config
from distbranch.config.unread import keys_without_effect
from distbranch.errors import UsageError, UserError, reason_of
from distbranch.permissions import make_denied_error
from distbranch.plugins import locate_plugins

# By these a sweep file is told from the config of a run; both may name a `base`.
KEYS_OF_SWEEPS = frozenset(
    ("overrides", "variants", "grid", "search", "space", "num_trials", "seeds")
)

EXPONENT = re.compile(
    r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"
)  # YAML 1.1 takes 2e-3 and 1e4 for text: no point, or no sign

MORE_PLUGINS = "plugins+"  # an override that adds to `plugins`: what `distbranch --plugin` gives

MERGE = "tag:yaml.org,2002:merge"  # of `<<`
# How pydantic names the member of a union that did not fit, which is no part of the key.
MEMBERS_OF_UNIONS = re.compile(r"int|str|(constrained|dict|literal|tuple)\W.*")
PLAIN_WORDS = {
    "missing": "is missing",
    "model_type": "should hold `key: value` lines",
    "tuple_type": "should be a list such as [0, 1, 2]",
}
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


class _Loader(yaml.SafeLoader):
    """Reads numbers with exponents as numbers, as text where they are in quotes; refuses a key that stands twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Here, and not where values are made of the nodes: there `<<` has brought in keys that may be said again."""
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if first.setdefault((key.tag, str(key.value)), key) is not key and key.tag != MERGE:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
        return node


class _Dumper(yaml.SafeDumper):
    """Puts texts that look so into quotes."""


for _language in (_Loader, _Dumper):
    _language.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("+-0123456789"))


def load_config(
    source: "Config | Mapping[str, Any] | Path | str",
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Config:
    """Read a configuration from a YAML file (over those of its `base`), a mapping or a Config, and apply dotted overrides to it.

    Args:
        source: a YAML file, a nested mapping, or a Config.
        overrides: `{"method.alpha": 2}` or `["method.alpha=2"]`; values of the latter are read as YAML.

    Raises:
        UsageError: an absent or unreadable file, an unknown key (with the nearest ones), a value out of range.
    """
    if isinstance(source, Config):
        values: dict[str, Any] = source.model_dump()
    elif isinstance(source, Mapping):
        values = dict(source)
    else:
        values = read_run_values(Path(source))
    # One after the other: a later override of the same key wins, as on any command line.
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides)
    for key, value in pairs:
        if key == MORE_PLUGINS:
            key, value = "plugins", [*_as_list(values.get("plugins")), *_as_list(value)]
        set_dotted(values, key, value)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise explain(error) from None


def read_run_values(file: Path) -> dict[str, Any]:
    """The values of a run's config file: its own ones over those of its `base`; the name is the file's if it says none.

    Raises:
        UsageError: a file that is absent or no config of a run, or files that name each other as `base`.
    """
    chain = read_with_bases(file)
    values: dict[str, Any] = {}
    for named_by, own in reversed(chain):
        # Sections are merged key by key; within a key (`data.pack`, `method.groups`) the file's own value replaces the base's.
        for key, part in own.items():
            inherited = values.get(key)
            if key == "plugins":
                part = locate_named_plugins(part, named_by.absolute().parent)
            if isinstance(part, dict) and isinstance(inherited, dict):
                part = {**inherited, **part}
            values[key] = part
    # What is no mapping stays as it is: the check of all keys tells it.
    run = values.get("run") or {}
    if isinstance(run, dict):
        # A base's name is not inherited, for two files are two runs.
        own_run = chain[0][1].get("run") or {}
        values["run"] = {**run, "name": own_run.get("name") or file.stem}
    return values


def read_with_bases(file: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A run's config file, its `base`, that one's base and so on, each with the values that stand in it (without `base`).

    Raises:
        UsageError: as for `read_run_values`.
    """
    chain: list[tuple[Path, dict[str, Any]]] = []
    file = find_config(file)
    while True:
        values = read_yaml(file)
        if found := sorted(KEYS_OF_SWEEPS & values.keys()):
            raise UsageError(
                f"{file} is the file of a sweep, for it has {', '.join(found)}: use `distbranch sweep {file}`, or give the config "
                "of a run."
            )
        base = values.pop("base", None)
        chain.append((file, values))
        if base is None:
            return chain
        if not isinstance(base, str):
            raise UsageError(
                f"{file}: `base` should be the config file of a run, relative to this file, found {base!r}."
            )
        file = resolve_base(base, file.absolute().parent)
        if file in [one.resolve() for one, _ in chain]:
            raise UsageError(
                f"{file} is reached again by its own `base`, or that of its base. Remove one of the `base` lines."
            )


def locate_named_plugins(value: Any, folder: Path) -> Any:
    """What `plugins` of a config file names, with absolute paths: relative ones are in the folder of that file, or this one.

    Raises:
        UserError: a variable that is not set, or a damaged copy beside a run's config.yaml.
    """
    try:
        return locate_plugins(expand_places(value), folder)
    except UserError as error:
        raise type(error)(f"plugins: {str(error).removesuffix('.')}.") from None


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def resolve_base(file: str, folder: Path) -> Path:
    """The config file that a `base` names, relative to the folder of the file that names it."""
    try:
        named = Path(expand_places(file))
    except UsageError as error:
        raise UsageError(f"base: {error}.") from None
    beside = folder.joinpath(named)
    if not beside.is_file():
        beside = folder.joinpath(find_config(named))
    return beside.resolve()


def differences(old: Config, new: Config) -> list[str]:
    """What makes `new` another run than `old`, one line per key.

    Keys that a continued run may change are left out, and those that neither of the two reads.
    """
    unread = keys_without_effect(old) & keys_without_effect(new)
    before = flatten_config(old)
    found = []
    for key, value in flatten_config(new).items():
        if value != before[key] and key not in unread and not key.startswith(KEYS_FREE_TO_CHANGE):
            found.append(f"{key}: {before[key]!r} -> {value!r}")
    return sorted(found)


def to_yaml(config: Config) -> str:
    """The resolved, complete configuration as YAML."""
    return as_yaml(config.model_dump(mode="json"))


def as_yaml(values: Mapping[str, Any]) -> str:
    """The mapping as YAML, from which `read_yaml` reads the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def describe_keys() -> Iterator[tuple[str, str, str, str]]:
    """Every key with its default, its range and its help text, in the order of the file."""
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            for key, inner in section.model_fields.items():
                yield _describe_key(f"{name}.{key}", inner)
        else:
            yield _describe_key(name, field)


def _describe_key(key: str, field: FieldInfo) -> tuple[str, str, str, str]:
    default = field.default
    if isinstance(default, tuple):  # as YAML has it
        default = list(default)
    meaning = " ".join((field.description or "").split())
    return key, "" if default is None else str(default), _describe_range(field), meaning


@cache
def known_keys() -> tuple[frozenset[str], frozenset[str]]:
    """The dotted keys of a run, and the names of its sections."""
    keys = frozenset(key for key, *_ in describe_keys())
    return keys, frozenset(key.partition(".")[0] for key in keys if "." in key)


def _describe_range(field: FieldInfo) -> str:
    if isinstance(field.json_schema_extra, dict):  # where the types cannot say it
        return str(field.json_schema_extra["range"])
    # From the text of the types, for pydantic nests them differently in every union.
    text = f"{field.annotation} {field.metadata}"
    found = [
        choices.replace("'", "").replace(", ", " | ")
        for choices in re.findall(r"Literal\[([^\]]*)\]", text)
    ]
    bounds = [
        f"{SIGNS[kind]} {value}" for kind, value in re.findall(r"(ge|gt|le|lt)=(-?[\d.]+)", text)
    ]
    if bounds:
        found.append(", ".join(dict.fromkeys(bounds)))
    return " | ".join(found)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        UsageError: it is absent, unreadable, no YAML, or no mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = sorted(map(str, path.parent.glob("*.yaml")))
        near += difflib.get_close_matches(path.stem, list_packaged())
        hint = f" There are: {', '.join(near or list_packaged())}."
        if "=" in path.name:
            hint = " Give a config file before the keys that it is to be read with."
        raise UsageError(f"The config file {path} does not exist.{hint}") from None
    except PermissionError as error:
        raise make_denied_error(error) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"The config file {path} cannot be read as YAML ({reason_of(error)})."
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(
            f"The config file {path} should hold `key: value` lines, found a {type(values).__name__}."
        )
    return values


def parse_override(text: str) -> tuple[str, Any]:
    """The key and the value, read as YAML, of `key=value`."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UsageError(
            f"An override is written key=value (such as method.alpha=2), found '{text}'."
        )
    try:
        return key, yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise UsageError(f"The value of {key} is not valid YAML: '{value}'.") from None


def set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in nested mappings; those on the way are copied, for they may belong to somebody else."""
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        values = inner
    values[last] = value


def describe_unknown_key(
    key: str, known: Set[str], see: str = "`distbranch train --help-config` lists all keys."
) -> str:
    """One sentence about a key that is not among the known ones, with the nearest of them."""
    near = _find_near_keys(key, known)
    hint = f"Did you mean {' or '.join(near)}?" if near else see
    return f"The key '{key}' is unknown. {hint}"


def _find_near_keys(key: str, known: Set[str]) -> list[str]:
    # Spelled alike, and also the same key under another section: nobody remembers all sections.
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    last = "." + key.rpartition(".")[2]
    near += [other for other in sorted(known) if f".{other}".endswith(last) and other not in near]
    return near[:4]


def explain(error: ValidationError, what: str = "The configuration") -> UsageError:
    """All that pydantic found, of a file or a configuration."""
    keys, sections = known_keys()
    sentences = []
    for problem in error.errors():
        parts = map(str, problem["loc"])
        key = ".".join(part for part in parts if not MEMBERS_OF_UNIONS.fullmatch(part))
        kind = problem["type"]
        said = PLAIN_WORDS.get(kind, problem["msg"])
        if kind == "extra_forbidden":
            near = _find_near_keys(key, keys if "." in key else keys | sections)
            said = f"this key is unknown, did you mean {' or '.join(near)}"
            if not near:
                said = "this key is unknown, `distbranch train --help-config` lists all"
        elif kind != "value_error":  # our own errors say what was found
            said += f", found {problem['input']!r}"
        sentences.append(f"{key}: {said}".removeprefix(": ").replace("Value error, ", ""))

    # Both members of a union may complain in the same words.
    return UsageError(what, problems=[f"{sentence}." for sentence in dict.fromkeys(sentences)])


def flatten_config(config: Config) -> dict[str, Any]:
    """The dotted keys and their values; a mapping within a section (`data.pack`, `method.groups`) is one value."""
    values = config.model_dump(mode="json")
    flat = {}
    for key in known_keys()[0]:
        section, _, name = key.partition(".")
        flat[key] = values[section][name] if name else values[section]
    return flat
