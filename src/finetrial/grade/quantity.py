"""Numbers as people and models write them."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from finetrial.grade.plain import FRACTION, plain
from finetrial.grade.units import unit_of

DIGITS = 400
"""A number written with more characters is not read; its fraction would cost more than it tells."""

MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
WORDS = 5
"""A unit or noun of so many words may follow a number; a longer text is prose, not an answer."""

PUNCTUATION = " ,;:?*`\"'"

_DECIMAL = r"(?:\d{1,3}(?:(?:,|\{,\}|_| )\d{3})+(?![\d])(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_POWER = r"\s*(?:\^|\*\*)\s*[{{(]?\s*(?P<{}>[+-]?\d{{1,3}})\s*[)}}]?"
NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<currency>[$€£¥₹]?)\s*(?P<inner>-?)\s*"
    rf"(?:(?P<whole>\d+)(?:\s+|\s*-\s*(?=\d+/))(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    rf"|(?P<ten>10){_POWER.format('tenth')}"
    rf"|(?P<number>{_DECIMAL})"
    rf"(?:[eE](?P<exponent>[+-]?\d{{1,3}})(?![\w.])"
    rf"|\s*(?:\*|×|x|\\times|\\cdot|·|⋅)\s*10{_POWER.format('times')}"
    rf"|\s*/\s*(?P<over>{_DECIMAL}))?)"
    rf"(?P<percent>\s*(?:%|percent\b|per cent\b|pct\b))?"
    rf"(?:\s*(?P<magnitude>{'|'.join(MAGNITUDES)})\b)?",
    re.IGNORECASE,
)
ANYWHERE = re.compile(rf"(?<![\w.,]){NUMBER.pattern}", re.IGNORECASE)
UNIT = re.compile(r"[^\d+=<>|!\\]*(?:(?<=[^\W\d_])\^?\{?-?\d\}?(?![\d.,])[^\d+=<>|!\\]*)*")
"""Words and symbols; digits are exponents alone."""


@dataclass(frozen=True)
class Quantity:
    """A number with what is written behind it."""

    value: Fraction
    """As written: 50 for `50 %`."""
    percent: bool
    unit: str
    """Text after the number, or the sign of a currency before it; empty for none."""


@lru_cache(maxsize=4096)
def read_quantity(text: str) -> Quantity | None:
    """The number that a text is; None where it is none.

    Read are: signs; `1,234.5`, `1 234`, `1_234`, `.5`; `3/4`, `\\frac{3}{4}`, `\\frac34`, `1 3/4`, `½`; `1.5e3`,
    `1.5 × 10^3`, `10^{-3}`; `50 %`, `50\\%`, `50 percent`; `$5`; `3 million`; what stands after the last `=` or
    `≈`. A unit or noun of up to five words may follow. A comma is a separator of thousands, never of decimals.
    """
    bare = re.split(r"=|≈|\\approx\b", plain(text))[-1]
    bare = FRACTION.sub(lambda found: f" {found[1] or found[2]}/{found[3] or found[4]} ", bare)
    bare = plain(bare).strip(PUNCTUATION).rstrip("." + PUNCTUATION)
    found = NUMBER.match(bare)
    if found is None or len(found[0]) > DIGITS:
        return None
    rest = re.sub(r"\\(?:text|mathrm|mbox|rm)\s*\{([^{}]*)\}", r" \1 ", bare[found.end() :]).strip("." + PUNCTUATION)
    if len(rest.split()) > WORDS or not UNIT.fullmatch(rest):
        return None
    value = _value(found)
    if value is None:
        return None
    return Quantity(value, found["percent"] is not None, rest or found["currency"] or "")


def last_quantity(text: str) -> Quantity | None:
    """The last number that stands in a text, without its unit; None where there is none."""
    found = [match for match in ANYWHERE.finditer(plain(text)) if len(match[0]) <= DIGITS]
    value = _value(found[-1]) if found else None
    return None if value is None else Quantity(value, found[-1]["percent"] is not None, "")


def equal(given: Quantity, wanted: Quantity, tolerance: float) -> bool:
    """|given − wanted| ≤ tolerance · |wanted|, in the unit of `wanted`.

    Where `wanted` has a unit, a unit that is given must be convertible to it, and a number without one counts as
    being in it; where it has none, a unit that is given says nothing. Percentages: of two, the numbers are compared;
    where one of both is a percentage, both readings of it (`50 %` as 50 and as 0.5) are tried, for sources drop the
    sign as often as not.
    """
    if given == wanted:
        return True
    factor = Fraction(1)
    if wanted.unit and given.unit:
        (scale, bases), (wanted_scale, wanted_bases) = unit_of(given.unit), unit_of(wanted.unit)
        if bases != wanted_bases:
            return False
        factor = scale / wanted_scale
    readings = [given.value * factor]
    if given.percent != wanted.percent:
        readings.append(given.value * factor * (Fraction(1, 100) if given.percent else 100))
    allowed = Fraction(tolerance) * abs(wanted.value)
    return any(abs(reading - wanted.value) <= allowed for reading in readings)


def _value(found: re.Match[str]) -> Fraction | None:
    if found["whole"]:
        if int(found["bottom"]) == 0:
            return None
        value = int(found["whole"]) + Fraction(int(found["top"]), int(found["bottom"]))
    elif found["ten"]:
        value = Fraction(10) ** int(found["tenth"])
    else:
        value = _decimal(found["number"])
        if found["over"]:
            below = _decimal(found["over"])
            if below == 0:
                return None
            value /= below
        value *= Fraction(10) ** int(found["exponent"] or found["times"] or 0)
    if found["magnitude"]:
        value *= 10 ** MAGNITUDES[found["magnitude"].lower()]
    negative = (found["sign"] == "-") != (found["inner"] == "-")
    return -value if negative else value


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[{},_ ]", "", text).rstrip(".") or "0")
