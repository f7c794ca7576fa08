"""Units of measurement: SI with its prefixes, and whatever else as its own name."""

import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache

PREFIXES = {
    "Q": 30, "R": 27, "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1,
    "d": -1, "c": -2, "m": -3, "μ": -6, "u": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24,
}  # fmt: skip
LONG_PREFIXES = {
    "tera": "T", "giga": "G", "mega": "M", "kilo": "k", "hecto": "h", "deci": "d", "centi": "c", "milli": "m",
    "micro": "u", "nano": "n", "pico": "p", "femto": "f",
}  # fmt: skip

BASES = ("m", "g", "s", "A", "K", "mol", "cd", "B")
DERIVED: dict[str, tuple[Fraction, str]] = {
    "N": (Fraction(1), "kg m s^-2"),
    "J": (Fraction(1), "N m"),
    "W": (Fraction(1), "J s^-1"),
    "Pa": (Fraction(1), "N m^-2"),
    "Hz": (Fraction(1), "s^-1"),
    "C": (Fraction(1), "A s"),
    "V": (Fraction(1), "W A^-1"),
    "F": (Fraction(1), "C V^-1"),
    "Ω": (Fraction(1), "V A^-1"),
    "S": (Fraction(1), "A V^-1"),
    "Wb": (Fraction(1), "V s"),
    "T": (Fraction(1), "Wb m^-2"),
    "H": (Fraction(1), "Wb A^-1"),
    "L": (Fraction(1), "dm^3"),
    "l": (Fraction(1), "dm^3"),
    "Wh": (Fraction(3600), "J"),
    "eV": (Fraction("1.602176634e-19"), "J"),
    "bar": (Fraction(100_000), "Pa"),
    "cal": (Fraction("4.184"), "J"),
}
"""Symbol -> (factor, in terms of); these and the bases take prefixes."""

PLAIN: dict[str, tuple[Fraction, str]] = {
    "min": (Fraction(60), "s"),
    "h": (Fraction(3600), "s"),
    "day": (Fraction(86_400), "s"),
    "atm": (Fraction(101_325), "Pa"),
}
"""Units without prefixes."""

NAMES = {
    "meter": "m", "metre": "m", "gram": "g", "gramme": "g", "second": "s", "sec": "s", "ampere": "A", "amp": "A",
    "kelvin": "K", "mole": "mol", "candela": "cd", "byte": "B", "newton": "N", "joule": "J", "watt": "W",
    "pascal": "Pa", "hertz": "Hz", "coulomb": "C", "volt": "V", "farad": "F", "ohm": "Ω", "siemens": "S",
    "weber": "Wb", "tesla": "T", "henry": "H", "liter": "L", "litre": "L", "electronvolt": "eV",
    "calorie": "cal", "minute": "min", "hour": "h", "hr": "h", "atmosphere": "atm",
}  # fmt: skip

Unit = tuple[Fraction, tuple[tuple[str, int], ...]]
"""Factor to base units, and their exponents, sorted by name."""


@lru_cache(maxsize=1024)
def unit_of(text: str) -> Unit:
    """A unit as a factor and exponents of base units; two units are convertible when the exponents are equal.

    Products are written with a space, `*` or `·`, quotients with `/` or `per` (everything after the first one up to
    the next divides), powers as `m^2`, `m^{2}`, `m2` or `m**2`. Symbols are told apart by case, names are not. A
    word that is no unit of the tables stands for itself, in lower case and without a plural `s`: `apples` is
    convertible to `apple` alone.
    """
    factor, exponents = Fraction(1), Counter[str]()
    text = re.sub(r"\bper\b", "/", text.replace("µ", "μ").replace("\u2126", "Ω").replace("**", "^"))
    for number, part in enumerate(text.split("/")):
        for atom in re.split(r"[\s*·⋅×()]+", part):
            if not atom:
                continue
            found = re.fullmatch(r"(.*?[^\d^{}+-])\^?\{?([+-]?\d)?\}?", atom)
            name, power = (found[1], int(found[2] or 1)) if found else (atom, 1)
            power = -power if number else power
            scale, bases = _atom(name)
            factor *= scale**power
            for base, exponent in bases:
                exponents[base] += exponent * power
    return factor, tuple(sorted((base, exponent) for base, exponent in exponents.items() if exponent))


def _atom(name: str) -> Unit:
    for symbol in _spellings(name):
        if symbol in BASES:
            return Fraction(1), ((symbol, 1),)
        if symbol in DERIVED or symbol in PLAIN:
            scale, terms = DERIVED[symbol] if symbol in DERIVED else PLAIN[symbol]
            factor, bases = unit_of(terms)
            return scale * factor, bases
        for prefix in PREFIXES:
            rest = symbol.removeprefix(prefix)
            if rest != symbol and (rest in BASES or rest in DERIVED):
                factor, bases = _atom(rest)
                return factor * Fraction(10) ** PREFIXES[prefix], bases
    return Fraction(1), ((f"'{_singular(name.casefold())}'", 1),)


def _spellings(name: str) -> list[str]:
    """The symbol as written, then what its long name stands for."""
    word = _singular(name.casefold())
    found = [name]
    for long, short in LONG_PREFIXES.items():
        rest = word.removeprefix(long)
        if rest != word and len(rest) > 1 and rest in NAMES:
            found.append(short + NAMES[rest])
    if word in NAMES or word in PLAIN:
        found.append(NAMES.get(word, word))
    return found


def _singular(word: str) -> str:
    if word in NAMES:
        return word
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
