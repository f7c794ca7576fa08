"""Judges that are proven, and those that are refused."""

from pathlib import Path

import pytest

from finetrial.errors import UserError
from finetrial.grade.config import GraderConfig
from finetrial.grade.judge_config import JudgeConfig
from finetrial.judge.grader import JudgeGrader
from finetrial.judge.selftest import NOTHING, SelfTest, chosen, gold_answer, self_test, wrong_answer
from finetrial.records import Task
from judge_server import KEY, JudgeServer, fair, part, serving

pytest.importorskip("openai", reason="needs the package openai (extra `judge`)")


def ask(text: str, reference: str, **more) -> Task:
    return Task(text, text, ({"role": "user", "content": text},), reference, **more)


NUMBERS = [ask(f"What is {i} plus {i}?", str(2 * i)) for i in range(20)]
CHOICE = ask("Which?", "B", meta={"choices": {"A": "red", "B": "blue"}})
WHY = [ask("Why is the sky blue?", "It scatters blue light", gold="Because air scatters blue light."),
       ask("Why is grass green?", "Chlorophyll", gold="Chlorophyll reflects green.")]  # fmt: skip


def tried(rule, tmp_path: Path, tasks=tuple(NUMBERS), **changed) -> SelfTest:
    with serving(rule) as server, opened(server, tmp_path, **changed) as judge:
        return self_test(judge, tasks)


def opened(server: JudgeServer, tmp_path: Path, **changed) -> JudgeGrader:
    settings = {"model": "judge", "base_url": server.url, "retries": 0, **changed}
    return JudgeGrader(GraderConfig(kind="judge", judge=JudgeConfig.model_validate(settings)), tmp_path)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_answers_of_known_worth():
    assert gold_answer(NUMBERS[3]) == "6"
    assert wrong_answer(NUMBERS[3], NUMBERS) == "Answer: 20"
    assert wrong_answer(ask("?", "50 %"), ()) == "Answer: 152%"
    assert wrong_answer(ask("?", "2.5 m/s"), ()) == "Answer: 9.5 m/s"
    assert (gold_answer(CHOICE), wrong_answer(CHOICE, ())) == ("Answer: B. blue", "Answer: A. red")
    assert wrong_answer(WHY[0], WHY) == "Chlorophyll reflects green."
    assert wrong_answer(WHY[0], [WHY[0]]) == NOTHING


def test_the_tasks_are_chosen_by_content():
    some = chosen(NUMBERS, 5)
    assert chosen([*reversed(NUMBERS), *NUMBERS], 5) == some
    assert len({task.id for task in some}) == 5


def test_a_fair_judge_passes(tmp_path: Path):
    found = tried(fair, tmp_path)
    assert found.passed
    assert [(check.n, check.as_wanted, check.share) for check in found.checks] == [(12, 12, 1)] * 3 + [(24, 24, 1)]
    facts = found.facts()
    assert facts["passed"]
    assert facts["checks"][0]["check"] == "gold answers at the top"


def test_a_fair_judge_of_pairs_passes(tmp_path: Path):
    found = tried(fair, tmp_path, kind="pairwise")
    assert found.passed
    assert [check.n for check in found.checks] == [12, 12, 12, 24]
    assert "both orders" in found.checks[3].check


GENEROUS = '{"score": 10}'


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda _, __: GENEROUS, "wrong answers at the bottom: 0 of 12.*empty answers at the bottom: 0 of 12"),
        (lambda _, __: '{"score": 1}', "gold answers at the top: 0 of 12"),
        (lambda _, __: "no idea", r"gold answers at the top: 0 of 12, at least 90% wanted \(12 without a grade\)"),
        (lambda prompt, _: GENEROUS if "<answer>\n(the" in prompt else fair(prompt), "empty answers at the bottom: 0"),
        (lambda prompt, number: GENEROUS if number >= 36 else fair(prompt), "alike when asked again: 12 of 24"),
    ],
)
def test_a_judge_that_cannot_judge_is_refused(rule, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        tried(rule, tmp_path, concurrency=1)
    allowed = tried(rule, tmp_path, concurrency=1, self_test={"allow_failure": True})
    assert not allowed.passed
    assert not allowed.facts()["passed"]


def test_a_judge_that_favours_the_first_answer_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"gold answers win over wrong ones: 0.*both orders: 0 of 24"):
        tried(lambda _, __: '{"verdict": "A"}', tmp_path, kind="pairwise")


def test_a_judge_that_never_sees_the_question_cannot_be_made(tmp_path: Path):
    """A judge that is shown an answer and a letter alone credits answers that name no letter."""
    with pytest.raises(UserError, match="does not show question, options"):
        tried(fair, tmp_path, [CHOICE], template="{{ reference }}: {{ answer }}")


def test_choices_and_prose_are_tried_too(tmp_path: Path):
    def rule(prompt: str, _: int) -> str:
        wanted = {"Which?": "Answer: B.", "Why is the sky blue?": "air", "Why is grass green?": "Chlorophyll"}
        good = wanted[part(prompt, "question")] in part(prompt, "answer")
        return GENEROUS if good else '{"score": 1}'

    assert tried(rule, tmp_path, [CHOICE, *WHY]).passed


def test_a_test_that_could_not_be_made_is_never_allowed(tmp_path: Path):
    with serving(fair) as server:
        server.fault = lambda number: ("status", 500) if number > 4 else None
        with (
            opened(server, tmp_path, self_test={"allow_failure": True}) as judge,
            pytest.raises(UserError, match="not all requests were answered"),
        ):
            self_test(judge, NUMBERS)
    assert tried(fair, tmp_path).passed


def test_a_test_is_made_once(tmp_path: Path):
    with serving(fair) as server:
        for _ in range(2):
            with opened(server, tmp_path) as judge:
                self_test(judge, NUMBERS)
        assert len(server.asked) == 3 * 12 + 2 * 12
