"""Measure finetrial against its peers on this machine, print tables, and write them into docs/benchmarks.md.

    python bench/run.py [--quick] [--only sft|perplexity]

`--quick` is a smoke test on a tiny model; its figures mean nothing and are written nowhere.
"""

import argparse
import datetime
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import sft
import workload
from turns import Played, Subject, play
from workload import RANK, SMALL, Options

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest difference of a step's loss (nats per token) between trainers that do the same work."""
NLL_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-3}
"""Largest relative difference of an item's negative log-likelihood between evaluators; adapters must change it by ten
times as much (median), or the comparison would not notice an adapter that is not there."""
DEFAULTS_TOLERANCE = 5e-2
"""As LOSS_TOLERANCE, for a trainer in bfloat16 beside one in float32."""


@dataclass(frozen=True)
class Speed:
    """One subject in one cell."""

    cell: str
    threads: int
    name: str
    seconds: list[list[float]]
    """Wall and processor seconds of the full work of each round."""
    tokens: list[float]
    """Of each round."""
    flops: list[float]
    """Of each round, as far as the result needs them."""
    products: list[float]
    """FLOP/s of matrix products of the layer's shapes, measured in the same round."""
    peak: float
    """MiB."""
    imported: float
    """MiB resident before there was a model."""

    @property
    def rate(self) -> float:
        """Median tokens per second."""
        return statistics.median(t / s for t, s in zip(self.tokens, self.seconds[0], strict=True))

    @property
    def share(self) -> float:
        """Median share of the rate of matrix products that the needed operations reach."""
        columns = zip(self.flops, self.seconds[0], self.products, strict=True)
        return statistics.median(flops / seconds / rate for flops, seconds, rate in columns)

    def ratios(self, peer: "Speed", clock: int) -> list[float]:
        """Tokens per second over the peer's, round by round."""
        mine = zip(self.tokens, self.seconds[clock], strict=True)
        theirs = zip(peer.tokens, peer.seconds[clock], strict=True)
        return [(t / s) / (u / v) for (t, s), (u, v) in zip(mine, theirs, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """finetrial against a peer, with the goal for its speed (None: reported for information)."""

    what: str
    ours: Speed
    peer: Speed
    goal: float | None


def sft_cell(base: Options, data: str, quick: bool) -> tuple[list[Speed], list[Comparison]]:
    """One run and a cohort against TRL."""
    options = replace(base, data=data, block=1 if quick else 2)
    subjects = [
        Subject("finetrial, 1 run", "sft.py", "finetrial", options),
        Subject("TRL", "sft.py", "trl", options),
        Subject(f"finetrial, cohort of {sft.COHORT}", "sft.py", "cohort", replace(options, block=1, warm_up=1)),
        Subject("machine", "machine.py", "products", options),
    ]
    if data == "full":
        subjects.insert(2, Subject("TRL, its defaults", "sft.py", "trl-defaults", options))
    played = play(subjects, options.rounds)
    losses = {name: result.facts["losses"] for name, result in played.items() if name != "machine"}
    for name, values in losses.items():
        tolerance = DEFAULTS_TOLERANCE if "defaults" in name else LOSS_TOLERANCE[options.dtype]
        worst = max(abs(a - b) for a, b in zip(values, losses["TRL"], strict=False))
        if worst > tolerance:
            raise RuntimeError(f"{data} rows: losses of {name} and TRL differ by {worst}: not the same work")
        print(f"  {name}: first loss {values[0]:.6f}, largest difference from TRL's {worst:.1e}", flush=True)
    speeds = {}
    for name in losses:
        work = [turn["work"] for turn in played[name].turns]
        speeds[name] = _speed(
            f"SFT, {data} rows",
            options,
            name,
            played,
            seconds=[played[name].seconds("steps", clock) for clock in (0, 1)],
            tokens=[tokens for tokens, _, _ in work],
            flops=[options.size.training_flops(*counts, rank=RANK) for counts in work],
        )
    one, cohort = speeds["finetrial, 1 run"], speeds[f"finetrial, cohort of {sft.COHORT}"]
    comparisons = [
        Comparison(f"SFT, {data} rows: one run / TRL", one, speeds["TRL"], 1.3),
        Comparison(f"SFT, {data} rows: cohort of 8 / 8 TRL runs in sequence", cohort, speeds["TRL"], 1.5),
    ]
    if data == "full":
        peer = speeds["TRL, its defaults"]
        comparisons.append(Comparison("SFT, full rows: one run / TRL with its defaults", one, peer, None))
    return list(speeds.values()), comparisons


def perplexity_cell(base: Options, data: str, items: int, peer_adapters: int) -> tuple[list[Speed], list[Comparison]]:
    """Base and eight adapters against one item at a time and against lm-eval."""
    options = replace(base, data=data, block=items)
    peers = replace(options, adapters=peer_adapters)
    subjects = [
        Subject("finetrial", "perplexity.py", "finetrial", options),
        Subject("transformers + PEFT", "perplexity.py", "peft", peers),
        Subject("lm-eval", "perplexity.py", "lm-eval", peers),
        Subject("machine", "machine.py", "products", options),
    ]
    played = play(subjects, options.rounds)
    for name in ("transformers + PEFT", "lm-eval"):
        print(f"  {name}: {_same_likelihoods(played['finetrial'], played[name], options.dtype, name)}", flush=True)
    costs = [sft.cost(rows) for rows in options.slices()]
    models = 1 + options.adapters
    cell = f"perplexity, {data}"

    def speed(name: str, seconds: list[list[float]], source: str) -> Speed:
        return _speed(
            cell,
            options,
            name,
            {name: played[source], "machine": played["machine"]},
            seconds=seconds,
            tokens=[models * tokens for tokens, _, _ in costs],
            flops=[models * options.size.forward_flops(*counts, rank=0) for counts in costs],
        )

    speeds = [speed("finetrial", [played["finetrial"].seconds("all", clock) for clock in (0, 1)], "finetrial")]
    for name in ("transformers + PEFT", "lm-eval"):
        speeds.append(speed(name, [_all_models(played[name], options.adapters, clock) for clock in (0, 1)], name))
    merged = [[models * s for s in played["transformers + PEFT"].seconds("base", clock)] for clock in (0, 1)]
    speeds.append(speed("transformers, adapters merged", merged, "transformers + PEFT"))
    goals = {"transformers + PEFT": 2.0, "lm-eval": 2.0}
    return speeds, [
        Comparison(f"{cell}: finetrial / {peer.name}", speeds[0], peer, goals.get(peer.name)) for peer in speeds[1:]
    ]


def _all_models(played: Played, adapters: int, clock: int) -> list[float]:
    """Seconds for the base and all adapters, of which a sequential peer scores some: each takes as long as another."""
    measured = [name for name in played.turns[0]["spans"] if name != "base"]
    columns = zip(*(played.seconds(name, clock) for name in measured), strict=True)
    return [
        base + adapters * statistics.mean(times)
        for base, times in zip(played.seconds("base", clock), columns, strict=True)
    ]


def _same_likelihoods(ours: Played, peer: Played, dtype: str, name: str) -> str:
    """Compare every item under every model that the peer scored.

    Raises:
        RuntimeError: they differ, or adapters hardly matter, so that equality would prove nothing.
    """
    difference, effect = [], []
    for mine, theirs in zip(ours.turns, peer.turns, strict=True):
        scored_GK = np.array(theirs["nll"])
        difference.append(np.abs(np.array(mine["nll"])[: len(scored_GK)] / scored_GK - 1).ravel())
        effect.append(np.abs(scored_GK[1:] / scored_GK[0] - 1).ravel())
    worst, typical = float(np.concatenate(difference).max()), float(np.median(np.concatenate(effect)))
    tolerance = NLL_TOLERANCE[dtype]
    if worst > tolerance or typical < 10 * tolerance:
        raise RuntimeError(f"likelihoods of finetrial and {name} differ by {worst}, adapters change them by {typical}")
    return f"likelihoods differ by at most {worst:.1e} (relative); adapters change them by {typical:.1e} (median)"


def _speed(cell: str, options: Options, name: str, played: dict[str, Played], **measured: list[Any]) -> Speed:
    rounds = played["machine"].turns
    products = [turn["flops"]["layer"] / turn["spans"]["layer"][0] for turn in rounds]
    facts = played[name].facts
    label = cell if options.device == "cpu" else f"{cell}, {options.device}"
    return Speed(
        label, options.threads, name, products=products, peak=facts["peak"], imported=facts["imported"], **measured
    )


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown: every ratio, its goal and the memory."""
    lines = [
        "| comparison | threads | goal | speed, median (range) | processor time | bound "
        "| peak memory, MiB (ratio) | goal met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        wall, processor = c.ours.ratios(c.peer, 0), statistics.median(c.ours.ratios(c.peer, 1))
        median = statistics.median(wall)
        memory = c.ours.peak / c.peer.peak
        met = "" if c.goal is None else f"speed {_yes(median >= c.goal)}, memory {_yes(memory < 1)}"
        goal = "" if c.goal is None else f"{c.goal:.1f}"
        speed = f"**{median:.2f}** ({min(wall):.2f} to {max(wall):.2f})"
        sizes = f"{c.ours.peak:.0f} / {c.peer.peak:.0f} ({memory:.2f})"
        bound = 1 / c.peer.share
        lines.append(
            f"| {c.what} | {c.ours.threads} | {goal} | {speed} | {processor:.2f} | {bound:.2f} | {sizes} | {met} |"
        )
    return "\n".join(lines)


def speed_table(speeds: Sequence[Speed]) -> str:
    """Markdown: every subject on its own."""
    lines = [
        "| work | threads | subject | tokens/s | share of the matrix-product rate | cores busy "
        "| peak MiB | above imports |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for s in speeds:
        busy = sum(s.seconds[1]) / sum(s.seconds[0])
        lines.append(
            f"| {s.cell} | {s.threads} | {s.name} | {s.rate:,.0f} | {s.share:.0%} | {busy:.2f} "
            f"| {s.peak:.0f} | {s.peak - s.imported:.0f} |"
        )
    return "\n".join(lines)


def product_table(speeds: Sequence[Speed]) -> str:
    """Markdown: matrix-product rates beside each cell."""
    rates: dict[int, list[float]] = {}
    for s in speeds:
        rates.setdefault(s.threads, []).extend(s.products)
    lines = ["| threads | GFLOP/s, median (range) |", "|---|---|"]
    for threads, found in rates.items():
        giga = [rate / 1e9 for rate in found]
        lines.append(f"| {threads} | {statistics.median(giga):.0f} ({min(giga):.0f} to {max(giga):.0f}) |")
    return "\n".join(lines)


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def main() -> None:
    """Measure every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test on a tiny model; writes nothing")
    parser.add_argument("--only", choices=("sft", "perplexity"), help="measure one kind of work; writes nothing")
    parser.add_argument("--json", type=Path, help="also write every turn's figures to this file")
    arguments = parser.parse_args()
    loads = [os.getloadavg()[0]]
    speeds: list[Speed] = []
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="finetrial-bench-") as folder:
        small = Options(folder, size=SMALL, rounds=2, warm_up=1, adapters=2)
        options = small if arguments.quick else Options(folder)
        peer_adapters = 1 if arguments.quick else 2
        item_counts = {"long items": (415, 40), "short items": (47, 200)}
        if arguments.quick:
            item_counts = {"long items": (60, 4), "short items": (12, 10)}
        _prepare(options, item_counts, arguments.quick)
        for target in _targets(options, arguments.quick):
            for data in ("full", "ragged") if arguments.only != "perplexity" else ():
                print(f"SFT, {data} rows, {target.device}, {target.threads} threads", flush=True)
                _extend(speeds, comparisons, loads, sft_cell(target, data, arguments.quick))
            for data, (_, count) in item_counts.items() if arguments.only != "sft" else ():
                print(f"perplexity, {data}, {target.device}, {target.threads} threads", flush=True)
                _extend(speeds, comparisons, loads, perplexity_cell(target, data, count, peer_adapters))
    text = _report(speeds, comparisons, loads)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(speed) for speed in speeds], indent=1))
    if not arguments.quick and not arguments.only:
        _write(text)


def _write(text: str) -> None:
    document = DOCUMENT.read_text()
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RuntimeError(f"{DOCUMENT} has no lines '{BEGIN}' and '{END}' to write between")
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    print(f"\nwrote {DOCUMENT}")


def _prepare(options: Options, item_counts: dict[str, tuple[int, int]], quick: bool) -> None:
    size, rows = options.size, sft.BATCH * sft.steps_of(options)
    longest = 32 if quick else 256
    workload.write_model(options)
    workload.write_rows(replace(options, data="full"), workload.full_rows(rows, longest, size.vocabulary))
    ragged = workload.ragged_rows(rows, longest // 8, longest, size.vocabulary)
    workload.write_rows(replace(options, data="ragged"), ragged)
    for data, (length, count) in item_counts.items():
        items = workload.items(count * options.rounds, length, size.vocabulary)
        workload.write_rows(replace(options, data=data), items)


def _targets(options: Options, quick: bool) -> list[Options]:
    import torch

    cores = len(os.sched_getaffinity(0))
    targets = [replace(options, threads=threads) for threads in (1, 2) if threads <= cores]
    if torch.cuda.is_available():
        targets.append(replace(options, device="cuda", threads=cores))
    return targets[:1] if quick else targets


def _extend(
    speeds: list[Speed], comparisons: list[Comparison], loads: list[float], found: tuple[list[Speed], list[Comparison]]
) -> None:
    speeds += found[0]
    comparisons += found[1]
    loads.append(os.getloadavg()[0])
    print(comparison_table(found[1]), flush=True)


def _report(speeds: Sequence[Speed], comparisons: Sequence[Comparison], loads: Sequence[float]) -> str:
    facts = [
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        *machine.facts(),
        (
            "load average",
            f"{loads[0]:.1f} before, then {', '.join(f'{load:.1f}' for load in loads[1:])} after each cell",
        ),
    ]
    parts = [
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)]),
        "### Ratios",
        comparison_table(comparisons),
        "### Every subject",
        speed_table(speeds),
        "### Matrix products of one decoder layer's shapes, 2,048 tokens",
        product_table(speeds),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
