"""Numbers and counts as they stand in sentences."""


def number(value: float) -> str:
    """Three significant digits, without exponents where they are readable."""
    return f"{value:.3g}"


def count(n: int, noun: str) -> str:
    """`1 item`, `2 items`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
