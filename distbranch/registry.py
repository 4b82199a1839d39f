"""What can be chosen by name in a configuration: that of the program, and what a user's own file adds (`plugins`)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from distbranch.errors import UserError

Entry = TypeVar("Entry")

_registries: list[Registry[Any]] = []


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name; an unknown name is answered with the nearest ones.

    Args:
        what: one entry in words, for messages: "kind of affinity". A name is taken once in all registries of the same.

    Example:
        >>> AFFINITIES = Registry("kind of affinity")
        >>> @AFFINITIES.register("agreement")
        ... def compute_agreement(sums): ...
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, Entry] = {}
        _registries.append(self)

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """A decorator that adds an entry.

        Raises:
            UserError: the name is taken by another entry.
        """

        def add(entry: Entry) -> Entry:
            if name in list_registered(self.what):
                raise UserError(f"There is a {self.what} {name!r} already. Give another name.")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise UserError(self.describe_unknown(name))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def describe_unknown(self, name: str) -> str:
        """One sentence: what was found, the nearest names, and where another one would come from."""
        near = ", ".join(find_near(name, list_registered(self.what)))
        return (
            f"There is no {self.what} {name!r}. The nearest are {near}; one of your own comes from a "
            "file named in `plugins`, or in `distbranch --plugin FILE`."
        )


def find_near(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are spelled alike; all of them if none is."""
    known = list(known)
    return difflib.get_close_matches(name, known, n=3) or known


def list_registered(what: str) -> list[str]:
    """The names in the registries of `what` that this process has made so far."""
    return [name for registry in _registries if registry.what == what for name in registry]


def copy_entries() -> list[dict[str, Any]]:
    """Of all registries."""
    return [dict(registry._entries) for registry in _registries]


def restore_entries(before: Iterable[dict[str, Any]]) -> None:
    """Forget what was registered since `copy_entries`."""
    for registry, entries in zip(_registries, before, strict=False):
        registry._entries = dict(entries)
