"""Numbers of a column as people write them: which sign is the decimal one the cells must tell, or it is asked.

`1,234` is a thousand and more to some and little more than one to others; `1,5` beside it, in the same table, decides.
"""

import re
from collections.abc import Collection, Iterable
from typing import Literal

DecimalSign = Literal["point", "comma"]
SIGNS: tuple[DecimalSign, ...] = ("point", "comma")

# The sign of groups of three digits is one throughout a number; blanks and apostrophes mean the same everywhere.
_SHAPE = r"""
    (?=[+-]?{decimal}?\d) [+-]?
    (?: [1-9]\d{{0,2}} (?P<group>[{group}\ '\u2019]) \d{{3}} (?:(?P=group)\d{{3}})* | \d* )
    (?: {decimal}\d* )? (?: e[+-]?\d+ )?
"""
_PATTERNS = {
    "point": re.compile(_SHAPE.format(decimal=r"\.", group=","), re.IGNORECASE | re.VERBOSE),
    "comma": re.compile(_SHAPE.format(decimal=",", group="."), re.IGNORECASE | re.VERBOSE),
}
_WITH_UNIT = re.compile(
    r"(?P<before>[$€£¥₹]\s?)?[+-]?\d[\d., ]*(?P<behind>\s?[^\W\d_]{1,8}[²³]?(/[^\W\d_]{1,8}[²³]?)?|\s?[%‰°$€£¥₹][^\W\d_]?)?"
)


def read_number(text: str, sign: DecimalSign) -> float | None:
    """The number that a tidy text is with this decimal sign; None for anything else. Beyond float64 it is infinite."""
    text = text.replace("\u2212", "-")  # the minus of typesetters
    found = _PATTERNS[sign].fullmatch(text)
    if found is None:
        return None
    digits = text.replace(found["group"] or " ", "")
    return float(digits.replace(",", "."))


def find_decimal_signs(texts: Iterable[str]) -> set[DecimalSign]:
    """The decimal signs with which the most of the texts are numbers; both where none tells."""
    fits = dict.fromkeys(SIGNS, 0)
    for text in texts:
        for sign in SIGNS:
            fits[sign] += read_number(text, sign) is not None
    return {sign for sign in SIGNS if fits[sign] == max(fits.values())}


def find_ambiguous(texts: Iterable[str]) -> list[str]:
    """The texts that are one number with a decimal point and another with a decimal comma."""
    found = []
    for text in texts:
        values = {read_number(text, sign) for sign in SIGNS}
        if len(values - {None}) > 1:
            found.append(text)
    return found


def find_unit(text: str) -> str:
    """What stands before or behind a number: `kg` of `3.5 kg`, `%` of `50%`, `€` of `€ 5`; empty where nothing does."""
    found = _WITH_UNIT.fullmatch(text)
    return (found["before"] or found["behind"] or "").strip() if found else ""


def find_common_unit(texts: Iterable[str]) -> str:
    """The unit that all numbers among the texts have; empty where one has none or another."""
    units = {find_unit(text) for text in texts if _WITH_UNIT.fullmatch(text)}
    return units.pop() if len(units) == 1 else ""


def without_unit(text: str, unit: str) -> str:
    """The number alone."""
    return text.removeprefix(unit).removesuffix(unit).strip()


def are_all_numbers(texts: Collection[str]) -> bool:
    """Whether the texts are numbers, whichever the decimal sign is."""
    return any(all(read_number(text, sign) is not None for text in texts) for sign in SIGNS)
