"""What can be chosen by name in a configuration: that of the program, and what a user's own file adds (`plugins`)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from distbranch.errors import UserError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name; an unknown name is answered with the nearest ones.

    Args:
        what: one entry in words, for messages: "kind of affinity".

    Example:
        >>> AFFINITIES = Registry("kind of affinity")
        >>> @AFFINITIES.register("agreement")
        ... def compute_agreement(sums): ...
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """A decorator that adds an entry.

        Raises:
            UserError: the name is taken by another entry.
        """

        def add(entry: Entry) -> Entry:
            if name in self._entries:
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
        near = difflib.get_close_matches(name, self._entries, n=3) or list(self._entries)
        return (
            f"There is no {self.what} {name!r}. The nearest are {', '.join(near)}; one of your own comes from a file "
            "named in `plugins`."
        )
