"""Dimensions of trajectory quality: pure functions of one trajectory, larger is better, NaN where undefined.

A trajectory is the list of its actions (tool calls), each with the observation that answered it. The formulas are
those of the score `v3` of "Trajectory quality selection" (arXiv 2607.17205) and of its log; the options of
`DimensionConfig` correct what was found wrong with them. A dimension that is undefined for a trajectory is NaN;
`fallback` may put a number there (as v3 did), and the score counts how often.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from operator import eq
from typing import Literal, NamedTuple

from pydantic import Field

from finetrial.records import Config, Example

NAN = math.nan
REPETITION_WINDOW = 5
"""Calls back to which a repetition counts (B1)."""

TEST_RUN = re.compile(
    r"\b(?:py\.?test|unittest|tox|nosetests?|run_?tests?|ctest|jest|mocha|vitest|rspec)\b|"
    r"\b(?:go|cargo|npm|yarn|make|mvn|gradle|manage\.py|dotnet|swift|bazel)\s+(?:run\s+)?test"
)
"""A call that runs tests: its tool or its arguments."""

NOT_STARTED = ("command not found", "permission denied")
SHELL_FAILURES = (
    *NOT_STARTED,
    "no such file or directory",
    "not a directory",
    "is a directory",
    "cannot access",
    "timed out",
    "syntax error near",
    "unexpected eof while",
)
EXIT_CODE = re.compile(r"exit(?:ed)?(?: |_)?(?:with )?(?:code|status)?(?: was|[:=])? ?-?[1-9]")
SHELL_REACH = 1000
"""Characters at either end of an observation in which shells and harnesses report that a call failed."""

TOOL_FAILURE = re.compile(r"\W{0,3}(?:error|fatal|failed|failure|exception|traceback|invalid|unknown)\b")
"""In lower case: how the observation of a failed call begins."""

FILE_ENDING = re.compile(
    r"\.(?:py|pyi|pyx|ipynb|js|jsx|ts|tsx|mjs|vue|java|kt|scala|go|rs|c|h|cc|cpp|cxx|hpp|cs|rb|php|pl|lua|swift|sh|"
    r"bash|zsh|sql|html?|css|scss|md|rst|txt|tex|json|jsonl|ya?ml|toml|cfg|ini|conf|env|lock|xml|csv|tsv|log|diff|"
    r"patch|png|jpg|svg|pdf|zip|gz|tar|db|sqlite)(?![\w])"
)
ERROR_ENDINGS = tuple(re.compile(rf"{ending}(?!\w)") for ending in ("Error", "Exception", "Warning"))
"""One pattern each: a literal beginning is searched much faster than an alternation."""
FILE_NAME = re.compile(r"[\w\-.]*")
WORD = re.compile(r"\w*")
LONGEST_NAME = 64


class Action(NamedTuple):
    """One tool call and the observation that answered it."""

    tool: str
    arguments: str
    observation: str | None
    """None where nothing answered the call."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What the dimensions see of an Example."""

    actions: tuple[Action, ...]
    turns: int
    """Assistant messages."""
    available: frozenset[str]
    """Tools that were available, where the source tells; empty otherwise."""
    reference_turns: float
    """Turns that resolved runs of the same task took (median); NaN where there are none to compare with."""


class DimensionConfig(Config):
    """How dimensions are computed; part of `[score]`."""

    error_keywords: tuple[str, ...] = Field(
        default=("error", "failed", "traceback", "stderr", "errno"),
        description="words that make an observation an error when error_test is keyword (any case)",
    )
    error_test: Literal["keyword", "tool"] = Field(
        default="tool",
        description="keyword: the observation contains an error keyword (v3); tool: the call itself failed (its "
        "observation begins with an error, or a shell failure), and the outcome of a test run is no error",
    )
    step_reference: Literal["group", "others"] = Field(
        default="others",
        description="median turns of resolved runs of the same task: group counts the run itself (v3: a singleton "
        "is its own median); others leaves it out, so that a singleton has no reference",
    )
    diversity_over: Literal["used", "available"] = Field(
        default="available", description="entropy of tools is divided by log2 of tools used (v3) or of tools available"
    )
    fallback: dict[str, float] = Field(
        default_factory=dict,
        description="dimension -> number where it is undefined; without an entry it is missing",
    )


def trajectory(example: Example, reference_turns: float = NAN) -> Trajectory:
    """The actions of an Example; observations answer the calls of the message before them, in order."""
    calls: list[tuple[str, str]] = []
    observations: list[str | None] = []
    turns = answered = 0
    for message in example.messages:
        role = message["role"]
        if role == "assistant":
            turns += 1
            answered = len(calls)
            for call in message.get("tool_calls", ()):
                calls.append((call["name"], call["arguments"]))
                observations.append(None)
        elif role == "tool" and answered < len(calls):
            observations[answered] = message["content"]
            answered += 1
    actions = tuple(Action(*call, observation) for call, observation in zip(calls, observations, strict=True))
    return Trajectory(actions, turns, frozenset(example.tools), reference_turns)


def error_retry(run: Trajectory, config: DimensionConfig) -> float:
    """B2 = 1 - min(1, cycles / 10).

    A cycle is a call whose observation is an error, followed at once by a call of the same tool. NaN without calls.
    """
    if not run.actions:
        return NAN
    cycles = sum(
        action.tool == following.tool and _is_error(action, config) for action, following in pairwise(run.actions)
    )
    return 1.0 - min(1.0, cycles / 10)


def step_ratio(run: Trajectory, config: DimensionConfig) -> float:
    """B3 = 1 - (r - 0.5) / 2.5, r = turns / reference turns clipped to [0.5, 3]. NaN without a reference."""
    if not run.reference_turns > 0:
        return NAN
    ratio = min(3.0, max(0.5, run.turns / run.reference_turns))
    return 1.0 - (ratio - 0.5) / 2.5


def action_diversity(run: Trajectory, config: DimensionConfig) -> float:
    """C2 = entropy of the tools called, in bits, over log2 of the tools used or of those available.

    Used (v3): NaN with one tool used or none. Available: over log2(min(tools available, calls)), so that a run is
    not punished for being short; NaN where the source does not list tools, or there is no choice to make.
    """
    counts = Counter(action.tool for action in run.actions)
    if config.diversity_over == "used":
        choices = len(counts)
    else:
        # A call of a tool that does not exist enlarges neither the choice nor the entropy.
        counts = Counter({tool: times for tool, times in counts.items() if tool in run.available})
        choices = min(len(run.available), counts.total())
    if choices < 2:
        return NAN
    total = counts.total()
    entropy = -sum(times / total * math.log2(times / total) for times in counts.values())
    return min(1.0, max(0.0, entropy / math.log2(choices)))


def observation_utilisation(run: Trajectory, config: DimensionConfig) -> float:
    """C3 = keywords used / keywords extracted, summed over observations. NaN where nothing was extracted.

    Keywords of an observation: base names of files (longer than four characters) and names that end in Error,
    Exception or Warning. A keyword is used when it stands in the arguments of any later call.
    """
    arguments = "\n".join(action.arguments for action in run.actions)
    last_place: dict[str, int] = {}
    extracted = used = start = 0
    for action in run.actions:
        start += len(action.arguments) + 1
        if not action.observation:
            continue
        for keyword in _keywords(action.observation):
            extracted += 1
            if keyword not in last_place:
                last_place[keyword] = arguments.rfind(keyword)
            used += last_place[keyword] >= start
    return used / extracted if extracted else NAN


def non_repetition(run: Trajectory, config: DimensionConfig) -> float:
    """B1 = 1 - share of calls that repeat (tool and arguments) one of the five calls before. NaN without calls."""
    if not run.actions:
        return NAN
    calls = [(action.tool, action.arguments) for action in run.actions]
    repeats = sum(call in calls[max(0, place - REPETITION_WINDOW) : place] for place, call in enumerate(calls))
    return 1.0 - repeats / len(calls)


def clean_observation(run: Trajectory, config: DimensionConfig) -> float:
    """C1 = 1 - share of noisy lines: empty, or equal to the filled line before. NaN without a line."""
    lines = noisy = 0
    for action in run.actions:
        if action.observation:
            rows = action.observation.split("\n")
            filled = list(filter(None, rows))
            lines += len(rows)
            noisy += len(rows) - len(filled) + sum(map(eq, filled, filled[1:]))
    return 1.0 - noisy / lines if lines else NAN


def _is_error(action: Action, config: DimensionConfig) -> bool:
    if not action.observation:
        return False
    if config.error_test == "keyword":
        observation = action.observation.lower()
        return any(keyword.lower() in observation for keyword in config.error_keywords)
    ends = action.observation[:SHELL_REACH].lower()
    if len(action.observation) > SHELL_REACH:
        ends += "\n" + action.observation[max(SHELL_REACH, len(action.observation) - SHELL_REACH) :].lower()
    if _runs_tests(action):
        return any(failure in ends for failure in NOT_STARTED)
    if any(failure in ends for failure in SHELL_FAILURES) or TOOL_FAILURE.match(ends):
        return True
    return "exit" in ends and EXIT_CODE.search(ends) is not None


def _runs_tests(action: Action) -> bool:
    return TEST_RUN.search(action.tool) is not None or TEST_RUN.search(action.arguments) is not None


def _keywords(observation: str) -> set[str]:
    """Base names longer than four characters and names of errors. Endings are searched first: they are rare."""
    found: set[str] = set()
    for ending in FILE_ENDING.finditer(observation):
        name = _name_before(FILE_NAME, observation, ending.start()) + ending.group()
        if len(name) > 4:
            found.add(name)
    for pattern in ERROR_ENDINGS:
        for ending in pattern.finditer(observation):
            name = _name_before(WORD, observation, ending.start())
            if name:
                found.add(name + ending.group())
    return found


def _name_before(name: re.Pattern[str], text: str, end: int) -> str:
    """The longest name that ends at `end`, matched on the reversed text: one step per character."""
    match = name.match(text[max(0, end - LONGEST_NAME) : end][::-1])
    return match.group()[::-1] if match else ""


class Dimension(NamedTuple):
    """One pluggable dimension."""

    function: Callable[[Trajectory, DimensionConfig], float]
    version: int
    """Raised whenever its numbers change; enters the key of every selection."""
    description: str


DIMENSIONS: dict[str, Dimension] = {
    "error_retry": Dimension(error_retry, 1, "B2: failing calls retried at once with the same tool"),
    "step_ratio": Dimension(step_ratio, 1, "B3: turns against resolved runs of the same task"),
    "action_diversity": Dimension(action_diversity, 1, "C2: entropy of the tools called"),
    "observation_utilisation": Dimension(observation_utilisation, 1, "C3: observed names used in later calls"),
    "non_repetition": Dimension(non_repetition, 1, "B1: calls that do not repeat one of the five before (for record)"),
    "clean_observation": Dimension(clean_observation, 1, "C1: lines of observations that are no noise (for record)"),
}
