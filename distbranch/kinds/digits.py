"""Numbers of any size as people read them: as many decimals as their first digits need, no exponents, no trailing zeros."""

import math


def count_decimals(value: float, digits: int) -> int:
    """How many decimals show this many digits of a number: of 12.345 three digits are 12.3."""
    if not value or not math.isfinite(value):
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def write_digits(value: float, digits: int) -> str:
    """The number with at least its whole part: 41,944.5, 0.0123, 1,234,568; beyond all sizes of a table with an exponent."""
    if value and not 1e-6 <= abs(value) < 1e15:
        return f"{value:.{digits}g}"
    text = f"{value:,.{count_decimals(value, digits)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
