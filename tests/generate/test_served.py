"""Completions from a server on this machine that answers as OpenAI does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from finetrial.errors import UserError
from finetrial.generate import served as module
from finetrial.generate.config import SamplingConfig
from finetrial.generate.served import served

pytest.importorskip("openai", reason="needs the package openai (extra `judge`)")

PROMPTS = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
NOISE = [[11, 12], [2**40 + 5], []]


class Server(ThreadingHTTPServer):
    """Remembers what it was asked; answers with what the user said and the seed."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict] = []
        self.keys: set[str] = set()
        self.failures: list[int] = []
        """Statuses of the next answers."""
        self.lists_models = True
        self.refuses: str | None = None
        """User's text that is a bad request."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if status >= 429:
            self.send_header("retry-after", "0.01")
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if not self.server.lists_models:
            return self.answer(405, {"error": {"message": "no list"}})
        if self.headers["authorization"] == "Bearer wrong":
            return self.answer(401, {"error": {"message": "bad key"}})
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "me"} for name in ("base", "adapter-0")]
        return self.answer(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(request)
            self.server.keys.add(self.headers["authorization"])
            failure = self.server.failures.pop(0) if self.server.failures else None
        if failure:
            return self.answer(failure, {"error": {"message": "not now"}})
        text = request["messages"][-1]["content"]
        if text == self.server.refuses:
            return self.answer(400, {"error": {"message": "too long"}})
        if request["model"] not in ("base", "adapter-0"):
            return self.answer(404, {"error": {"message": "no such model"}})
        silent = text == "silence"
        message = {"role": "assistant", "content": None if silent else f"{text} {request['seed']}"}
        choice = {"index": 0, "message": message, "finish_reason": "length" if text == "two" else "stop"}
        return self.answer(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [choice],
                "usage": {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10},
            },
        )

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_every_prompt_gets_its_samples_in_order(server):
    found = served(server.url, "adapter-0", PROMPTS, NOISE, SamplingConfig(max_tokens=9, temperature=0.5, stop=("\n",)))
    assert [[one.text for one in ones] for ones in found] == [["one 11", "one 12"], [f"two {(2**40 + 5) % 2**31}"], []]
    assert [[one.finished for one in ones] for ones in found] == [[True, True], [False], []]
    assert found[0][0].tokens == 7
    assert {key: server.asked[0][key] for key in ("model", "max_tokens", "temperature", "top_p", "stop")} == {
        "model": "adapter-0",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 1.0,
        "stop": ["\n"],
    }
    assert "top_k" not in server.asked[0]
    assert "min_p" not in server.asked[0]


def test_filters_that_openai_lacks_are_sent_where_they_are_set(server):
    served(server.url, "base", PROMPTS[:1], [[1]], SamplingConfig(top_k=5, min_p=0.1))
    assert (server.asked[0]["top_k"], server.asked[0]["min_p"]) == (5, 0.1)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(server, status):
    server.failures = [status]
    found = served(server.url, "base", PROMPTS, NOISE, SamplingConfig())
    assert all(one.text for ones in found for one in ones)
    assert len(server.asked) == 4


def test_a_completion_that_never_came_is_missing_with_its_reason(server):
    server.failures = [500, 500, 500]
    server.refuses = "two"
    prompts = [*PROMPTS[:2], [{"role": "user", "content": "silence"}]]
    found = served(server.url, "base", prompts, [[1], [1], [1]], SamplingConfig(), concurrency=1, retries=2)
    assert [ones[0].text for ones in found] == [None, None, None]
    assert "InternalServerError" in found[0][0].reason
    assert "too long" in found[1][0].reason
    assert "no text" in found[2][0].reason


def test_the_key_comes_from_the_environment_alone(server, monkeypatch):
    served(server.url, "base", PROMPTS[:1], [[1]], SamplingConfig())
    monkeypatch.setenv("MY_KEY", "secret")
    served(server.url, "base", PROMPTS[:1], [[1]], SamplingConfig(), key_variable="MY_KEY")
    assert server.keys == {"Bearer none", "Bearer secret"}
    monkeypatch.setenv("MY_KEY", "wrong")
    with pytest.raises(UserError, match="refuses the API key of the environment variable MY_KEY"):
        served(server.url, "base", PROMPTS[:1], [[1]], SamplingConfig(), key_variable="MY_KEY")
    with pytest.raises(UserError, match="OTHER_KEY is not set"):
        served(server.url, "base", PROMPTS[:1], [[1]], SamplingConfig(), key_variable="OTHER_KEY")


def test_a_model_that_is_not_served_is_named_with_the_nearest(server):
    with pytest.raises(UserError, match="did you mean 'adapter-0'"):
        served(server.url, "adapter-1", PROMPTS, NOISE, SamplingConfig())
    server.lists_models = False
    with pytest.raises(UserError, match="no such model"):
        served(server.url, "adapter-1", PROMPTS, NOISE, SamplingConfig())


def test_no_server_is_said(server):
    with pytest.raises(UserError, match="no server answers at"):
        served("http://127.0.0.1:9/v1", "base", PROMPTS, NOISE, SamplingConfig(), retries=0)


def test_no_package_is_said(monkeypatch):
    monkeypatch.setattr(module.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(UserError, match=r"finetrial\[judge\]"):
        served("http://127.0.0.1:9/v1", "base", PROMPTS, NOISE, SamplingConfig())


def test_tools_answers_name_their_calls(server):
    calls = [{"name": "look", "arguments": '{"x": 1}'}, {"name": "look", "arguments": '{"x": 2}'}]
    chat = [
        {"role": "user", "content": "look twice"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "name": "look", "content": "first"},
        {"role": "tool", "name": "look", "content": "second"},
    ]
    served(server.url, "base", [chat], [[1]], SamplingConfig())
    _, assistant, first, second = server.asked[0]["messages"]
    assert [call["id"] for call in assistant["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]]
    assert assistant["tool_calls"][1]["function"] == {"name": "look", "arguments": '{"x": 2}'}
