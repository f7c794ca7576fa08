"""Reading outcomes and reducing them to cells, vectorised: ten million rows in seconds.

A cell is (condition, suite, metric, seed, item). Its samples are checked for repeats before they are summed.

Shapes: N rows, C cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from glob import glob
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from finetrial.errors import UserError, nearest
from finetrial.records import Outcome

REQUIRED = ("condition", "seed", "suite", "item", "metric", "value")
OPTIONAL = ("sample", "weight", "group", "suite_hash")
_NAMES = ("condition", "suite", "metric", "item")
_TEXT = (*_NAMES, "group", "suite_hash")

Source = Path | str | pa.Table | Sequence[Outcome]


@dataclass(frozen=True)
class Cells:
    """Outcomes reduced to cells, in ascending order of (condition, suite, metric, seed, item)."""

    names: Mapping[str, np.ndarray]
    """Ascending names of conditions, suites, metrics, items, and seeds (None for no seed, first)."""
    codes_C: Mapping[str, np.ndarray]
    """Position of each cell's condition, suite, metric, item and seed in `names`."""
    count_C: np.ndarray
    failed_C: np.ndarray
    mean_C: np.ndarray
    squares_C: np.ndarray
    weight_C: np.ndarray
    group_C: np.ndarray
    """Cluster of the cell's item; None where it has none."""
    hashes: Mapping[tuple[str, str, str], frozenset[str]]
    """Suite hashes that occur in each (condition, suite, metric)."""
    rows: int
    missing: int
    duplicated: int
    conflicting: int


def read_cells(source: Source) -> Cells:
    """Read outcomes from a Parquet file (or glob), an arrow table, or records, and reduce them to cells.

    Raises:
        UserError: no such file, a column is missing or of a type that does not fit, a name is null, an item belongs
            to two groups, a weight is not positive, or there are no rows.
    """
    table, place = _load(source)
    for name in REQUIRED:
        if name not in table.column_names:
            have = ", ".join(table.column_names)
            raise UserError(f"{place}: column '{name}' is missing{nearest(name, table.column_names)}; it has: {have}")
    if table.num_rows == 0:
        raise UserError(f"{place}: there are no outcomes")
    names, codes_N = {}, {}
    for name in _NAMES:
        names[name], codes_N[name] = _encode(table[name], place, name)
        if (codes_N[name] < 0).any():
            raise UserError(f"{place}: {int((codes_N[name] < 0).sum())} rows have no {name}")
    names["seed"], codes_N["seed"] = _encode_seeds(table["seed"], place)
    value_N = _numbers(table["value"], place, "value")
    rows, missing = len(value_N), int((~np.isfinite(value_N)).sum())
    cell_ids, cell_N = _cell_ids(names, codes_N)
    weight_N = _numbers(table["weight"], place, "weight") if "weight" in table.column_names else None
    if weight_N is not None and not (np.isfinite(weight_N) & (weight_N > 0)).all():
        raise UserError(f"{place}: every weight must be a number above 0")
    value_N, keep_N, duplicated, conflicting = _without_repeats(table, place, cell_N, value_N)
    n_cells = len(cell_ids)
    valid_N = np.isfinite(value_N) & keep_N
    count_C = np.bincount(cell_N, valid_N, n_cells)
    filled_N = np.where(valid_N, value_N, 0.0)
    empty_C = np.where(count_C > 0, 0.0, np.nan)
    total_C = np.bincount(cell_N, filled_N, n_cells) + empty_C
    squares_C = np.bincount(cell_N, filled_N**2, n_cells) + empty_C
    rows_C = np.bincount(cell_N, minlength=n_cells)
    codes_C = _decode(cell_ids, names)
    return Cells(
        names=names,
        codes_C=codes_C,
        count_C=count_C,
        failed_C=np.bincount(cell_N, keep_N, n_cells) - count_C,
        mean_C=total_C / np.maximum(count_C, 1),
        squares_C=squares_C,
        weight_C=np.ones(n_cells) if weight_N is None else np.bincount(cell_N, weight_N, n_cells) / rows_C,
        group_C=_groups(table, place, cell_N, codes_C, names),
        hashes=_hashes(table, place, cell_N, codes_C, names),
        rows=rows,
        missing=missing,
        duplicated=duplicated,
        conflicting=conflicting,
    )


def _load(source: Source) -> tuple[pa.Table, str]:
    """(the columns that matter, with text as dictionaries; how messages name the source)."""
    if isinstance(source, pa.Table):
        return source, "outcomes"
    if isinstance(source, (str, Path)):
        pattern = str(source)
        paths = [pattern] if Path(pattern).is_file() else sorted(glob(pattern, recursive=True))
        if not paths:
            raise UserError(f"{pattern}: no such file of outcomes")
        try:
            present = [pq.read_schema(path).names for path in paths]
        except pa.ArrowInvalid as error:
            raise UserError(f"{pattern}: not a Parquet file ({error})") from error
        known = {*REQUIRED, *OPTIONAL}
        tables = [
            pq.ParquetFile(path, read_dictionary=[n for n in names if n in _TEXT]).read(
                [n for n in names if n in known]
            )
            for path, names in zip(paths, present, strict=True)
        ]
        return pa.concat_tables(tables, promote_options="permissive"), pattern
    names = [field.name for field in fields(Outcome)]
    types = {"seed": pa.int64(), "sample": pa.int64(), "value": pa.float64(), "weight": pa.float64()}
    columns = {name: [getattr(outcome, name) for outcome in source] for name in names}
    return pa.table({name: pa.array(columns[name], types.get(name, pa.string())) for name in names}), "outcomes"


def _encode(column: pa.ChunkedArray, place: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(ascending names, position of each row's name, -1 for null)."""
    if not pa.types.is_dictionary(column.type):
        try:
            column = column.cast(pa.string()).dictionary_encode()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"{place}: column '{name}' is not text ({error})") from error
    one = column.unify_dictionaries().combine_chunks()
    if isinstance(one, pa.ChunkedArray):
        one = one.chunk(0)
    values = np.array([str(value) for value in one.dictionary.to_pylist()], dtype=object)
    order = np.argsort(values)
    rank = np.empty(len(values) + 1, dtype=np.int64)
    rank[order], rank[-1] = np.arange(len(values)), -1
    return values[order], rank[one.indices.fill_null(-1).to_numpy(zero_copy_only=False)]


def _encode_seeds(column: pa.ChunkedArray, place: str) -> tuple[np.ndarray, np.ndarray]:
    """(seeds ascending with None first where it occurs, position of each row's seed)."""
    # Data frames turn integers with gaps into floats: NaN is then the missing seed of the frozen base.
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        integers = column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{place}: column 'seed' must hold whole numbers or null ({error})") from error
    one = integers.dictionary_encode().combine_chunks()
    seeds = one.dictionary.to_numpy(zero_copy_only=False)
    missing = 1 if one.null_count else 0
    rank = np.zeros(len(seeds) + 1, dtype=np.int64)
    rank[:-1] = np.argsort(np.argsort(seeds)) + missing
    code_N = rank[one.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return np.array([None] * missing + np.sort(seeds).tolist(), dtype=object), code_N


def _numbers(column: pa.ChunkedArray, place: str, name: str) -> np.ndarray:
    """Column as float64, NaN for null."""
    try:
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        return column.cast(pa.float64()).fill_null(np.nan).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{place}: column '{name}' must hold numbers ({error})") from error


_ORDER = ("condition", "suite", "metric", "seed", "item")


def _cell_ids(names: Mapping[str, np.ndarray], codes_N: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(ascending mixed-radix ids of the cells that occur, position of each row's cell among them)."""
    id_N = np.zeros(len(codes_N["item"]), dtype=np.int64)
    size = 1
    for name in _ORDER:
        id_N = id_N * len(names[name]) + codes_N[name]
        size *= len(names[name])
    if size <= 4 * len(id_N):
        present = np.bincount(id_N, minlength=size) > 0
        return np.flatnonzero(present), (np.cumsum(present) - 1)[id_N]
    return np.unique(id_N, return_inverse=True)


def _decode(cell_ids: np.ndarray, names: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    codes = {}
    for name in reversed(_ORDER):
        cell_ids, codes[name] = np.divmod(cell_ids, len(names[name]))
    return codes


def _without_repeats(
    table: pa.Table, place: str, cell_N: np.ndarray, value_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """(values, which rows count, repeated rows, conflicting rows).

    Of rows that repeat one sample with the same value the first counts; rows that disagree count as one missing value.
    """
    sample_N = np.zeros(len(cell_N), dtype=np.int64)
    if "sample" in table.column_names:
        try:
            sample_N = table["sample"].cast(pa.int64()).fill_null(0).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"{place}: column 'sample' must hold whole numbers ({error})") from error
    if int(sample_N.max()) - int(sample_N.min()) > 2**20:
        sample_N = np.unique(sample_N, return_inverse=True)[1]
    sample_N = sample_N - sample_N.min()
    key_N = cell_N * (int(sample_N.max()) + 1) + sample_N
    keep_N = np.ones(len(key_N), dtype=bool)
    sorted_N = key_N if (key_N[1:] > key_N[:-1]).all() else np.sort(key_N)
    if (sorted_N[1:] > sorted_N[:-1]).all():
        return value_N, keep_N, 0, 0
    order = np.argsort(key_N, kind="stable")
    starts = np.flatnonzero(np.diff(key_N[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    ordered_N = np.where(np.isfinite(value_N), value_N, np.inf)[order]
    agree = np.minimum.reduceat(ordered_N, starts) == np.maximum.reduceat(ordered_N, starts)
    keep_N[:] = False
    keep_N[order[starts]] = True
    value_N = value_N.copy()
    value_N[order[starts[~agree]]] = np.nan
    return value_N, keep_N, int((sizes - 1)[agree].sum()), int(sizes[~agree].sum())


def _groups(
    table: pa.Table, place: str, cell_N: np.ndarray, codes_C: Mapping[str, np.ndarray], names: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Cluster of each cell's item, which must be the same in all rows of the item within its suite."""
    if "group" not in table.column_names or table["group"].null_count == len(cell_N):
        return np.full(len(codes_C["item"]), None, dtype=object)
    groups, group_N = _encode(table["group"], place, "group")
    item_C = codes_C["suite"] * len(names["item"]) + codes_C["item"]
    item_N = item_C[cell_N]
    group_of = np.full(len(names["suite"]) * len(names["item"]), -1, dtype=np.int64)
    group_of[item_N] = group_N
    wrong = np.flatnonzero(group_of[item_N] != group_N)
    if len(wrong):
        item = names["item"][codes_C["item"][cell_N[wrong[0]]]]
        raise UserError(f"{place}: item '{item}' belongs to two groups; a group is a property of the item")
    return np.array([*groups, None], dtype=object)[group_of[item_C]]


def _hashes(
    table: pa.Table, place: str, cell_N: np.ndarray, codes_C: Mapping[str, np.ndarray], names: Mapping[str, np.ndarray]
) -> dict[tuple[str, str, str], frozenset[str]]:
    """Suite hashes of each (condition, suite, metric)."""
    hashes, hash_N = np.array([""], dtype=object), np.zeros(len(cell_N), dtype=np.int64)
    if "suite_hash" in table.column_names:
        hashes, hash_N = _encode(table["suite_hash"], place, "suite_hash")
        hashes, hash_N = np.array(["", *hashes], dtype=object), hash_N + 1
    n_suites, n_metrics = len(names["suite"]), len(names["metric"])
    block_C = (codes_C["condition"] * n_suites + codes_C["suite"]) * n_metrics + codes_C["metric"]
    seen = np.flatnonzero(np.bincount(block_C[cell_N] * len(hashes) + hash_N))
    found: dict[tuple[str, str, str], set[str]] = {}
    for block, code in zip(*np.divmod(seen, len(hashes)), strict=True):
        rest, metric = divmod(int(block), n_metrics)
        condition, suite = divmod(rest, n_suites)
        key = (names["condition"][condition], names["suite"][suite], names["metric"][metric])
        found.setdefault(key, set()).add(str(hashes[code]))
    return {key: frozenset(values) for key, values in found.items()}
