"""Load the frozen base model: the built-in one, a folder, or a model of the hub."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from finetrial.errors import UserError
from finetrial.model.config import ModelConfig
from finetrial.model.render import chat_template
from finetrial.model.source import base_key, locate


@dataclass(frozen=True)
class Base:
    """A frozen causal language model in evaluation mode, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    key: str
    """`source.base_key`: identity by content."""
    device: torch.device
    dtype: torch.dtype
    parameters: int
    vocabulary: int
    """Rows of the output layer."""
    pad_id: int
    """Fills rows of a batch; the end-of-turn token where the tokenizer has no padding token."""
    stop_ids: tuple[int, ...]
    """Tokens that end a completion, ascending."""


def load_base(config: ModelConfig, device: str | None = None) -> Base:
    """Load a base onto `device` (default: the GPU where there is one, else the CPU).

    Parameters are frozen, the attention is torch's scaled_dot_product_attention. Numbers: `config.dtype`, where auto is
    bfloat16 on a GPU and float32 on a CPU.

    Raises:
        UserError: there is no such base (with the nearest one), it is no causal language model, or its tokenizer has
            no chat template.
    """
    key = base_key(config)
    folder = locate(config)
    try:
        facts = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"model.base: {config.base!r} cannot be read: {str(error).splitlines()[0]}") from error
    if type(facts) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"model.base: {config.base!r} is a {facts.model_type!r} model; expected a causal language model"
        )
    chat_template(tokenizer)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = _dtype(config, place)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model.requires_grad_(False)
    torch.nn.Module.to(model.eval(), place)
    stops = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = stops if isinstance(stops, list) else [stops]
    stop_ids = sorted({token for token in (*listed, tokenizer.eos_token_id) if token is not None})
    if not stop_ids:
        raise UserError(f"model.base: {config.base!r} names no end-of-turn token (eos_token)")
    return Base(
        model=model,
        tokenizer=tokenizer,
        key=key,
        device=place,
        dtype=dtype,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=model.config.get_text_config().vocab_size,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0],
        stop_ids=tuple(stop_ids),
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bar that transformers draws while it copies weights that are on the disk already."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
