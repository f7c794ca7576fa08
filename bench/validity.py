"""Does a verdict hold? Simulated campaigns in which the truth is known.

Every cell simulates thousands of campaigns and judges them with the functions that `finetrial.analyze.judge` uses,
beside what the field does instead. It prints, per cell: how often an improvement that is not there is CONFIRMED
(margin 0; nominal 2.5 %, half of the two-sided 5 %), how often the verdict is refused, the coverage of the interval
(nominal 95 %) and the power at a real effect, and the false confirmations of three other methods on the same data.

    python bench/validity.py [--replicates 2000] [--write]     --write puts the table into docs/statistics.md

Shapes: R replicates (campaigns), C conditions (the last is the baseline), S seeds, I items.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import special

from finetrial import seeds
from finetrial.analyze.estimate import Effect, Estimate, critical_value, effect, estimate, p_value
from finetrial.analyze.families import step_levels
from finetrial.analyze.verdict import skew_critical

ALPHA = 0.05
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "statistics.md"
MARKS = "<!-- {} table: begin -->", "<!-- {} table: end -->"
_BLOCK_VALUES = 4_000_000


@dataclass(frozen=True)
class Cell:
    """One simulated design. Standard deviations are in units of the metric, or of its logit where it is bounded."""

    seeds: int = 8
    baseline_seeds: int | None = None
    """None: as many as the candidate; 0: the frozen base."""
    items: int = 200
    samples: int = 4
    metric: str = "continuous"
    """continuous, bounded (scores in 0..1) or binary."""
    seed_effects: str = "normal"
    """normal, t3 (Student's t with 3 degrees of freedom), skewed (a few runs collapse: minus an exponential, skewness
    2) or very skewed (minus a lognormal, skewness 6)."""
    shared: bool = True
    """The conditions have the same seed numbers."""
    correlation: float = 0.0
    """Of the two conditions' seed effects under one seed number."""
    missing: float = 0.0
    """Share of cells without a value."""
    lost: int = 0
    """Runs of the baseline that were lost (their seed numbers stay in the candidate)."""
    apart: int = 0
    """Runs of the baseline whose seed numbers the candidate does not have."""
    per_group: int = 1
    """Items per cluster; the recipes' differences vary between clusters."""
    contrasts: int = 1
    minus_suite: bool = False
    seed_sd: float = 0.02
    instability: float = 1.0
    """Factor on the candidates' seed effects; 1 means as spread as the baseline's."""
    effect: float = 0.0


@dataclass(frozen=True)
class Result:
    """Rates over the replicates of one cell; `other` holds false confirmations of other methods."""

    confirmed: float
    refused: float
    coverage: float
    other: dict[str, float]
    replicates: int

    @property
    def error(self) -> float:
        """Monte-Carlo standard error of `confirmed` at the nominal rate."""
        return math.sqrt(ALPHA / 2 * (1 - ALPHA / 2) / self.replicates)


def draw(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Seed effects of mean 0 and variance 1."""
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "t3":
        return rng.standard_t(3, shape) / math.sqrt(3)
    if kind == "very skewed":
        return (math.exp(0.5) - np.exp(rng.standard_normal(shape))) / math.sqrt((math.e - 1) * math.e)
    return 1.0 - rng.exponential(size=shape)


def campaigns(cell: Cell, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(cell means (R, C, S, I), variance of one completion (R, C, S)) of n campaigns; NaN where missing."""
    c, s, i = cell.contrasts + 1, cell.seeds, cell.items
    base_s = s if cell.baseline_seeds is None else cell.baseline_seeds
    rows = max(s, base_s, 1)
    common = draw(rng, cell.seed_effects, (n, 1, rows))
    own = draw(rng, cell.seed_effects, (n, c, rows))
    common = np.broadcast_to(common, own.shape).copy()
    if cell.apart:
        common[:, -1, -cell.apart :] = draw(rng, cell.seed_effects, (n, cell.apart))
    seed = math.sqrt(cell.correlation) * common + math.sqrt(1 - cell.correlation) * own
    logit = cell.metric != "continuous"
    sd_seed, sd_item, sd_recipe, sd_both = (
        (cell.seed_sd * 5, 1.5, 0.25, 0.3) if logit else (cell.seed_sd, 0.3, 0.05, 0.05)
    )
    seed[:, :-1] *= cell.instability
    if base_s == 0:
        seed[:, -1] = 0.0
    y = sd_seed * seed[..., None] + sd_item * rng.standard_normal((n, 1, 1, i))
    clusters = math.ceil(i / cell.per_group)
    y = y + sd_recipe * np.repeat(rng.standard_normal((n, c, 1, clusters)), cell.per_group, axis=-1)[..., :i]
    y[:, :-1] += cell.effect * (5 if logit else 1)
    # The frozen base has no seed and no seed × item effect; its one row is copied and cut below.
    y += sd_both * rng.standard_normal(y.shape) if base_s else 0.0
    k = cell.samples
    if cell.metric == "continuous":
        y += 0.2 / math.sqrt(k) * rng.standard_normal(y.shape)
        within = np.full(y.shape[:-1], 0.2**2)
    elif cell.metric == "binary":
        p = special.expit(y)
        y = rng.binomial(k, p) / k
        within = (p * (1 - p)).mean(-1)
    else:
        draws = np.stack([special.expit(y + 0.7 * rng.standard_normal(y.shape)) for _ in range(k)])
        y = draws.mean(0)
        within = ((draws - y) ** 2).sum(0).mean(-1) / max(k - 1, 1)
    if cell.missing:
        y = np.where(rng.random(y.shape) < cell.missing, np.nan, y)
    y[:, :-1, s:] = np.nan
    y[:, -1, max(base_s, 1) - cell.lost :] = np.nan
    return y, within


def satterthwaite(e: Estimate) -> np.ndarray:
    """Lower limit from the same variance with one t of Satterthwaite's degrees of freedom (tried and given up)."""
    v = e.v_seed + e.v_rest
    df = v**2 / np.maximum(e.v_seed**2 / e.df_seed + e.v_rest**2 / e.df_item, np.finfo(float).tiny)
    return e.estimate + special.stdtrit(df, ALPHA / 2) * np.sqrt(v)


def ours(
    y: np.ndarray, other_suite: np.ndarray | None, cell: Cell
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Estimate]:
    """(low, high at the family's level, critical value that survives skew) for each replicate and contrast."""
    s = cell.seeds
    base_s = (s if cell.baseline_seeds is None else cell.baseline_seeds) - cell.lost
    rows = max(base_s, 1)
    paired = cell.shared and base_s == s and not cell.apart
    group_I = np.arange(cell.items) // cell.per_group

    def one(values: np.ndarray) -> Effect:
        return effect(values[:, :-1, :s], values[:, -1:, :rows], np.ones(cell.items), group_I, paired)

    both = np.arange(base_s - cell.apart)
    matched = (both, both) if cell.shared and not paired and base_s else None
    e = estimate([one(y)] + ([one(other_suite)] if other_suite is not None else []), paired, matched)
    level = np.full(e.estimate.shape, ALPHA)
    if cell.contrasts > 1:
        level = step_levels(p_value(e), ALPHA, "holm")
    half = critical_value(level, e) * e.standard_error
    guard = half if base_s == s else skew_critical(level, e, max(s, base_s), min(s, base_s)) * e.standard_error
    return e.estimate - half, e.estimate + half, e.estimate - guard, e


def others(y: np.ndarray, within: np.ndarray, cell: Cell) -> dict[str, np.ndarray]:
    """Lower limits of the first contrast's 95 % interval by methods that leave out seeds or items."""
    s = cell.seeds
    base_s = (s if cell.baseline_seeds is None else cell.baseline_seeds) - cell.lost
    arms = [(y[:, 0, :s], within[:, 0, :s], s), (y[:, -1, : max(base_s, 1)], within[:, -1, : max(base_s, 1)], base_s)]
    difference = np.nanmean(arms[0][0], (1, 2)) - np.nanmean(arms[1][0], (1, 2))
    pooled, cells_only = 0.0, 0.0
    for values, inside, runs in arms:
        n = (~np.isnan(values)).sum((1, 2))
        k = cell.samples
        between = np.nanvar(values, (1, 2)) - inside.mean(1) / k
        pooled = pooled + (np.maximum(between, 0) + inside.mean(1)) / (n * k)
        if runs > 1:
            there = ~np.isnan(values)
            n_I = np.maximum(there.sum(1), 1)
            residual = np.where(there, values - _item_means(values)[:, None], 0.0)
            cells_only = cells_only + ((residual**2).sum(1) / n_I**2).sum(-1) / cell.items**2
    per_item = _item_means(arms[0][0]) - _item_means(arms[1][0])
    prompt = np.nanvar(per_item, -1, ddof=1) / cell.items
    z = special.ndtri(1 - ALPHA / 2)
    variances = {"pooled completions": pooled, "prompts only": prompt, "runs per prompt": cells_only}
    return {name: difference - z * np.sqrt(v) for name, v in variances.items()}


def _item_means(values: np.ndarray) -> np.ndarray:
    """Mean over seeds (R, I), NaN for items without any value."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0.0).sum(1)
    return np.divide(total, there.sum(1), out=np.full(total.shape, np.nan), where=there.any(1))


def true_effect(cell: Cell) -> float:
    """The difference that a campaign of endless seeds, items and samples would show."""
    if cell.effect == 0 or cell.metric == "continuous":
        return cell.effect
    rng = seeds.stream(0, "true effect", repr(cell))
    big = replace(cell, contrasts=1, seeds=1000, baseline_seeds=1000, items=1000, samples=1, missing=0.0, lost=0)
    differences = []
    for _ in range(8):
        y, _ = campaigns(big, 1, rng)
        differences.append(float(y[0, 0].mean() - y[0, 1].mean()))
    return float(np.mean(differences))


def run(cell: Cell, replicates: int, seed: int = 1) -> Result:
    """Simulate and judge `replicates` campaigns of one design, in blocks that fit into memory."""
    rng = seeds.stream(seed, "validity", repr(cell))
    truth = true_effect(cell)
    per_campaign = (cell.contrasts + 1) * cell.seeds * cell.items * (cell.samples if cell.metric == "bounded" else 1)
    block = max(1, min(replicates, _BLOCK_VALUES // per_campaign))
    confirmed = refused = covered = 0.0
    other: dict[str, float] = {}
    done = 0
    while done < replicates:
        n = min(block, replicates - done)
        y, within = campaigns(cell, n, rng)
        second = campaigns(replace(cell, effect=0.0), n, rng)[0] if cell.minus_suite else None
        low, high, guarded, e = ours(y, second, cell)
        confirmed += float((guarded > 0).any(-1).sum())
        refused += float(((low > 0) & (guarded <= 0)).any(-1).sum())
        covered += float(((low <= truth) & (truth <= high)).all(-1).sum())
        limits = others(y, within, cell) | {"two-way, Satterthwaite": satterthwaite(e)[:, 0]}
        for name, limit in limits.items():
            other[name] = other.get(name, 0.0) + float((limit > 0).sum())
        done += n
    rates = {name: count / replicates for name, count in other.items()}
    return Result(confirmed / replicates, refused / replicates, covered / replicates, rates, replicates)


def cells() -> dict[str, Cell]:
    """Every design of the table by name."""
    table: dict[str, Cell] = {}
    sizes = [(50, 1), (200, 4), (1000, 1), (50, 16), (200, 16), (1000, 4)]
    turn = 0
    for metric in ("continuous", "bounded", "binary"):
        for kind in ("normal", "t3", "skewed"):
            for s in (3, 5, 8, 16):
                items, samples = sizes[turn % len(sizes)]
                if s == 16 and samples == 16:
                    samples = 4
                correlation = (0.0, 0.6)[turn // 2 % 2]
                name = f"paired, {metric}, {kind}" + (", correlated" if correlation else "")
                table[f"{name} | {s}+{s} | {items}×{samples}"] = Cell(
                    s, None, items, samples, metric, kind, True, correlation
                )
                turn += 1
    for kind in ("normal", "t3", "skewed"):
        for a, b in ((3, 3), (5, 5), (8, 8), (3, 8), (8, 3), (16, 5)):
            table[f"other seeds, {kind} | {a}+{b} | 200×4"] = Cell(a, b, 200, 4, seed_effects=kind, shared=False)
        for s in (3, 5, 8, 16):
            table[f"frozen base, {kind} | {s}+0 | 200×4"] = Cell(s, 0, 200, 4, seed_effects=kind)
        table[f"lost run, {kind}, correlated | 8+7 | 200×4"] = Cell(8, lost=1, seed_effects=kind, correlation=0.6)
    for a, kind, correlation in ((3, "normal", 0.0), (5, "skewed", 0.6), (8, "t3", 0.0)):
        name = f"half of the seeds shared, {kind}" + (", correlated" if correlation else "")
        table[f"{name} | {a}+{a} | 200×4"] = Cell(a, seed_effects=kind, correlation=correlation, apart=a // 2)
    table["10 % of cells missing, t3 | 5+5 | 200×4"] = Cell(5, missing=0.1, seed_effects="t3")
    table["30 % of cells missing, binary | 8+8 | 50×4"] = Cell(8, None, 50, 4, "binary", missing=0.3)
    table["5 items per passage | 8+8 | 200×4"] = Cell(8, per_group=5, seed_sd=0.005)
    for s in (3, 5, 8):
        table[f"seed noise beside differing items | {s}+{s} | 50×16"] = Cell(s, None, 50, 16, seed_sd=0.03)
    table["tiny seed effects | 3+3 | 50×1"] = Cell(3, None, 50, 1, seed_sd=0.0)
    table["tiny seed effects, binary | 5+5 | 50×1"] = Cell(5, None, 50, 1, "binary", seed_sd=0.0)
    table["difference in differences | 5+5 | 200×4"] = Cell(5, minus_suite=True)
    for s, kind in ((3, "normal"), (5, "t3"), (8, "skewed")):
        table[f"12 contrasts (Holm), {kind} | {s}+{s} | 50×4"] = Cell(s, None, 50, 4, seed_effects=kind, contrasts=12)
    table["12 contrasts (Holm), frozen base, skewed | 8+0 | 50×4"] = Cell(
        8, 0, 50, 4, seed_effects="skewed", contrasts=12
    )
    return table


def limits() -> dict[str, Cell]:
    """Designs beyond what a verdict promises, so that a reader knows how it fails."""
    table: dict[str, Cell] = {}
    for s in (3, 5, 8):
        table[f"frozen base, very skewed | {s}+0 | 200×4"] = Cell(s, 0, seed_effects="very skewed", seed_sd=0.05)
    for kind in ("normal", "skewed"):
        for s in (3, 5, 8, 16):
            name = f"candidate 4 times as unstable as baseline, {kind} | {s}+{s} | 200×4"
            table[name] = Cell(s, seed_effects=kind, instability=4.0)
    return table


def table_lines(designs: dict[str, Cell], replicates: int, effect_size: float = 0.04) -> list[str]:
    """The Markdown table of `designs`, printed row by row as it grows."""
    head = [
        "| design | seeds | items × samples | false CONFIRMED % | refused % | coverage % | power % "
        "| pooled completions % | prompts only % | runs per prompt % | two-way, Satterthwaite % |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in head:
        print(line, flush=True)
    lines = list(head)
    for name, cell in designs.items():
        null = run(cell, replicates)
        real = run(replace(cell, effect=effect_size), max(200, replicates // 4))
        flag = "" if null.confirmed <= ALPHA / 2 + 2 * null.error else " **over**"
        values = [null.confirmed, null.refused, null.coverage, real.confirmed, *null.other.values()]
        shown = [f"{100 * value:.1f}" for value in values]
        shown[0] += f" ± {100 * null.error:.1f}{flag}"
        lines.append("| " + " | ".join([*(part.strip() for part in name.split("|")), *shown]) + " |")
        print(lines[-1], flush=True)
    return lines


def write(name: str, lines: list[str]) -> None:
    """Put a table between its markers in docs/statistics.md."""
    begin, end = (mark.format(name) for mark in MARKS)
    before, rest = DOCUMENT.read_text().split(begin)
    _, after = rest.split(end)
    DOCUMENT.write_text(f"{before}{begin}\n{chr(10).join(lines)}\n{end}{after}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    tables = {
        name: table_lines(designs, options.replicates)
        for name, designs in (("validity", cells()), ("limits", limits()))
    }
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    if options.write:
        for name, lines in tables.items():
            write(name, lines)


if __name__ == "__main__":
    main()
