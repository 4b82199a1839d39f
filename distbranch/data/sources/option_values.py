"""How options of a table are written, on the command line and in YAML: names, what is said of each, characters, fractions."""

import csv
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from distbranch.data.pack import SPLITS
from distbranch.data.sources.columns import ALL
from distbranch.data.sources.label_text import tidy_text
from distbranch.data.sources.source import Answer

NAMED_CHARACTERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}


def _split_at_commas(value: Any) -> Any:
    """A name that holds a comma stands in double quotes; YAML reads one that is a number as such."""
    if isinstance(value, list | tuple):
        return [str(part) if isinstance(part, int | float) else part for part in value]
    if not isinstance(value, str | int | float):
        return value
    parts = next(csv.reader([str(value)], skipinitialspace=True), [])
    stripped = map(str.strip, parts)
    return list(filter(None, stripped))


def _parse_answers(value: Any) -> Any:
    """`no`, or `COLUMN=no,COLUMN=unknown`; YAML reads `no` as false."""
    if isinstance(value, str | bool):
        # An answer without a column is for all of them.
        texts = _split_at_commas("no" if value is False else str(value))
        pairs = [text.rpartition("=") for text in texts]
        value = {name.strip() or ALL: answer.strip() for name, _, answer in pairs}
    if isinstance(value, dict):
        value = {tidy_text(str(name)): answer for name, answer in value.items()}
    return value


def _parse_named(value: Any) -> Any:
    """`COLUMN`, `COLUMN=WHAT,COLUMN=WHAT`, or as a mapping or a list in YAML; what was not said is empty."""
    if isinstance(value, str | int | float | list | tuple):
        pairs = [str(text).partition("=") for text in _split_at_commas(value)]
        value = {name: said for name, _, said in pairs}
    if isinstance(value, dict):
        value = {tidy_text(str(name)): _tidy_said(said) for name, said in value.items()}
    return value


def _tidy_said(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [tidy_text(str(part)) for part in value]
    return "" if value is None else tidy_text(str(value))


def _parse_orders(value: Any) -> Any:
    """`COLUMN=low<middle<high` as the classes of the column, lowest first; none where the order is that of numbers."""
    value = _parse_named(value)
    if isinstance(value, dict):
        for name, order in value.items():
            if isinstance(order, str):
                value[name] = [part.strip() for part in order.split("<")] if order else []
    return value


def _check_orders(orders: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    for name, order in orders.items():
        if order and (len(order) < 2 or "" in order or len(set(order)) < len(order)):
            raise ValueError(
                f"should give several different classes of '{name}', lowest first, with < between them "
                f"('{name}=low<middle<high', in quotes)"
            )
    return orders


def _check_said(said: dict[str, str]) -> dict[str, str]:
    for name, what in said.items():
        if not what:
            raise ValueError(f"should say what '{name}' has: {name}=...")
    return said


def _parse_character(value: str) -> str:
    character = NAMED_CHARACTERS.get(value, value)
    if len(character) > 1:
        character = character.strip()  # ', '
    if len(character) != 1:
        raise ValueError("should be one character, or one of tab, space, comma, semicolon")
    return character


def _check_encoding(value: str) -> str:
    try:
        "".encode(value)
    except LookupError:
        raise ValueError(
            "should be an encoding of text, such as utf-8, utf-16, cp1252, shift_jis"
        ) from None
    return value


def _check_fractions(shares: tuple[float, ...]) -> tuple[float, ...]:
    if len(shares) != len(SPLITS) or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(
            "should be three shares that are not negative, of train, val and test: 0.8,0.1,0.1 for instance"
        )
    return shares


# Tidy as those of the header, so that names are equal where they look equal.
Name = Annotated[str, AfterValidator(tidy_text)]
# Split before pydantic, which would refuse a text where a list should stand.
Names = Annotated[tuple[Name, ...], BeforeValidator(_split_at_commas)]
Answers = Annotated[dict[str, Answer], BeforeValidator(_parse_answers)]
Orders = Annotated[
    dict[str, tuple[str, ...]], BeforeValidator(_parse_orders), AfterValidator(_check_orders)
]
Said = Annotated[dict[str, str], BeforeValidator(_parse_named), AfterValidator(_check_said)]
Character = Annotated[str, AfterValidator(_parse_character)]
Fractions = Annotated[
    tuple[float, ...], BeforeValidator(_split_at_commas), AfterValidator(_check_fractions)
]
Encoding = Annotated[str, AfterValidator(_check_encoding)]
