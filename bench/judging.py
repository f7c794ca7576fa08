"""How fast is judging? A bootstrap of whole runs and items, and ten million outcomes read and judged.

    python bench/judging.py [--rows 10000000]

Targets on one core: 20,000 resamples of 8 + 8 seeds × 1,000 items × 16 samples under 2 s and 1 GB; ten million rows
read and judged under 15 s and 3 GB. Processor time is printed beside the clock, because it does not depend on what
else the machine does. Each part runs in its own process, so that its peak memory is its own.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetrial import seeds
from finetrial.analyze.contrast import AnalysisConfig, Contrast
from finetrial.analyze.judge import judge
from finetrial.analyze.passk import pass_at_k
from finetrial.analyze.resample import bootstrap, difference
from finetrial.analyze.table import OutcomeTable


def bootstrap_part() -> str:
    """pass@4 of 8 + 8 runs on 1,000 items with 16 samples each."""
    rng = seeds.stream(0, "bench judging")
    right = [rng.binomial(16, p, (8, 1000)) for p in (0.40, 0.35)]
    n = np.full((8, 1000), 16)
    result = bootstrap(pass_at_k(n, right[0], 4), pass_at_k(n, right[1], 4), difference, rng, paired=True)
    return f"{result.resamples} resamples ({result.method}): {result.ci[0]:.4f} to {result.ci[1]:.4f}"


def write_outcomes(path: Path, rows: int) -> None:
    """`rows` outcomes of 12 conditions × 8 seeds × 1,000 items, as many samples of each as it takes."""
    shape = (12, 8, 1000, max(1, rows // 96_000))
    condition, seed, item, sample = np.unravel_index(np.arange(np.prod(shape)), shape)
    n = len(seed)

    def text(codes: np.ndarray, names: list[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(names)).dictionary_decode()

    zero = np.zeros(n)
    columns = {
        "condition": text(condition, [f"recipe{k}" for k in range(shape[0])]),
        "seed": seed,
        "suite": text(zero, ["heldout"]),
        "item": text(item, [f"problem-{k:06d}" for k in range(shape[2])]),
        "sample": sample,
        "metric": text(zero, ["correct"]),
        "value": (seeds.stream(0, "bench outcomes").random(n) < 0.4).astype(float),
        "weight": np.ones(n),
        "suite_hash": text(zero, ["ab" * 32]),
    }
    pq.write_table(pa.table(columns), path)


def judge_part(path: Path) -> str:
    """Read the outcomes and judge every condition against the first."""
    table = OutcomeTable.read(path)
    first, *rest = table.conditions
    contrasts = [Contrast(candidate=name, baseline=first, suite="heldout") for name in rest]
    findings = judge(table, contrasts, AnalysisConfig(), primary_metric="correct")
    return f"{table.report.rows} rows, {len(findings)} contrasts: {findings[0].verdict}"


def measured(part: str, path: Path) -> None:
    """Run one part in this process and print its time and peak memory."""
    clock, processor = time.perf_counter(), time.process_time()
    line = bootstrap_part() if part == "bootstrap" else judge_part(path)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{part}: {processor:.2f} s of processor time ({clock:.2f} s by the clock), {peak:.2f} GB; {line}", flush=True
    )


def main() -> None:
    """Command line; `--part` is how it calls itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--part", choices=("write", "bootstrap", "judge"))
    parser.add_argument("--path", type=Path, default=Path())
    options = parser.parse_args()
    if options.part == "write":
        write_outcomes(options.path, options.rows)
        return
    if options.part:
        measured(options.part, options.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--path", str(Path(folder) / "outcomes.parquet"), "--rows", str(options.rows)]
        for part in ("write", "bootstrap", "judge"):
            subprocess.run([sys.executable, __file__, "--part", part, *shared], check=True)


if __name__ == "__main__":
    main()
