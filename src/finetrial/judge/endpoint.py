"""A judge's server: asked, waited for, asked again; within a budget; its key told to nobody.

The key is read from the environment when the endpoint is opened and leaves only in the header of a request. Whatever
comes back (replies, messages of errors) has it cut out, and no exception that carries a request is passed on.
"""

import email.utils
import importlib
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from finetrial.errors import UserError, nearest
from finetrial.grade.judge_config import JudgeConfig
from finetrial.seeds import stream

DEFAULT_KEY = "OPENAI_API_KEY"
AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 that pass; all from 500 on do too."""
GIVE_UP = 3
"""Times `concurrency`: so many requests that failed in a row end the asking."""
TOLD = 200
"""Characters of a server's message that a reason quotes."""


class Unanswered(Exception):
    """The judge gave no reply, for a reason that may pass; nothing was judged."""


@dataclass(frozen=True)
class Reply:
    """What a judge wrote."""

    text: str
    is_cut: bool
    """It reached the limit of tokens."""
    served: str
    prompt_tokens: int
    completion_tokens: int


class Endpoint:
    """One judge behind its server; shared by threads."""

    def __init__(self, config: JudgeConfig):
        """Open the connection; nothing is sent yet.

        Raises:
            UserError: the package `openai` is missing, or the environment lacks the base URL or the key.
        """
        self.config = config
        self._library = _library()
        self._key = _key(config.key_variable)
        self.url = config.base_url or os.environ.get(config.base_url_variable, "")
        if not self.url:
            raise UserError(
                f"judge {config.model}: no server; expected judge.base_url or the environment variable "
                f"{config.base_url_variable}, such as http://localhost:8000/v1"
            )
        self._client = self._library.OpenAI(
            base_url=self.url, api_key=self._key or "none", max_retries=0, timeout=config.timeout_s
        )
        self.requests = self.retried = self.tokens = 0
        self._failed_in_a_row = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._not_before = 0.0
        self._is_checked = False

    def close(self) -> None:
        """End the connection; threads that wait to try again stop waiting."""
        self._closed.set()
        self._client.close()

    def check(self) -> None:
        """Ask the server for its models, before many requests fail one by one.

        Raises:
            UserError: no server answers, it refuses the key, or it lists only models with names like the one wanted.
        """
        if self._is_checked:
            return
        library, model = self._library, self.config.model
        try:
            names = [found.id for found in self._client.models.list()]
        except (library.AuthenticationError, library.PermissionDeniedError):
            raise UserError(self._refused()) from None
        except library.APIConnectionError:
            raise UserError(
                f"judge {model}: no server answers at {self.url}; expected one that speaks the OpenAI protocol"
            ) from None
        except (library.APIError, ValueError):
            names = []  # some servers do not list their models
        meant = nearest(model, names) if model not in names else ""
        if meant:  # without a likeness it may still be served: some servers list what they have, not what they load
            raise UserError(f"judge {model}: {self.url} serves no such model{meant}; there are {sorted(names)[:20]}")
        self._is_checked = True

    def ask(self, messages: Sequence[dict[str, str]], seed: int) -> Reply:
        """The reply to a conversation.

        429, 5xx, timeouts, cut connections and answers that are not of the protocol are tried again after waits that
        double, or as long as the server's Retry-After asks, up to `longest_wait_s`; a wait that the server asks for
        holds for all threads.

        Raises:
            Unanswered: the budget is spent, the tries are used up, or the server refuses this conversation.
            UserError: the server refuses the key, or has no such model.
        """
        reason = ""
        for attempt in range(self.config.retries + 1):
            self._wait_for_turn()
            self._spend()
            try:
                reply = self._try(messages, seed)
            except _TryAgain as failure:
                reason, asked = str(failure), failure.wait_s
            else:
                with self._lock:
                    self._failed_in_a_row = 0
                    self.tokens += reply.prompt_tokens + reply.completion_tokens
                return reply
            if asked is not None and asked > self.config.longest_wait_s:
                raise self._failed(f"{reason}; the server asks to wait {asked:g} s")
            if attempt < self.config.retries:
                jitter = 0.25 * float(stream(seed, "judge/wait", attempt).random())
                doubled = self.config.wait_s * 2.0**attempt * (1 - jitter)
                self._pause(min(asked if asked is not None else doubled, self.config.longest_wait_s), asked is not None)
                with self._lock:
                    self.retried += 1
        raise self._failed(f"{reason}, after {self.config.retries + 1} tries")

    def redacted(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self._key, "[key]") if self._key else text

    def _try(self, messages: Sequence[dict[str, str]], seed: int) -> Reply:
        library, config = self._library, self.config
        request: dict[str, Any] = {"model": config.model, "messages": list(messages)}
        request[config.max_tokens_field] = config.max_tokens
        if config.temperature is not None:
            request["temperature"] = config.temperature
        if config.temperature:
            request["seed"] = seed % 2**31
        try:
            # Not `chat.completions.create`: checking every field of a request against its types, only to send it as it
            # is, takes a quarter of the library's processor time. What comes back is read by `_reply` either way.
            body = self._client.post("/chat/completions", cast_to=str, body=request)
        except (library.AuthenticationError, library.PermissionDeniedError):
            raise UserError(self._refused()) from None
        except library.NotFoundError as error:
            told = self._told(error)
            raise UserError(f"judge {config.model}: {self.url} cannot complete chats with it: {told}") from None
        except library.APITimeoutError:
            raise _TryAgain(f"no answer within {config.timeout_s:g} s") from None
        except library.APIConnectionError:
            raise _TryAgain("the connection failed or was cut") from None
        except library.APIStatusError as error:
            told, status = self._told(error), error.status_code
            if status in AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise _TryAgain(told, _retry_after(error.response.headers)) from None
            raise self._failed(f"the server refuses the request: {told}") from None
        return _reply(self.redacted(body))

    def _spend(self) -> None:
        """Take one request out of the budget."""
        config = self.config
        with self._lock:
            if config.budget_requests is not None and self.requests >= config.budget_requests:
                raise Unanswered(f"the budget of {config.budget_requests} requests is spent")
            if config.budget_tokens is not None and self.tokens >= config.budget_tokens:
                raise Unanswered(f"the budget of {config.budget_tokens} tokens is spent")
            if self._failed_in_a_row >= GIVE_UP * config.concurrency:
                raise Unanswered(f"the server failed {self._failed_in_a_row} times in a row; no more was asked")
            self.requests += 1

    def _wait_for_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0 and not self._closed.wait(left):
            pass
        if self._closed.is_set():
            raise Unanswered("the launch ended first")

    def _pause(self, seconds: float, is_for_all: bool) -> None:
        if is_for_all:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + seconds)
        else:
            self._closed.wait(seconds)

    def _failed(self, reason: str) -> Unanswered:
        with self._lock:
            self._failed_in_a_row += 1
        return Unanswered(reason)

    def _refused(self) -> str:
        return f"judge {self.config.model}: {self.url} refuses the key of the environment variable " + (
            self.config.key_variable
        )

    def _told(self, error: Any) -> str:
        text = " ".join(self.redacted(str(error.message)).split())
        return f"{error.status_code} {text[:TOLD]}"


class _TryAgain(Exception):
    """A request failed in a way that may pass."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


def _reply(body: str) -> Reply:
    """The body of an answer of the protocol.

    Raises:
        _TryAgain: it is no JSON, or has not the protocol's shape.
    """
    try:
        answer = json.loads(body)
    except ValueError:
        raise _TryAgain("the server's answer is no JSON") from None
    try:
        choice = answer["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
        usage = answer.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        if not isinstance(content, str | None):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise _TryAgain("the server's answer has not the shape of the protocol") from None
    return Reply(content or "", finish == "length", str(answer.get("model") or ""), counts[0], counts[1])


def _retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait; None where it does not say."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        parsed = email.utils.parsedate_tz(value)
    return None if parsed is None else max(0.0, email.utils.mktime_tz(parsed) - time.time())


def _library() -> Any:
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise UserError("judges need the package openai: pip install 'finetrial[judge]'") from error


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key and variable != DEFAULT_KEY:
        raise UserError(f"the environment variable {variable} is not set; expected the judge's API key there")
    return key
