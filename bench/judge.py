"""Throughput of a judge with 32 calls at a time, against the rate of the server itself.

    python bench/judge.py [--quick] [--write]

The server is a process of its own on this machine that answers every request of the protocol after a fixed time. Its
own rate is what a bare loop reaches: 32 threads with a kept connection each, which send the same bytes and read the
answer, without any library. The judge does all its work: prompts, keys, the client, reading replies, and every judgment
on the disk. Both do the same number of requests, in turns; nothing of a judge's earlier turn is remembered. `--write`
puts the table into docs/judges.md.
"""

import argparse
import asyncio
import datetime
import http.client
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

from finetrial.grade.config import GraderConfig
from finetrial.grade.judge_config import JudgeConfig
from finetrial.judge.grader import JudgeGrader
from finetrial.judge.prompts import prompt
from finetrial.records import Task

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "judges.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
CALLS = 32
GOAL = 0.9
LATENCIES_S = (0.1, 0.5, 1.0)
"""Seconds of an answer."""
GOAL_FROM_S = 0.5
"""The goal is for answers that take so long; a judge that writes a sentence takes longer."""
ROUNDS = 5


def main() -> None:
    """Measure, print, and where asked write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few requests, one round; the figures mean nothing")
    parser.add_argument("--write", action="store_true", help="put the table into docs/judges.md")
    options = parser.parse_args()
    seconds, rounds = (1.0, 1) if options.quick else (8.0, ROUNDS)
    os.environ["OPENAI_API_KEY"] = "none"
    lines = [
        "| seconds of an answer | bare loop, calls/s | judge, calls/s | share of the server's rate |",
        "|--:|--:|--:|--:|",
    ]
    shares = []
    for latency_s in LATENCIES_S:
        count = max(CALLS, round(seconds * CALLS / latency_s))
        bare, judged = measured(latency_s, count, rounds)
        ratios = sorted(mine / theirs for mine, theirs in zip(judged, bare, strict=True))
        shares.append(statistics.median(ratios))
        lines.append(
            f"| {latency_s:g} | {statistics.median(bare):.1f} | {statistics.median(judged):.1f} | "
            f"{shares[-1]:.1%} ({ratios[0]:.1%} to {ratios[-1]:.1%}) |"
        )
    told = f"{CALLS} calls at a time, median of {rounds} rounds; goal {GOAL:.0%} from {GOAL_FROM_S:g} s on."
    table = "\n".join([told, "", *lines])
    print(table)
    if options.write and not options.quick:
        today = datetime.date.today().isoformat()
        where = f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, openai {version('openai')}"
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        text = f"{before}{BEGIN}\n{table}\n\nMeasured {today}: {where}.\n{END}{after}"
        DOCUMENT.write_text(text, encoding="utf-8")
    least = min(share for share, latency_s in zip(shares, LATENCIES_S, strict=True) if latency_s >= GOAL_FROM_S)
    if not options.quick and least < GOAL:
        raise SystemExit(f"the judge reaches {least:.1%} of the server's rate; the goal is {GOAL:.0%}")


def measured(latency_s: float, count: int, rounds: int) -> tuple[list[float], list[float]]:
    """Calls per second of the bare loop and of the judge, a value per round; a first round warms up."""
    mine, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, latency_s), daemon=True)
    server.start()
    port = mine.recv()
    bare, judged = [], []
    for turn in range(rounds + 1):
        tasks = [Task(f"{turn}-{i}", "g", ({"role": "user", "content": f"What is {turn} + {i}?"},), str(turn + i))
                 for i in range(count if turn else CALLS)]  # fmt: skip
        bare.append(by_hand(port, tasks))
        judged.append(by_judge(port, tasks))
    server.terminate()
    server.join()
    return bare[1:], judged[1:]


def judge_config(port: int) -> JudgeConfig:
    """The judge that is measured."""
    return JudgeConfig(model="judge", base_url=f"http://127.0.0.1:{port}/v1", concurrency=CALLS, retries=0)


def by_judge(port: int, tasks: list[Task]) -> float:
    """Judgments per second, from opening the judge to the last grade, all of them on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with JudgeGrader(GraderConfig(kind="judge", judge=judge_config(port)), Path(folder)) as grader:
            grades = grader.grade(tasks, [f"Answer: {task.reference}" for task in tasks])
        seconds = time.perf_counter() - start
    assert all(grade.value is not None for grade in grades), grades[0]
    return len(tasks) / seconds


def by_hand(port: int, tasks: list[Task]) -> float:
    """Answers per second of a bare loop with the same requests."""
    config = judge_config(port)
    bodies = [
        json.dumps(
            {"model": "judge", "messages": [{"role": "user", "content": prompt(task, config, [task.reference])}],
             "max_tokens": 1024, "temperature": 0.0}
        ).encode()
        for task in tasks
    ]  # fmt: skip

    def loop(mine: list[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for body in mine:
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            assert connection.getresponse().read()
        connection.close()

    start = time.perf_counter()
    with ThreadPoolExecutor(CALLS) as threads:
        list(threads.map(loop, [bodies[k::CALLS] for k in range(CALLS)]))
    return len(tasks) / (time.perf_counter() - start)


def serve(told: Connection, latency_s: float) -> None:
    """Answer every request after a fixed time, until the process is ended."""
    choice = {"index": 0, "message": {"role": "assistant", "content": '{"reason": "so", "score": 7}'},
              "finish_reason": "stop"}  # fmt: skip
    usage = {"prompt_tokens": 200, "completion_tokens": 12, "total_tokens": 212}
    chat = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice], "usage": usage}
    models = {"object": "list", "data": [{"id": "judge", "object": "model", "created": 0, "owned_by": "me"}]}
    answers = {b"POST": _response(chat), b"GET": _response(models)}

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
                await reader.readexactly(int(fields.get(b"content-length", 0)))
                method = head.split(b" ", 1)[0]
                if method == b"POST":
                    await asyncio.sleep(latency_s)
                writer.write(answers[method])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()  # the client is done

    async def run() -> None:
        server = await asyncio.start_server(client, "127.0.0.1", 0, backlog=2 * CALLS)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def _response(body: dict) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data)


if __name__ == "__main__":
    main()
