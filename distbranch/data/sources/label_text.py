"""How people write labels: words for missing, yes and no, numbers with a point or a comma, several tags in a cell.

Texts are compared as people see them: line breaks, runs of blanks and the form of an accent make no difference.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

TRUTH = {
    "true": 1,
    "false": 0,
}  # stand among numbers as well: tables are joined from what programs write
WORDS = Path(__file__).with_name("words.yaml")

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")

SEPARATORS = ("|", ";", ",", " ", "/", "+", "&")  # the surer ones first


# A column has few different texts: the cache saves nearly all the work of a table of a million rows.
@lru_cache(maxsize=10_000)
def tidy_text(text: str) -> str:
    """The text in one Unicode form, with one blank where it has line breaks or several, and none around it."""
    return " ".join(unicodedata.normalize("NFC", text).replace("\ufeff", "").split())


def fold_text(text: str) -> str:
    """Equal for texts that differ in case, blanks or width only, or, as numbers, in how they are written."""
    number = parse_number(text)
    if number is not None:
        return repr(number)
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@cache
def read_words() -> dict[str, Any]:
    """The words for missing labels, and those for yes and no by language, as sets."""
    words = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    languages = [(frozenset(yes), frozenset(no)) for yes, no in words["yes_and_no"]]
    return {"missing": frozenset(words["missing"]), "yes_and_no": languages}


def is_missing(text: str) -> bool:
    """Whether a tidy text says that there is no value."""
    return not text or text.casefold() in read_words()["missing"]


def parse_number(text: str) -> float | None:
    """The number that a text is, with a decimal point or comma; None for anything else."""
    # 1,234 is a thousand and more; 1,5 and 0,123 have a decimal comma.
    if _THOUSANDS.fullmatch(text):
        return float(text.replace(",", ""))
    if _NUMBER.fullmatch(text):
        return float(text.replace(",", "."))
    return None


def parse_mark(text: str) -> int | None:
    """1, 0 or -1 for a number of this value, TRUE or FALSE; None for anything else."""
    number = parse_number(text)
    if number is None:
        return TRUTH.get(text.casefold())
    return int(number) if number in (1, 0, -1) else None


def label_marks(marks: Collection[int], minus_one: str | None) -> dict[int, int | None]:
    """The label of 1, 0 and -1 (None: unlabelled) where these occur: -1 means no wherever it stands, unless somebody said else.

    `minus_one`: what it means, `no` or `unknown`, if somebody said.
    """
    # Where -1 says no, 0 is what nobody looked at.
    signed = minus_one == "no" or (minus_one is None and -1 in marks)
    return {1: 1, 0: None, -1: 0} if signed else {1: 1, 0: 0, -1: None}


def find_vocabulary(texts: Iterable[str]) -> tuple[frozenset[str], frozenset[str]] | None:
    """The words for yes and no that all the texts are among; None where there are none such."""
    # A column of one language: `f` beside `m` is no false.
    words = {text.casefold() for text in texts}
    for yes, no in read_words()["yes_and_no"]:
        if words <= yes | no:
            return yes, no
    return None


@lru_cache(maxsize=10_000)
def split_tags(cell: str, separator: str) -> frozenset[str]:
    """The tags of a cell; brackets and quotes of a list that Python or JSON wrote are no part of them."""
    return frozenset(_list_tags(cell, separator))


def _list_tags(cell: str, separator: str) -> list[str]:
    """The tags in their order."""
    quotes = None
    ends = cell[:1] + cell[1:][-1:]
    if ends in ("[]", "{}", "()"):  # as str() of a list, a set or a tuple, or JSON
        cell = cell[1:-1]
        quotes = " '\""
    tags = [part.strip(quotes) for part in cell.split(separator)]
    return [tag for tag in tags if tag]


def find_separator(values: Collection[str]) -> str | None:
    """What separates tags in these different values of a column; None where each value is one name."""
    words = [value for value in values if parse_number(value) is None]  # 1,5 is no list
    for separator in SEPARATORS:
        if _holds_lists(words, separator):
            return separator
    return None


def _holds_lists(values: Collection[str], separator: str) -> bool:
    """Tags come again in other company, both last and before others; of names the last word is another kind of word.

    So of lists either half of the words come again and a fifth stand in both places, or half of them hold a common word that
    does; names of goods, dogs and towns have hardly a word that does.
    """
    cells = [_list_tags(value, separator) for value in values]
    lists = [tags for tags in cells if len(tags) > 1]
    if not lists:
        return False
    counts = Counter(tag for tags in cells for tag in set(tags))
    # Different values, not rows: a name that many images have counts once.
    num_again = sum(count > 1 for count in counts.values())
    if separator in "|;" and num_again:  # which names hardly hold
        return True
    if separator == "," and num_again and len(counts) <= len(cells):
        return True
    last = {tags[-1] for tags in lists}
    before_last = {tag for tags in lists for tag in tags[:-1]}
    both = last & before_last
    if 2 * num_again >= len(counts) and 5 * len(both) >= len(counts):
        return True
    common = {tag for tag in both if counts[tag] > 2}
    num_with_common = sum(not common.isdisjoint(tags) for tags in lists)
    return 2 * num_with_common >= len(lists)
