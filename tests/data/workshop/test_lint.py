"""The linter finds each fault where it is, and keeps quiet where there is none."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrial.data.read import read
from finetrial.data.workshop.contamination import Contamination
from finetrial.data.workshop.language import detect
from finetrial.data.workshop.lint import CHECKS, LintConfig, TokenFacts, lint
from finetrial.data.workshop.near_duplicates import NearDuplicates
from finetrial.data.workshop.ngrams import WordHashes, growing_ngrams, ngram_hashes, split_words
from finetrial.data.workshop.secrets import find_secret
from finetrial.data.workshop.turns import turn_faults
from finetrial.errors import UserError
from finetrial.records import Example

CONFIG = LintConfig()


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def pool(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def found(facts: dict[str, Any]) -> dict[str, int]:
    return {finding["check"]: finding["rows"] for finding in facts["findings"]}


ASKED, TOLD = ("user", "What is the way?"), ("assistant", "It is this way.")

FAULTS = {
    "role": [("critic", "well"), TOLD],
    "order": [ASKED, TOLD, ("assistant", "And that one.")],
    "empty turn": [ASKED, ("assistant", " ")],
    "no answer": [ASKED, TOLD, ("user", "And then?")],
    "secret": [ASKED, ("assistant", "Use AKIAABCDEFGHIJKLMNOP for it.")],
    "shape": [ASKED, ("assistant", '{"answer": "this way"}')],
}


@pytest.mark.parametrize("check", FAULTS)
def test_a_fault_is_found_where_it_is(check: str, tmp_path: Path) -> None:
    source = pool(tmp_path / "in.jsonl", [chat(ASKED, TOLD), chat(*FAULTS[check])])
    facts = lint(source, CONFIG)
    assert found(facts) == {check: 1}
    (finding,) = facts["findings"]
    assert finding["examples"][0]["place"] == f"{source}:2"
    assert facts["errors"] == (finding["severity"] == "error")
    assert finding["severity"] == CHECKS[check][0]


def test_a_clean_pool_has_no_findings(tmp_path: Path) -> None:
    rows = [chat(("user", f"Say the number {n} in words"), ("assistant", f"That is {n} times one.")) for n in (17, 4)]
    facts = lint(pool(tmp_path / "in.jsonl", rows), CONFIG)
    assert facts["findings"] == []
    assert facts["lengths"]["output words"]["median"] == 5
    assert facts["system_prompts"] == {"distinct": 0, "rows_without": 2, "commonest": []}


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([ASKED, ("system", "Be kind."), TOLD], "message 1 is a system message, not the first"),
        ([ASKED, ASKED, TOLD], "messages 0 and 1 are both the user's"),
        ([("assistant", "Hello there.")], "message 0 is the assistant's and answers nothing"),
        ([ASKED, ("tool", "42"), TOLD], "message 1 answers a tool that nobody called"),
    ],
)
def test_orders_that_templates_bend(turns: list[tuple[str, str]], told: str) -> None:
    assert ("order", told) in list(turn_faults(chat(*turns)["messages"]))


def test_a_call_of_a_tool_is_no_empty_turn() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "look", "arguments": "{}"}]}
    turns = [dict(zip(("role", "content"), ASKED, strict=True)), call, {"role": "tool", "content": ""}]
    turns.append(dict(zip(("role", "content"), TOLD, strict=True)))
    assert list(turn_faults(turns)) == []


def test_rows_that_no_reader_takes_are_findings(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows = [chat(ASKED, TOLD), {"prompt": "a", "completion": ""}, {"odd": 1}, chat(ASKED)]
    source = pool(path, rows)
    path.write_text(path.read_text() + '{"prompt": \n')
    assert found(lint(source, CONFIG)) == {"unreadable": 2, "empty turn": 1, "no answer": 1}
    with pytest.raises(UserError, match="unknown shape"):
        lint(pool(path, [{"odd": 1}]), CONFIG)


def test_the_planted_defects_show_in_the_lint() -> None:
    facts = lint("world:physics_mixed?count=1000", CONFIG)
    examples = read("world:physics_mixed?count=1000").examples
    defects = [example.meta["defect"] for example in examples]
    assert found(facts)["empty turn"] == defects.count("empty")
    assert found(facts)["shape"] == sum(defects.count(kind) for kind in ("json", "python", "list", "tiny", "mojibake"))
    assert found(facts)["duplicate"] == len(examples) - len({example.content_hash for example in examples})


def test_duplicates_and_near_duplicates_are_apart(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(16)]
    near = [*words[:-1], "seventeen"]
    rows = [chat(("user", "Count."), ("assistant", " ".join(text))) for text in (words, words, near, words[::-1])]
    source = pool(tmp_path / "in.jsonl", rows)
    facts = lint(source, CONFIG)
    assert found(facts) == {"duplicate": 1, "near duplicate": 1}
    (cluster,) = facts["clusters"]
    assert (cluster["first"], cluster["rows"]) == (f"{source}:1", 2)
    assert cluster["members"][0]["place"] == f"{source}:3"
    assert found(lint(source, LintConfig(near_duplicates=False))) == {"duplicate": 1}


@pytest.mark.parametrize("kept", [20, 90, 99])
def test_the_estimate_of_similarity_is_near_the_jaccard_index(kept: int) -> None:
    hashes, near = WordHashes(), NearDuplicates(0.1)
    first = [f"word{n}" for n in range(100)]
    second = first[:kept] + [f"other{n}" for n in range(100 - kept)]
    for row, words in enumerate((first, second)):
        near.add(row, hashes.of(words))
    shingles = [{tuple(words[at : at + 3]) for at in range(98)} for words in (first, second)]
    exact = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    members = near.clusters().get(0, [])
    assert abs(exact - members[0][1]) < 4 * np.sqrt(exact * (1 - exact) / 128) + 1e-9 if members else exact < 0.25


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.integers(1, 5))
def test_ngram_hashes_agree_with_the_words(words: list[str], n: int) -> None:
    hashed = ngram_hashes(WordHashes().of(words), n).tolist()
    plain = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    assert len(hashed) == len(plain)
    assert len(set(hashed)) == len(set(plain)) == len(set(zip(hashed, plain, strict=True)))


def test_growing_ngrams_end_with_the_text() -> None:
    assert [n for n, _ in growing_ngrams(WordHashes().of(["a", "b"]), 5)] == [1, 2]


def test_words_of_any_script() -> None:
    assert split_words("It's 2.5 m, É!") == ["it", "s", "2", "5", "m", "é"]
    assert split_words("GPT 你好") == ["gpt", "你", "好"]


def item(name: str, prompt: str, output: str) -> Example:
    return Example(name, name, ({"role": "user", "content": prompt}, {"role": "assistant", "content": output}))


LONG = "the quick brown fox jumps over the lazy dog while seven wise owls watch from above in silence"


def scan(items: list[Example], texts: list[str], n: int = 13) -> dict[str, Any]:
    hashes = WordHashes()
    index = Contamination([("suite", items)], hashes, n)
    for place, text in enumerate(texts):
        index.scan(f"row {place}", hashes.of(split_words(text)))
    return index.facts()[0]


def test_an_item_inside_a_training_text_is_found() -> None:
    items = [item("in", LONG, "B"), item("out", LONG[::-1], "C"), item("short", "why?", "so")]
    facts = scan(items, ["nothing to see", f"Now: {LONG.upper()}! And more."])
    assert (facts["items"], facts["checked"], facts["hit"], facts["share"]) == (3, 2, 1, 0.5)
    assert facts["hit_by"] == {"prompt": 1, "output": 0}
    (example,) = facts["examples"]
    assert (example["item"], example["part"], example["place"], example["covered"]) == ("in", "prompt", "row 1", 1.0)
    assert example["text"] == " ".join(LONG.split()[:13])


def test_twelve_words_in_a_row_are_not_enough_and_a_short_item_counts_whole() -> None:
    assert scan([item("a", LONG, "B")], [" ".join(LONG.split()[:12])])["hit"] == 0
    short = item("a", "why do cats always sleep so long", "B")
    assert scan([short], ["I wonder why do cats always sleep so long, really"])["hit"] == 1
    assert scan([short], ["why do cats always sleep so much"])["hit"] == 0


def test_ngrams_do_not_cross_texts() -> None:
    words = LONG.split()
    assert scan([item("a", LONG, "B")], [" ".join(words[:9]), " ".join(words[9:])])["hit"] == 0


def test_boilerplate_of_a_suite_proves_nothing() -> None:
    items = [item(str(n), f"{LONG} number {n} {n * 7} {n * 11}", "B") for n in range(20)]
    facts = scan(items, [LONG])
    assert (facts["hit"], facts["checked"]) == (0, 20)
    assert facts["boilerplate_ngrams"] > 0
    assert scan(items[:5], [LONG])["hit"] == 5


def test_contamination_of_a_pool_with_its_own_rows() -> None:
    facts = lint("world:physics?count=200", CONFIG, suites=["world:physics?count=50"])
    (suite,) = facts["contamination"]
    assert suite["hit"] == suite["checked"] == 50
    assert found(facts)["contamination"] == 50


@pytest.mark.parametrize(
    ("text", "code", "sure"),
    [
        ("The cat is on the mat and it was not for you.", "en", True),
        ("Die Katze ist nicht auf dem Tisch, und das wird sie auch.", "de", True),
        ("Le chat est sur la table et il ne bouge pas.", "fr", True),
        ("El gato está en la mesa y no se mueve por la noche, que es larga.", "es", True),
        ("Это не то, что было у меня, но так и есть.", "ru", True),
        ("你好,世界很大", "zh", True),
        ("これはペンです", "ja", True),
        ("안녕하세요 여러분", "ko", True),
        ("{Θ}_{3}=+120°", "el", False),
        ("v = d / t = 60 / 5", "Latin", False),
        ("12 + 3 = 15", "none", False),
    ],
)
def test_languages_and_how_sure(text: str, code: str, sure: bool) -> None:
    language = detect(text, split_words(text))
    assert (language.code, language.sure) == (code, sure)


def test_a_row_in_another_language_is_noted(tmp_path: Path) -> None:
    english = [
        chat(("user", f"Tell me {n}"), ("assistant", f"This is the text for {n} and it is not that of {n + 9}."))
        for n in range(5)
    ]
    german = chat(("user", "Und das?"), ("assistant", "Das ist nicht die Sprache, in der es sonst wird."))
    facts = lint(pool(tmp_path / "in.jsonl", [*english, german]), LintConfig(near_duplicates=False))
    assert found(facts) == {"language": 1}


def test_what_the_tokenizer_says_becomes_findings(tmp_path: Path) -> None:
    rows = [chat(ASKED, ("assistant", f"It is way number {n}.")) for n in range(3)]

    def count(examples: Sequence[Example]) -> list[TokenFacts]:
        told = [TokenFacts(40, 20, 0), TokenFacts(90, 10, 26), TokenFacts(0, 0, 0, "all lie behind max_length = 64")]
        return told[: len(examples)]

    facts = lint(pool(tmp_path / "in.jsonl", rows), LintConfig(near_duplicates=False), count_tokens=count)
    assert found(facts) == {"cut": 1, "nothing left": 1}
    assert facts["lengths"]["tokens"]["sum"] == 130


@pytest.mark.parametrize(
    "text",
    [
        "key: ghp_" + "a1" * 18,
        "-----BEGIN RSA PRIVATE KEY-----",
        "postgres://admin:hunter22@db.example.org/x",
        "hf_" + "Ab" * 17,
    ],
)
def test_secrets_are_found_and_masked(text: str) -> None:
    told = find_secret(f"Here it is: {text} .")
    assert told is not None
    assert text not in told


def test_ordinary_text_holds_no_secret() -> None:
    assert find_secret("See https://example.org/a:b@c and task-force sk-8, AKIA, eyJ.") is None
