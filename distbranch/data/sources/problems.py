"""What is not in order in a table, gathered so that one message tells all of it."""

from dataclasses import dataclass, field
from pathlib import Path

from distbranch.errors import UserError

NUM_TOLD = 3  # of one kind; the rest is counted


@dataclass
class Problems:
    """The problems found so far, by what is to be done about them."""

    table: Path
    _facts: dict[str, list[str]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, fact: str, advice: str) -> None:
        """Note a fact ("line 3: ...", "column 'a': ...") and, as one or two sentences, what to do about all of its kind."""
        facts = self._facts.setdefault(advice, [])
        self._counts[advice] = self._counts.get(advice, 0) + 1
        if len(facts) < NUM_TOLD:
            facts.append(fact)

    def raise_all(self) -> None:
        """Raises UserError with every problem, if there is any."""
        told = [self._told(advice) for advice in self._facts]
        if len(told) == 1:
            joint = ", " if told[0].startswith(("line ", "column ")) else ": "
            raise UserError(f"{self.table}{joint}{told[0]}")
        if told:
            numbered = " ".join(f"({number}) {text}" for number, text in enumerate(told, start=1))
            raise UserError(f"{self.table} has {sum(self._counts.values())} problems: {numbered}")

    def _told(self, advice: str) -> str:
        facts = self._facts[advice]
        more = self._counts[advice] - len(facts)
        listed = "; ".join(facts) + (f"; and {more} more" if more else "")
        end = "" if listed.endswith("?") else "."
        return f"{listed}{end} {advice}"
