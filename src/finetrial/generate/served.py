"""Sample completions from a server that speaks the OpenAI protocol (vLLM with LoRA modules, SGLang, a hosted model)."""

import importlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetrial.errors import UserError, nearest
from finetrial.generate.config import SamplingConfig
from finetrial.records import Message

if TYPE_CHECKING:
    import openai

KEY_VARIABLE = "OPENAI_API_KEY"
SEED_NUMBERS = 2**31
"""Servers differ in the seeds they take; all take these."""


@dataclass(frozen=True)
class ServedCompletion:
    """What the server gave for one sample, or why it gave nothing."""

    text: str | None
    """Without the stop text; None when the server failed to give one."""
    finished: bool
    """It ended itself rather than being cut at `max_tokens`."""
    tokens: int | None
    """Sampled tokens as the server counts them; None where it does not tell."""
    reason: str = ""
    """Why there is no text."""


def served(
    base_url: str,
    model: str,
    prompts: Sequence[Sequence[Message]],
    noise: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    key_variable: str = KEY_VARIABLE,
    concurrency: int = 16,
    retries: int = 5,
    timeout_s: float = 300.0,
) -> list[list[ServedCompletion]]:
    """Complete chats on a server; one list of completions per prompt, in the order of its keys.

    Each sample is one request with a seed of its own, so samples do not depend on how many are wanted; whether the
    server honours seeds, and whether its batches change results, is up to the server. Rate limits (429), failures of
    the server (5xx) and timeouts are tried again with growing delays.

    Args:
        base_url: such as http://localhost:8000/v1.
        model: as the server calls it; vLLM calls an adapter by the name of its LoRA module.
        prompts: conversations that the assistant continues.
        noise: for each prompt one key per wanted sample (a `seeds.derive(...)` number).
        sampling: top_k and min_p are sent only where they are set: vLLM and SGLang know them, OpenAI does not.
        key_variable: the environment variable that holds the API key. A server without keys needs none, if this is
            the default.
        concurrency: most requests at a time.
        retries: how often a request is tried again.
        timeout_s: seconds after which a request has failed.

    Raises:
        UserError: the package `openai` is missing, no server answers, it refuses the key, or it has no such model.
    """
    if len(prompts) != len(noise):
        raise ValueError(f"{len(prompts)} prompts have {len(noise)} lists of keys")
    library = _library()
    wanted = [(messages, key) for messages, keys in zip(prompts, noise, strict=True) for key in keys]
    if not wanted:
        return [[] for _ in prompts]
    key = _key(key_variable)
    with library.OpenAI(base_url=base_url, api_key=key, max_retries=retries, timeout=timeout_s) as client:
        _check(library, client, base_url, model, key_variable)
        chats = [[_chat_message(message, i) for i, message in enumerate(messages)] for messages, _ in wanted]
        with ThreadPoolExecutor(concurrency) as pool:
            futures = [
                pool.submit(_complete, library, client, model, _answered(chat), key % SEED_NUMBERS, sampling)
                for chat, (_, key) in zip(chats, wanted, strict=True)
            ]
            try:
                completions = iter([future.result() for future in futures])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [[next(completions) for _ in keys] for keys in noise]


def _library() -> Any:
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise UserError("served models need the package openai: pip install 'finetrial[judge]'") from error


def _key(variable: str) -> str:
    key = os.environ.get(variable, "")
    if not key and variable != KEY_VARIABLE:
        raise UserError(f"the environment variable {variable} is not set; expected the server's API key there")
    return key or "none"  # the client wants one, servers without keys ignore it


def _check(library: Any, client: "openai.OpenAI", url: str, model: str, variable: str) -> None:
    """Ask the server for its models, before many requests fail one by one."""
    try:
        names = [found.id for found in client.models.list()]
    except library.AuthenticationError as error:
        raise UserError(f"{url} refuses the API key of the environment variable {variable}") from error
    except library.PermissionDeniedError as error:
        raise UserError(f"{url} forbids the use of the API key of the environment variable {variable}") from error
    except library.APIConnectionError as error:
        raise UserError(f"no server answers at {url}; expected one that speaks the OpenAI protocol") from error
    except library.APIStatusError:
        return  # some servers do not list their models
    if names and model not in names:
        raise UserError(f"{url} serves no model '{model}'{nearest(model, names)}; there are {sorted(names)}")


def _complete(
    library: Any, client: "openai.OpenAI", model: str, messages: list[Any], seed: int, sampling: SamplingConfig
) -> ServedCompletion:
    beyond = {name: getattr(sampling, name) for name in ("top_k", "min_p") if getattr(sampling, name)}
    try:
        answer = client.chat.completions.create(
            model=model,
            messages=messages,
            seed=seed,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=list(sampling.stop) or None,
            extra_body=beyond or None,
        )
    except library.NotFoundError as error:
        raise UserError(f"{client.base_url} cannot complete chats of model '{model}': {error}") from error
    except library.APIError as error:
        return ServedCompletion(None, False, None, f"{type(error).__name__}: {error}")
    tokens = answer.usage.completion_tokens if answer.usage is not None else None
    if not answer.choices:
        return ServedCompletion(None, False, tokens, "the answer has no choices")
    choice = answer.choices[0]
    if choice.message.content is None or choice.finish_reason == "content_filter":
        return ServedCompletion(None, False, tokens, f"the answer has no text (finish_reason {choice.finish_reason})")
    return ServedCompletion(choice.message.content, choice.finish_reason == "stop", tokens)


def _chat_message(message: Message, place: int) -> dict[str, Any]:
    """A message as the protocol has it; calls are numbered within the conversation."""
    plain = {**message, "content": message.get("content") or ""}
    if calls := message.get("tool_calls"):
        plain["tool_calls"] = [
            {
                "id": f"call_{place}_{k}",
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for k, call in enumerate(calls)
        ]
    return plain


def _answered(chat: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each tool's message names the call that it answers: the first one that is still open."""
    open_calls: list[str] = []
    told = []
    for message in chat:
        open_calls += [call["id"] for call in message.get("tool_calls", ())]
        answers = message["role"] == "tool" and open_calls
        told.append({**message, "tool_call_id": open_calls.pop(0)} if answers else message)
    return told
