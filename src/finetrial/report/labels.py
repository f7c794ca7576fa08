"""Where the names of points go in a scatter plot, so that they cover neither each other nor the points."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

LINE, CHARACTER = 15.0, 6.6
"""Height of a line and mean width of a character at 12 pixels."""


@dataclass(frozen=True)
class Placed:
    """A name whose left end is at `x` and whose middle is at `y`, in pixels from the upper left corner."""

    text: str
    x: float
    y: float
    far: bool
    """Whether it lies so far from its point that a line must lead to it."""


def place(
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    size: tuple[float, float],
    others: Sequence[tuple[float, float]] = (),
) -> list[Placed]:
    """One place per name, nearest first, in the order given: those before keep theirs.

    A place must lie in the drawing and may not touch another name; among those that do not, the one that covers the
    fewest points wins, then the nearest. Where no place is free of other names the first inside the drawing is taken.

    Args:
        names: what is written.
        points: of the names, in pixels.
        size: of the drawing.
        others: further points that should not be covered.
    """
    taken: list[tuple[float, float, float, float]] = []
    placed = []
    obstacles = [*points, *others]
    for name, (px, py) in zip(names, points, strict=True):
        width = CHARACTER * len(name)
        best: tuple[float, float, float, float, bool] | None = None
        for distance, (dx, dy) in product((10.0, 24.0, 40.0, 60.0, 84.0), _DIRECTIONS):
            x = px + dx * distance - (width if dx < 0 else width / 2 if dx == 0 else 0)
            y = py + dy * distance
            box = (x, y - LINE / 2, x + width, y + LINE / 2)
            if box[0] < 0 or box[2] > size[0] or box[1] < 0 or box[3] > size[1]:
                continue
            overlap = sum(_touch(box, other) for other in taken)
            covered = sum(box[0] - 5 < x < box[2] + 5 and box[1] - 4 < y < box[3] + 4 for x, y in obstacles)
            cost = 1000.0 * overlap + 4.0 * covered + distance / 10 + (0 if dy == 0 else 0.1)
            if best is None or cost < best[0]:
                best = (cost, x, y, distance, distance > 24)
        if best is None:  # wider than the drawing
            best = (0.0, 0.0, min(max(py, LINE), size[1] - LINE), 0.0, False)
        _, x, y, _, far = best
        taken.append((x, y - LINE / 2, x + width, y + LINE / 2))
        placed.append(Placed(name, x, y, far))
    return placed


_DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -0.8), (1, 0.8), (-1, -0.8), (-1, 0.8))


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] + 4 and b[0] < a[2] + 4 and a[1] < b[3] and b[1] < a[3]
