"""A stand-in for a judge: a chat server on this machine that grades explanations by a rule instead of a model.

It makes the whole way of a judged suite run offline and without a key: endpoint, prompt, reply, extraction, self-test,
repeats, stored judgments, control chart. What it says is worth as much as its rule, which is this:

1. An answer with another formula than the reference's (`F = m * a`), or another outcome (`it becomes twice as large`),
   comes to something else: the lowest score.
2. Else the score is the share of the rubric's ideas that the answer shows; an idea is a line `- wording / wording`.

It knows an item only by what the prompt shows of it, between the tags of finetrial's own template, and refuses a prompt
that shows no rubric: such a judge could not know what it grades. Put a real judge in its place with
`--set suites.explanation-judged.grader.judge.model=...` and a base URL of your own.

    python examples/local_judge.py -- finetrial run examples/domain_qa_judged.toml     # serves while the command runs
    python examples/local_judge.py --port 8765                                         # serves until it is stopped

The command finds the server by OPENAI_BASE_URL. `--bonus 2` makes the judge kinder by two points: the control chart
notices, and the campaign refuses to compare.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FORMULA = re.compile(r"\b[A-Za-z] = [A-Za-z] [*/] [A-Za-z]\b")
OUTCOME = re.compile(r"becomes ([^.]+)\.")
SCALE = re.compile(r"a number from (-?[\d.]+) to (-?[\d.]+)>")


class NotShown(Exception):
    """The prompt lacks what a judge must see."""


def shown(prompt: str, tag: str) -> str:
    """What stands between two tags of the prompt; empty where they are not there."""
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, re.DOTALL)
    return found[1].strip() if found else ""


def spelled(text: str) -> str:
    """Words and signs alone, in lower case, so that white space and case do not count."""
    return f" {' '.join(re.findall(r'[a-z0-9]+|[*/=]', text.lower()))} "


def judgment(prompt: str, bonus: float = 0.0) -> dict[str, Any]:
    """Reason and score of the answer in a prompt, by the rule above.

    Raises:
        NotShown: the prompt has no question, rubric, answer or scale.
    """
    ideas = [line[2:].split(" / ") for line in shown(prompt, "rubric").splitlines() if line.startswith("- ")]
    scale = SCALE.search(prompt)
    missing = [tag for tag in ("question", "answer") if not shown(prompt, tag)]
    missing += [] if ideas else ["rubric"]
    if missing or scale is None:
        raise NotShown(f"the prompt does not show {', '.join(missing) or 'the scale'}; nothing can be graded")
    low, high = float(scale[1]), float(scale[2])
    reference, answer = shown(prompt, "reference_answer"), shown(prompt, "answer")
    other = [
        f"it says {said[-1]}, not {right[-1]}"
        for right, said in ((part.findall(reference), part.findall(answer)) for part in (FORMULA, OUTCOME))
        if right and said and spelled(said[-1]) != spelled(right[-1])
    ]
    here = [any(spelled(wording) in spelled(answer) for wording in idea) for idea in ideas]
    if other:
        reason, share = f"The answer comes to something else: {', and '.join(other)}.", 0.0
    else:
        lacking = [idea[0] for idea, is_there in zip(ideas, here, strict=True) if not is_there]
        reason = f"It shows {sum(here)} of {len(here)} ideas" + (f", not {', '.join(lacking)}." if lacking else ".")
        share = sum(here) / len(here)
    return {"reason": reason, "score": min(high, round(low + share * (high - low) + bonus, 2))}


class Handler(BaseHTTPRequestHandler):
    """`GET /v1/models` and `POST /v1/chat/completions` of the OpenAI protocol."""

    server: Any
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """The one model that there is."""
        self.answer(200, {"object": "list", "data": [{"id": self.server.model, "object": "model"}]})

    def do_POST(self) -> None:
        """A judgment of the last message, as the reply of a chat model."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            prompt = json.loads(body)["messages"][-1]["content"]
            said = json.dumps(judgment(prompt, self.server.bonus))
        except (ValueError, LookupError, TypeError, NotShown) as error:
            return self.answer(400, {"error": {"message": f"{type(error).__name__}: {error}", "code": 400}})
        words = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(said.split())}
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        head = {"id": "local", "object": "chat.completion", "created": 0, "model": self.server.model}
        return self.answer(200, {**head, "choices": [choice], "usage": words})

    def answer(self, status: int, value: dict[str, Any]) -> None:
        """Send a JSON object."""
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is written down of a request."""


class Server(ThreadingHTTPServer):
    """Serves on loopback alone; port 0 takes a free one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, model: str = "local-judge", bonus: float = 0.0):
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.bonus = model, bonus

    @property
    def url(self) -> str:
        """Base URL of the protocol."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def main(arguments: list[str]) -> int:
    """Serve until stopped, or while a command runs; its exit status is the exit status."""
    parser = argparse.ArgumentParser(description="A chat server that grades explanations by a rule (a stand-in).")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--bonus", type=float, default=0.0, help="points added to every score: a judge that drifts")
    parser.add_argument("command", nargs="*", help="after --: runs with OPENAI_BASE_URL set")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Server(options.port, bonus=options.bonus) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            if options.command:
                return subprocess.run(options.command, env={**os.environ, "OPENAI_BASE_URL": server.url}).returncode
            print(f"judge local-judge at {server.url}", flush=True)
            thread.join()
        except KeyboardInterrupt:
            return 130
        finally:
            server.shutdown()
            thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
