"""What conditions share, and what differs between them besides the recipe."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from finetrial.data.select import Selection

NEARLY_SAME = 0.8
"""Jaccard index from which two selections are unlikely to train adapters that differ detectably."""


def overlap(selections: Mapping[str, Selection]) -> dict[str, Any]:
    """Shared rows and Jaccard index (shared / either) of every two selections, by (id, content hash).

    Returns:
        `names`; `matrix` (Jaccard) and `shared` (rows), in the order of `names`; and `nearly_same`: pairs of names
        with an index of at least `NEARLY_SAME`.
    """
    rows = [frozenset(zip(selection.ids, selection.content_hashes, strict=True)) for selection in selections.values()]
    shared = [[len(first & second) for second in rows] for first in rows]
    matrix = [[len(first & second) / len(first | second) for second in rows] for first in rows]
    names = list(selections)
    near = [[names[i], names[j]] for i, j in combinations(range(len(names)), 2) if matrix[i][j] >= NEARLY_SAME]
    return {"names": names, "matrix": matrix, "shared": shared, "nearly_same": near}


def side_by_side(selections: Mapping[str, Selection], steps: Mapping[str, int]) -> list[dict[str, Any]]:
    """One row per selection: examples, groups, tokens, tokens per example, tokens cut off, turns, optimiser steps.

    Equal examples are neither equal tokens nor equal steps; a difference between conditions may be any of them.

    Args:
        selections: condition -> its rows.
        steps: condition -> optimiser steps of one run.
    """
    return [
        {
            "condition": name,
            "examples": selection.facts["examples"],
            "groups": selection.facts["groups"],
            "max_per_group": selection.facts["max_per_group"],
            "tokens": selection.facts["tokens"],
            "tokens_per_example": selection.facts["tokens"] / selection.facts["examples"],
            "tokens_cut": selection.facts["tokens_cut"],
            "turns": selection.facts["turns"],
            "steps": steps[name],
        }
        for name, selection in selections.items()
    ]
