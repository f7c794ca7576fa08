"""How fast diversity is measured, beside NLTK, on one core.

    python bench/diversity.py [--rounds 7] [--write]     --write puts the table into docs/benchmarks.md

finetrial and NLTK take turns in one process; a ratio compares two turns that follow one another. The values of both
must agree within 1e-9, or the bench stops. Samples are simulated: those of a prompt are one text of 20 to 40 words of
a Zipf-like vocabulary, each with a third of its words drawn anew, so that they share n-grams as completions do.
"""

import argparse
import datetime
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nltk
import numpy as np
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from finetrial import seeds
from finetrial.evaluate.bleu import self_bleu_by_prompt, texygen_self_bleu
from finetrial.evaluate.diversity import diversity
from finetrial.evaluate.semantic import semantic_diversity, vendi

PROMPTS, SAMPLES, LOW, HIGH = 50, 10, 20, 40
ORDER = 4
GOAL = 10.0
"""Times NLTK's speed that are wanted of self-BLEU."""
CORPUS, EMBEDDED, WIDTH = 10_000, 5_000, 384
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
MARKS = ("<!-- diversity: begin -->", "<!-- diversity: end -->")


def simulated(prompts: int, samples: int) -> list[list[list[str]]]:
    """Tokens of the samples of each prompt."""
    rng = seeds.stream(0, "bench", "diversity")
    found = []
    for _ in range(prompts):
        first_T = _draw(rng, int(rng.integers(LOW, HIGH + 1)))
        texts = [np.where(rng.random(len(first_T)) < 1 / 3, _draw(rng, len(first_T)), first_T) for _ in range(samples)]
        found.append([[f"word{word}" for word in text[: rng.integers(LOW, HIGH + 1)]] for text in texts])
    return found


def _draw(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.minimum(rng.zipf(1.3, count), 5000)


def by_nltk(prompts: list[list[list[str]]]) -> list[float]:
    """Self-BLEU of each prompt, every pair of texts counted by NLTK."""
    weights, smooth = (1 / ORDER,) * ORDER, SmoothingFunction().method1
    return [
        statistics.fmean(
            sentence_bleu(texts[:i] + texts[i + 1 :], texts[i], weights, smoothing_function=smooth)
            for i in range(len(texts))
        )
        for texts in prompts
    ]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a turn gives, and its processor seconds."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def compare(rounds: int) -> tuple[float, float, list[float]]:
    """Median seconds of finetrial and of NLTK for the same self-BLEU, and the ratio in each round.

    Raises:
        RuntimeError: the values differ.
    """
    prompts = simulated(PROMPTS, SAMPLES)
    ours, theirs = [], []
    for _ in range(rounds + 1):
        have, seconds = timed(lambda: self_bleu_by_prompt(prompts, ORDER)[:, -1])
        ours.append(seconds)
        want, seconds = timed(lambda: by_nltk(prompts))
        theirs.append(seconds)
        if not np.allclose(have, want, rtol=0, atol=1e-9):
            raise RuntimeError(f"self-BLEU differs from NLTK's by up to {np.abs(have - want).max():.3g}")
    ours, theirs = ours[1:], theirs[1:]  # the first round warms up
    return statistics.median(ours), statistics.median(theirs), [t / o for o, t in zip(ours, theirs, strict=True)]


def others(rounds: int) -> list[tuple[str, float, float]]:
    """Case, median processor seconds and peak of what is allocated in MiB, of what has no peer here."""
    prompts = [[" ".join(tokens) for tokens in texts] for texts in simulated(PROMPTS, SAMPLES)]
    corpus = [" ".join(texts[0]) for texts in simulated(CORPUS, 1)]
    embedding_NH = seeds.stream(0, "bench", "embeddings").standard_normal((EMBEDDED, WIDTH)).astype(np.float32)
    cases: dict[str, Callable[[], Any]] = {
        f"all metrics of {PROMPTS} prompts × {SAMPLES} texts, without embeddings": lambda: [
            diversity(texts, vocabulary=50_000) for texts in prompts
        ],
        f"self-BLEU-{ORDER} of one corpus of {CORPUS:,} texts, each against all others": lambda: texygen_self_bleu(
            corpus, ORDER
        ),
        f"semantic diversity of {EMBEDDED:,} × {WIDTH} embeddings": lambda: semantic_diversity(embedding_NH),
        f"Vendi score of {EMBEDDED:,} × {WIDTH} embeddings": lambda: vendi(embedding_NH),
    }
    rows = []
    for name, work in cases.items():
        work()
        seconds = statistics.median(timed(work)[1] for _ in range(rounds))
        tracemalloc.start()
        work()
        rows.append((name, seconds, tracemalloc.get_traced_memory()[1] / 2**20))
        tracemalloc.stop()
    return rows


def table(rounds: int) -> list[str]:
    """The section's lines."""
    ours, theirs, ratios = compare(rounds)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    ratio = statistics.median(ratios)
    met = "met" if ratio >= GOAL else "missed"
    return [
        f"`python bench/diversity.py`, one thread, {rounds} rounds, {today}; processor seconds, medians.",
        "",
        f"Self-BLEU-{ORDER} of {PROMPTS} prompts × {SAMPLES} samples of {LOW} to {HIGH} words: finetrial "
        f"{1e3 * ours:.1f} ms, NLTK {nltk.__version__} {1e3 * theirs:.0f} ms, **{ratio:.0f} times** as fast "
        f"({min(ratios):.0f} to {max(ratios):.0f}; goal {GOAL:g}: {met}). Values agree within 1e-9. finetrial's time "
        f"gives orders 1 to {ORDER} at once, NLTK's order {ORDER} alone.",
        "",
        "| case | seconds | peak MiB allocated |",
        "|---|---:|---:|",
        *(f"| {name} | {seconds:.3f} | {peak:.0f} |" for name, seconds, peak in others(rounds)),
    ]


def write(lines: list[str]) -> None:
    """Put the section between its markers in docs/benchmarks.md."""
    before, rest = DOCUMENT.read_text().split(MARKS[0])
    _, after = rest.split(MARKS[1])
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n\n{chr(10).join(lines)}\n\n{MARKS[1]}{after}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = table(options.rounds)
    print("\n".join(lines))
    if options.write:
        write(lines)


if __name__ == "__main__":
    main()
