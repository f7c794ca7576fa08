"""Plain lines off a terminal, a bar on one."""

import io
import re

from finetrial.evaluate.progress import Progress


def test_plain_lines_tell_name_count_loss_and_times():
    out = io.StringIO()
    with Progress("gold", 200, out, every=0.0) as progress:
        progress.update(50, 0.42331)
        progress.update(200)
    first, last = out.getvalue().splitlines()
    assert re.fullmatch(r"\[gold\] 50/200 loss 0\.4233 elapsed 0s remaining 0s", first)
    assert re.fullmatch(r"\[gold\] 200/200 elapsed 0s remaining 0s", last)


def test_plain_lines_are_rare_but_the_last_is_always_there():
    out = io.StringIO()
    with Progress("gold", 1000, out, every=60.0) as progress:
        for done in range(1, 1001):
            progress.update(done, 1.0)
    assert out.getvalue().splitlines() == ["[gold] 1000/1000 loss 1.0000 elapsed 0s remaining 0s"]


def test_remaining_time_is_extrapolated_from_this_part_of_a_resumed_run(monkeypatch):
    now = iter([0.0, 10.0, 30.0])
    monkeypatch.setattr("finetrial.evaluate.progress.time.monotonic", lambda: next(now))
    out = io.StringIO()
    progress = Progress("train", 100, out, every=0.0)
    progress.update(51)
    progress.update(53)
    assert out.getvalue().splitlines() == [
        "[train] 51/100 elapsed 10s remaining 490s",
        "[train] 53/100 elapsed 30s remaining 470s",
    ]


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with Progress("gold", 20, out) as progress:
        progress.update(20, 0.5)
    assert "gold" in out.getvalue()
    assert "20/20" in out.getvalue()
    assert "loss 0.5000" in out.getvalue()
