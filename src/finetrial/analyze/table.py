"""The outcome table: where the two halves of finetrial meet, checked and reduced to one number per cell.

A cell is (condition, seed, suite, item, metric); its value is the mean over the samples that have one. What is
missing stays missing (NaN), and everything odd about the table is counted and told, never averaged away.

Shapes: S seeds, I items.
"""

from dataclasses import dataclass

import numpy as np

from finetrial.analyze.cells import Cells, Source, read_cells
from finetrial.errors import UserError, nearest


@dataclass(frozen=True)
class Dense:
    """All outcomes of one (condition, suite, metric) as arrays; NaN where a cell has no value."""

    values_SI: np.ndarray
    """Mean over the samples of the cell."""
    count_SI: np.ndarray
    """Samples with a value."""
    failed_SI: np.ndarray
    """Samples that are there but have no finite value (a parse failure, a crashed grader)."""
    squares_SI: np.ndarray
    """Sum of squares of the cell's values (for the variance within cells)."""
    seeds: tuple[int | None, ...]
    """Ascending; (None,) for the frozen base."""
    items: np.ndarray
    """Names of the items, ascending."""
    weight_I: np.ndarray
    groups: np.ndarray
    """Cluster of each item; the item's own name where it has none."""
    suite_hashes: frozenset[str]
    ends_SI: tuple[np.ndarray, np.ndarray] | None = None
    """For a value computed from samples: with every failed sample counted at its lowest, and at its highest."""

    @property
    def frozen(self) -> bool:
        """Whether this is a frozen model, which has no training seeds."""
        return self.seeds == (None,)

    def bounds(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        """`values_SI` with every failed sample set to `low`, and to `high`."""
        if self.ends_SI is not None:
            return self.ends_SI
        total_SI = np.where(self.count_SI > 0, self.values_SI * self.count_SI, 0.0)
        rows_SI = self.count_SI + self.failed_SI
        lowest_SI, highest_SI = (
            np.divide(total_SI + fill * self.failed_SI, rows_SI, out=np.full(rows_SI.shape, np.nan), where=rows_SI > 0)
            for fill in (low, high)
        )
        return lowest_SI, highest_SI


@dataclass(frozen=True)
class TableReport:
    """What is odd about a table, in numbers and in sentences."""

    rows: int
    missing: int
    """Rows whose value is null, NaN or infinite."""
    duplicated: int
    """Rows that repeat a (condition, seed, suite, item, sample, metric) with the same value: counted once."""
    conflicting: int
    """Rows that repeat one with another value: all of them taken as missing."""
    unbalanced: tuple[str, ...]
    """One sentence per (condition, suite, metric) whose seeds or items are not complete."""

    def sentences(self) -> list[str]:
        """Everything that a reader should know before believing a number; empty for a clean table."""
        lines = []
        if self.missing:
            lines.append(f"{self.missing} of {self.rows} outcomes have no finite value; they are missing, not 0")
        if self.duplicated:
            lines.append(f"{self.duplicated} rows repeat an outcome with the same value; each is counted once")
        if self.conflicting:
            lines.append(f"{self.conflicting} rows give one outcome different values; they are taken as missing")
        return lines + list(self.unbalanced)


class OutcomeTable:
    """Outcomes reduced to cells, indexed by (condition, suite, metric).

    Build it with `read`. `report` says what is odd, `dense` gives arrays.
    """

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._blocks = self._index()
        self.report = TableReport(cells.rows, cells.missing, cells.duplicated, cells.conflicting, self._gaps())

    @classmethod
    def read(cls, source: Source) -> "OutcomeTable":
        """Read outcomes from a Parquet file (or glob), an arrow table, or records.

        Columns: condition, seed (integer, null for the frozen base), suite, item, metric, value; and where present
        sample (else 0), weight (else 1), group, suite_hash.

        Raises:
            UserError: as `read_cells`.
        """
        return cls(read_cells(source))

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions, ascending."""
        return tuple(self._cells.names["condition"])

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of the suites, ascending."""
        return tuple(self._cells.names["suite"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, ascending."""
        return tuple(self._cells.names["metric"])

    def has(self, condition: str, suite: str, metric: str) -> bool:
        """Whether there is any row of this (condition, suite, metric)."""
        return (condition, suite, metric) in self._blocks

    def dense(self, condition: str, suite: str, metric: str) -> Dense:
        """The outcomes of one (condition, suite, metric) as arrays.

        Raises:
            UserError: the table has no such condition, suite or metric, none of their combination, or a condition
                has rows both with and without a seed.
        """
        self._require(condition, suite, metric)
        rows = self._blocks[condition, suite, metric]
        codes_C, seed_names = self._cells.codes_C, self._cells.names["seed"]
        seeds, seed_index = np.unique(codes_C["seed"][rows], return_inverse=True)
        if seed_names[seeds[0]] is None and len(seeds) > 1:
            raise UserError(
                f"condition '{condition}' on suite '{suite}' has rows with a seed and rows without; "
                "only a frozen model has none, and then in all its rows"
            )
        items, first, item_index = np.unique(codes_C["item"][rows], return_index=True, return_inverse=True)
        shape = (len(seeds), len(items))

        def grid(values_C: np.ndarray, empty: float) -> np.ndarray:
            array_SI = np.full(shape, empty)
            array_SI[seed_index, item_index] = values_C[rows]
            return array_SI

        names = self._cells.names["item"][items]
        groups = self._cells.group_C[rows][first]
        weight_I = np.bincount(item_index, self._cells.weight_C[rows]) / np.bincount(item_index)
        return Dense(
            values_SI=grid(self._cells.mean_C, np.nan),
            count_SI=grid(self._cells.count_C, 0.0),
            failed_SI=grid(self._cells.failed_C, 0.0),
            squares_SI=grid(self._cells.squares_C, np.nan),
            seeds=tuple(seed_names[seeds]),
            items=names,
            weight_I=weight_I,
            groups=np.where(groups == None, names, groups),  # noqa: E711 (elementwise)
            suite_hashes=self._cells.hashes[condition, suite, metric],
        )

    def _require(self, condition: str, suite: str, metric: str) -> None:
        for kind, name in (("condition", condition), ("suite", suite), ("metric", metric)):
            if name not in self._cells.names[kind]:
                have = ", ".join(self._cells.names[kind])
                hint = nearest(name, self._cells.names[kind])
                raise UserError(f"the outcomes have no {kind} '{name}'{hint}; they have: {have}")
        if not self.has(condition, suite, metric):
            have = ", ".join(sorted(f"{s}/{m}" for c, s, m in self._blocks if c == condition))
            raise UserError(f"condition '{condition}' has no outcomes of {suite}/{metric}; it has: {have}")

    def _index(self) -> dict[tuple[str, str, str], slice]:
        """Cells of each (condition, suite, metric); they are in ascending order, so each block is one slice."""
        names, codes_C = self._cells.names, self._cells.codes_C
        n_suites, n_metrics = len(names["suite"]), len(names["metric"])
        block_C = (codes_C["condition"] * n_suites + codes_C["suite"]) * n_metrics + codes_C["metric"]
        present, starts = np.unique(block_C, return_index=True)
        blocks = {}
        for code, start, end in zip(present, starts, [*starts[1:], len(block_C)], strict=True):
            rest, metric = divmod(int(code), n_metrics)
            condition, suite = divmod(rest, n_suites)
            key = (names["condition"][condition], names["suite"][suite], names["metric"][metric])
            blocks[key] = slice(int(start), int(end))
        return blocks

    def _gaps(self) -> tuple[str, ...]:
        """One sentence per block whose cells are fewer than seeds × items of its suite and metric."""
        codes_C = self._cells.codes_C
        n_names = len(self._cells.names["item"])
        items: dict[tuple[str, str], np.ndarray] = {}
        for (_, suite, metric), rows in self._blocks.items():
            seen = items.setdefault((suite, metric), np.zeros(n_names, dtype=bool))
            seen[codes_C["item"][rows]] = True
        lines = []
        for (condition, suite, metric), rows in self._blocks.items():
            n_seeds, n_items = len(np.unique(codes_C["seed"][rows])), int(items[suite, metric].sum())
            lost = n_seeds * n_items - (rows.stop - rows.start)
            if lost:
                lines.append(
                    f"{condition} on {suite}/{metric}: {lost} of {n_seeds * n_items} cells "
                    f"({n_seeds} seeds × {n_items} items) have no row"
                )
        return tuple(lines)
