"""Quantities as a person reads them: bytes, shares, counts."""

from typing import Final

UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def size(count: int) -> str:
    """A number of bytes in decimal units: 19_412 -> '19.4 kB'."""
    amount, unit = float(count), UNITS[0]
    for following in UNITS[1:]:
        if abs(amount) < 999.5:
            break
        amount, unit = amount / 1000, following
    return f"{count} B" if unit == "B" else f"{amount:.3g} {unit}"


def share(fraction: float) -> str:
    """A fraction in percent, with three digits that count: 0.08417 -> '8.42 %'."""
    return f"{100 * fraction:.3g} %"


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 -> '1 mask', 1_200 -> '1,200 masks'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
