"""Several tags in one cell: how a cell is split, and how to see that a column holds lists and no names with blanks."""

from collections import Counter
from collections.abc import Collection
from functools import lru_cache

from distbranch.data.sources.words import parse_number

SEPARATORS = ("|", ";", ",", " ", "/", "+", "&")  # the surer ones first
_QUOTES = " '\""


@lru_cache(maxsize=10_000)
def split_tags(cell: str, separator: str) -> frozenset[str]:
    """The tags of a cell; brackets and quotes of a list that Python or JSON wrote are no part of them."""
    return frozenset(_parts(cell, separator))


def find_separator(values: Collection[str]) -> str | None:
    """What separates tags in these different values of a column; None where each value is one name."""
    words = [value for value in values if parse_number(value) is None]  # 1,5 is no list
    return next((separator for separator in SEPARATORS if _holds_lists(words, separator)), None)


def _parts(cell: str, separator: str) -> list[str]:
    is_list = len(cell) > 1 and cell[0] + cell[-1] in ("[]", "{}", "()")
    inner = cell[1:-1] if is_list else cell
    parts = (part.strip(_QUOTES if is_list else None) for part in inner.split(separator))
    return [part for part in parts if part]


def _holds_lists(values: Collection[str], separator: str) -> bool:
    """Tags come again in other company, both last and before others; of names the last word is another kind of word.

    So of lists either half of the words come again and a fifth stand in both places, or half of them hold a common word that
    does; names of goods, dogs and towns have hardly a word that does.
    """
    cells = [_parts(value, separator) for value in values]
    lists = [parts for parts in cells if len(parts) > 1]
    if not lists:
        return False
    counts = Counter(tag for parts in cells for tag in set(parts))
    num_again = sum(count > 1 for count in counts.values())
    if separator in "|;" and num_again:  # which names hardly hold
        return True
    if separator == "," and num_again and len(counts) <= len(cells):
        return True
    both = {parts[-1] for parts in lists} & {tag for parts in lists for tag in parts[:-1]}
    if 2 * num_again >= len(counts) and 5 * len(both) >= len(counts):
        return True
    common = {tag for tag in both if counts[tag] > 2}
    return 2 * sum(not common.isdisjoint(parts) for parts in lists) >= len(lists)
