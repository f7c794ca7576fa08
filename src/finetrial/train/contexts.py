"""Signals that end a run at the next step, and recomputed activations: contexts around a training loop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint as recompute
from transformers.modeling_layers import GradientCheckpointingLayer

from finetrial.errors import UserError


@contextlib.contextmanager
def termination() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second signal acts as it did before. Only the main thread can."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(*_: object) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()


@contextlib.contextmanager
def recomputed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Recompute each decoder layer in the backward pass. Only the layers' own training flag is raised: everything
    inside them stays in evaluation mode, so the base's own dropout remains off.

    Raises:
        UserError: the model does not support it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if wanted else []
    if wanted and not layers:
        raise UserError(f"training.gradient_checkpointing: {type(model).__name__} does not support it")
    rerun = partial(recompute, use_reentrant=False, preserve_rng_state=False)
    for layer in layers:
        layer.gradient_checkpointing = layer.training = True
        object.__setattr__(layer, "_gradient_checkpointing_func", rerun)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False
