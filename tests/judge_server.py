"""A server on this machine that speaks the OpenAI protocol, judges by a rule, and fails on demand."""

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret-0123456789"
Fault = tuple[str, Any]
"""What happens in the place of an answer: ("status", 500), ("body", text), ("cut", None), ("slow", seconds)."""


class JudgeServer(ThreadingHTTPServer):
    """Answers with `rule(prompt, number of the request)`, unless `fault(number)` says otherwise."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, rule: Callable[[str, int], str]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.rule = rule
        self.fault: Callable[[int], Fault | None] = lambda _: None
        self.retry_after: str | None = None
        self.latency_s = 0.0
        self.served = "judge-1"
        self.names = ["judge"]
        self.finish = "stop"
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.answered: Counter[str] = Counter()
        """First prompts of conversations that got an answer."""
        self.at: list[float] = []
        """When requests came."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event."""


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, status: int, body: str) -> None:
        data = body.encode()
        head = {"content-type": "application/json", "content-length": str(len(data))}
        if status >= 400 and self.server.retry_after is not None:
            head["retry-after"] = self.server.retry_after
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "me"} for name in self.server.names]
        self.answer(200, json.dumps({"object": "list", "data": models}))

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            number = len(server.asked)
            server.asked.append(request)
            server.at.append(time.monotonic())
            server.keys.add(self.headers["authorization"])
        what, how = server.fault(number) or ("answer", None)
        if what == "status":
            echo = f"not now, and your key is {self.headers['authorization']}"
            return self.answer(how, json.dumps({"error": {"message": echo}}))
        if what == "body":
            return self.answer(200, how)
        if what == "cut":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"mess')
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        time.sleep(how if what == "slow" else server.latency_s)
        text = server.rule(request["messages"][-1]["content"], number)
        self.answer(200, completion(text, server.served, server.finish))
        with server.lock:
            server.answered[request["messages"][0]["content"]] += 1
        return None

    def log_message(self, *_: object) -> None:
        """Silence."""


def completion(text: str | None, served: str = "judge-1", finish: str = "stop") -> str:
    """An answer of the protocol."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": served, "choices": [choice], "usage": usage}
    return json.dumps(body)


@contextmanager
def serving(rule: Callable[[str, int], str]) -> Iterator[JudgeServer]:
    """A server that runs while the block does."""
    with JudgeServer(rule) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def part(prompt: str, name: str) -> str:
    """What stands inside of a tag of the built-in templates."""
    found = re.search(rf"<{name}>\n(.*?)\n</{name}>", prompt, re.DOTALL)
    return found[1] if found else ""


def fair(prompt: str, _: int = 0) -> str:
    """An honest judge of numbers: 10 where the answer ends with the reference, else 1; of a pair the one that does."""
    reference = part(prompt, "reference_answer").split()[-1]
    if "<answer_a>" in prompt:
        right = [part(prompt, name).rstrip(".").endswith(reference) for name in ("answer_a", "answer_b")]
        verdict = {(True, False): "A", (False, True): "B"}.get((right[0], right[1]), "tie")
        return json.dumps({"reason": "by the reference", "verdict": verdict})
    right = part(prompt, "answer").rstrip(".").endswith(reference)
    return json.dumps({"reason": "by the reference", "score": 10 if right else 1})
