"""A result is visible when it is whole, and not before."""

import json
import multiprocessing as mp
import os
import signal
from pathlib import Path

import pytest

from finetrial.store import DONE, Store, write_json, write_text


def test_a_finished_artefact_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.put("train", "k1", {"seconds": 1.5}) as folder:
        (folder / "weights").write_bytes(b"abc")
        assert not store.has("train", "k1")
    assert store.has("train", "k1")
    assert store.record("train", "k1") == {"seconds": 1.5}
    assert (store.path("train", "k1") / "weights").read_bytes() == b"abc"
    assert store.keys("train") == ["k1"]


def test_a_failure_inside_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(TypeError, match="object"), store.put("train", "k1", {"not json": object()}) as folder:
        (folder / "weights").write_bytes(b"abc")
    assert not store.has("train", "k1")
    assert list((tmp_path / "train").iterdir()) == []


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.put("train", "k1", {"writer": 1}):
        pass
    with store.put("train", "k1", {"writer": 2}):
        pass
    assert store.record("train", "k1") == {"writer": 1}


def test_a_folder_without_its_marker_does_not_exist_and_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.path("train", "k1").mkdir(parents=True)
    (store.path("train", "k1") / "half").write_text("x")
    assert not store.has("train", "k1")
    assert store.keys("train") == []
    with store.put("train", "k1", {}) as folder:
        (folder / "whole").write_text("y")
    assert [p.name for p in sorted(store.path("train", "k1").iterdir())] == [DONE, "whole"]


def _write_slowly(root: Path, started: "mp.synchronize.Event") -> None:
    with Store(root).put("train", "k1", {}) as folder:
        (folder / "half").write_text("x")
        started.set()
        signal.pause()


def test_a_killed_writer_leaves_nothing_visible(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    started = context.Event()
    writer = context.Process(target=_write_slowly, args=(tmp_path, started))
    writer.start()
    assert started.wait(60)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join(60)
    store = Store(tmp_path)
    assert not store.has("train", "k1")
    assert store.keys("train") == []
    with store.put("train", "k1", {}):
        pass
    assert store.has("train", "k1")


def test_json_is_strict_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    write_text(path, "{}")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
