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
        `names`, `shared` and `jaccard` (name -> name -> number), and `nearly_same`: pairs with an index of at
        least `NEARLY_SAME`.
    """
    rows = {
        name: frozenset(zip(selection.ids, selection.content_hashes, strict=True))
        for name, selection in selections.items()
    }
    shared = {first: {second: len(rows[first] & rows[second]) for second in rows} for first in rows}
    jaccard = {
        first: {second: shared[first][second] / len(rows[first] | rows[second]) for second in rows} for first in rows
    }
    near = [list(pair) for pair in combinations(rows, 2) if jaccard[pair[0]][pair[1]] >= NEARLY_SAME]
    return {"names": list(rows), "shared": shared, "jaccard": jaccard, "nearly_same": near}


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
