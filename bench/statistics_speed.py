"""How fast and in how much memory results are read and judged, on one core, each case in a process of its own.

    python bench/statistics_speed.py [--rows 10000000] [--json]

Prints seconds, processor seconds and peak memory beside what is required (of wall time). Data are simulated and
written to a temporary folder.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetrial import seeds
from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.judge import judge
from finetrial.analyze.power import Prices, Variances, cheapest
from finetrial.analyze.readers.read import read
from finetrial.analyze.resample import bootstrap, difference
from finetrial.analyze.runs.significance import fisher

CONDITIONS, SEEDS, SAMPLES = 16, 8, 16


def write_outcomes(path: Path, rows: int, whole: bool) -> None:
    """Simulated outcomes as Parquet; `whole` has every column of a campaign's file, else only the required ones."""
    items = rows // (CONDITIONS * SEEDS * SAMPLES)
    rng = seeds.stream(0, "bench", "outcomes")
    names = pa.array([f"item-{i:06d}" for i in range(items)])
    item = pa.DictionaryArray.from_arrays(np.repeat(np.arange(items, dtype=np.int32), SAMPLES), names).cast(pa.string())
    n = items * SAMPLES
    sample = pa.array(np.tile(np.arange(SAMPLES), items))
    writer = None
    for condition in range(CONDITIONS):
        for seed in range(SEEDS):
            rate = 0.4 + 0.01 * condition + 0.01 * rng.standard_normal()
            columns = {"condition": pa.array([f"recipe-{condition:02d}"] * n), "seed": pa.array(np.full(n, seed))}
            columns |= {"item": item, "sample": sample, "value": pa.array((rng.random(n) < rate).astype(float))}
            if whole:
                constant = {"suite": "gold", "metric": "correct", "suite_hash": "ab" * 32}
                columns |= {name: pa.array([value] * n) for name, value in constant.items()}
                columns |= {"weight": pa.array(np.ones(n)), "group": pa.nulls(n, pa.string())}
            batch = pa.table(columns)
            writer = writer or pq.ParquetWriter(path, batch.schema)
            writer.write_table(batch)
    if writer is not None:
        writer.close()


def read_and_judge(path: Path) -> str:
    """Read a file of outcomes and judge every recipe against the first."""
    reading = read([path])
    suite, metric = reading.table.suites[0], reading.table.metrics[0]
    contrasts = [
        Contrast(candidate=name, baseline="recipe-00", suite=suite, metric=metric, better="higher")
        for name in reading.table.conditions[1:]
    ]
    findings = judge(reading.table, contrasts, AnalysisConfig(), primary_metric=metric)
    return f"{reading.table.report.rows:,} rows, {len(findings)} contrasts"


def resample(_: Path) -> str:
    """20,000 hierarchical resamples of 8 + 8 seeds × 1,000 items × 16 samples."""
    rng = seeds.stream(0, "bench", "resample")
    arms = [rng.random((SEEDS, 1000, SAMPLES)) < 0.4 + shift for shift in (0.0, 0.02)]
    cells = [arm.mean(-1) for arm in arms]
    found = bootstrap(cells[1], cells[0], difference, rng, paired=False, resamples=20_000)
    return f"interval {found.ci[0]:.4f} to {found.ci[1]:.4f} ({found.method})"


def large_fisher(_: Path) -> str:
    """Fisher's exact test of 16,000 completions per arm."""
    return f"p = {fisher(8200, 16_000, 8000, 16_000)['p_value']:.4f}"


def plan(_: Path) -> str:
    """The cheapest of some hundred thousand designs."""
    best = cheapest(Variances(1e-4, 4e-3, 1e-3, 0.1), 0.02, Prices(1.0, 1e-3, 1e-4))
    return "none" if best is None else f"{best.seeds} seeds × {best.items} items × {best.samples} samples"


CASES: dict[str, tuple[Callable[[Path], str], float | None, float | None]] = {
    "read and judge outcomes.parquet": (read_and_judge, 15.0, 3.0),
    "read and judge a bare table": (read_and_judge, 15.0, 3.0),
    "20,000 resamples": (resample, 2.0, 1.0),
    "Fisher exact, 16,000 per arm": (large_fisher, None, None),
    "cheapest design": (plan, None, None),
}
"""Case -> (function, seconds allowed, GiB allowed)."""
FILES = {"read and judge outcomes.parquet": "outcomes.parquet", "read and judge a bare table": "bare.parquet"}


def measure(name: str, folder: Path) -> dict[str, object]:
    """Run one case here; imports are not counted, memory is the peak of the whole process."""
    start, busy = time.perf_counter(), time.process_time()
    told = CASES[name][0](folder / FILES.get(name, ""))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"case": name, "seconds": seconds, "cpu_seconds": busy, "peak_gib": peak, "result": told}


def main() -> None:
    """Measure every case in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.folder)))
        return
    one_core = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        write_outcomes(Path(folder) / "outcomes.parquet", options.rows, whole=True)
        write_outcomes(Path(folder) / "bare.parquet", options.rows, whole=False)
        for name in CASES:
            command = [sys.executable, __file__, "--case", name, "--folder", folder]
            done = subprocess.run(command, env=one_core, capture_output=True, text=True, check=True)
            measured.append(json.loads(done.stdout))
    if options.json:
        print(json.dumps(measured, indent=2))
        return
    print(
        "| case | seconds | CPU seconds | allowed | peak GiB | allowed | result |\n|---|---:|---:|---:|---:|---:|---|"
    )
    for row in measured:
        seconds, gib = ("" if value is None else f"{value:g}" for value in CASES[row["case"]][1:])
        numbers = [f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", seconds, f"{row['peak_gib']:.2f}", gib]
        print(f"| {row['case']} | {' | '.join(numbers)} | {row['result']} |")


if __name__ == "__main__":
    main()
