"""The machine: what it is, and how fast it multiplies matrices of the shapes of the work, which bounds everything."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

from turns import Turns, subject
from workload import Options

PACKAGES = ("torch", "transformers", "peft", "trl", "lm_eval", "accelerate", "numpy")
TOKENS = 2048
"""Rows of the products: the tokens of a batch of 8 x 256."""
SQUARE = 2048
SECONDS = 0.3
"""Least time for which a rate is measured."""


def facts() -> list[tuple[str, str]]:
    """Name and value of what identifies the machine and the software."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name"))
    flags = next(line.partition(":")[2].split() for line in cpuinfo if line.startswith("flags"))
    wide = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        ("processor", f"{model}, {cores} cores, {wide}"),
        ("memory", f"{memory:.0f} GiB"),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("packages", ", ".join(f"{name} {version(name)}" for name in PACKAGES)),
    ]


def products(options: Options, turns: Turns) -> None:
    """Worker: products per second of the linear layers of one decoder layer, and of large square matrices."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(options.threads)
    like = {"dtype": getattr(torch, options.dtype), "device": options.device}
    shapes = options.size.linears()
    weights = [torch.randn(o, i, **like) for i, o in shapes]
    inputs = {i: torch.randn(TOKENS, i, **like) for i, _ in shapes}
    square = torch.randn(SQUARE, SQUARE, **like)

    def layer() -> float:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)
        return sum(2.0 * TOKENS * i * o for i, o in shapes)

    def large() -> float:
        torch.mm(square, square)
        return 2.0 * SQUARE**3

    layer()
    large()
    for _ in range(options.rounds):
        turns.begin()
        done = {}
        for name, work in (("layer", layer), ("square", large)):
            began, flops = time.perf_counter(), 0.0
            with turns.span(name):
                while time.perf_counter() - began < SECONDS:
                    flops += work()
            done[name] = flops
        turns.end(flops=done)
    turns.finish()


if __name__ == "__main__":
    subject({"products": products})
