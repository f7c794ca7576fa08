"""The shell world: agents of hidden skill that mend small projects with tools.

Every task is attempted several times by agents whose `skill` is drawn anew. A skilled agent lets the failing test or
a search lead it to the file, reads it, edits it once and verifies; an unskilled one repeats failing calls, guesses
paths, wanders, edits wrongly, gives up or claims success too early. Observations come from a simulated project
(`project.py`), so they agree with the state, and `resolved` says whether the goal was really reached.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from finetrial.data.worlds.dice import Dice, Split, check_request, problem_digest, split_of
from finetrial.data.worlds.project import MODULES, NOUNS, Task, Workspace, draw_task
from finetrial.records import Example, Message

VERSION = 1

ATTEMPTS = 8
"""Trajectories per task."""

MAX_CALLS = 10
"""Tool calls of one attempt; the closing message comes on top."""

SYSTEM = "You mend code with tools: {}."

THOUGHTS: dict[str, tuple[str, ...]] = {
    "test": ("Run the tests.", "See what fails.", "The tests will tell."),
    "search": ("Find {}.", "Search for {}.", "Where is {}?"),
    "read": ("Read {}.", "Look into {}.", "Open {}."),
    "edit": ("Fix {}.", "Correct {}.", "Change {}."),
    "write": ("Create {}.", "Write {}."),
    "verify": ("Verify the fix.", "Run the tests again.", "Check that it works."),
}
MUSINGS = (
    "Hmm.", "Not sure about this.", "Maybe this helps.", "Let me look around.", "I wonder what this is.",
    "Something is wrong here.", "That is odd.", "Let me try something else.", "Perhaps it is elsewhere.",
    "I have seen this before.", "It should work.", "Let me see.",
)  # fmt: skip
DONE = ("Done: {} is fixed.", "{} is correct now.", "Fixed {}.")
CLAIMS = ("It should work now.", "I think it is fine now.", "Done, probably.")
SURRENDERS = ("I could not solve it.", "I give up.", "This is too hard.")


@dataclass(frozen=True)
class Call:
    """One tool call with the thought before it."""

    thought: str
    tool: str
    arguments: Mapping[str, str] = field(default_factory=dict)


def generate(count: int, seed: int, split: Split) -> Iterator[Example]:
    """Yield `count` trajectories, `ATTEMPTS` per task in a row.

    The group is the hash of the task, which also decides the split. `meta` holds `trial` (attempt of the task, from
    0), `skill` (in [0, 1], hidden from the text), `kind` of defect, `calls` and `errors` (observations that report
    one).
    """
    check_request(count, split)
    produced = candidate = 0
    while produced < count:
        task = draw_task(Dice(seed, "worlds/shell", VERSION, candidate))
        problem = task.canonical()
        candidate += 1
        if split_of(problem) != split:
            continue
        group = f"shell-{problem_digest(problem)[:16]}"
        for trial in range(min(ATTEMPTS, count - produced)):
            dice = Dice(seed, "worlds/shell", VERSION, candidate - 1, "attempt", trial)
            yield _attempt(f"shell-{split}-{seed}-{produced}", group, trial, task, dice)
            produced += 1


def _attempt(identifier: str, group: str, trial: int, task: Task, dice: Dice) -> Example:
    skill = dice.between(0, 100)
    agent = Agent(task, skill, dice)
    messages: list[Message] = [
        {"role": "system", "content": SYSTEM.format(", ".join(task.tools))},
        {"role": "user", "content": task.request},
    ]
    errors = 0
    for number in range(MAX_CALLS):
        call = agent.next_call(number)
        if call is None:
            break
        observation = agent.act(call)
        errors += is_error(observation)
        arguments = json.dumps(dict(call.arguments))
        messages.append(
            {
                "role": "assistant",
                "content": call.thought,
                "tool_calls": [{"name": call.tool, "arguments": arguments}],
            }
        )
        messages.append({"role": "tool", "name": call.tool, "content": observation})
    messages.append({"role": "assistant", "content": agent.closing()})
    return Example(
        id=identifier,
        group=group,
        messages=tuple(messages),
        tools=task.tools,
        resolved=agent.workspace.solved(),
        meta={
            "trial": trial,
            "skill": skill / 100,
            "kind": task.kind,
            "calls": sum(message["role"] == "tool" for message in messages),
            "errors": errors,
        },
    )


def is_error(observation: str) -> bool:
    """Whether an observation reports an error or a failing test."""
    return observation.startswith(("Error:", "Traceback:", "sh:"))


class Agent:
    """A policy of given skill (0 to 100) over one workspace."""

    def __init__(self, task: Task, skill: int, dice: Dice):
        self.task, self.skill, self.dice = task, skill, dice
        self.workspace = Workspace(task)
        self.located = self.seen = self.verified = self.quits = False
        self.current = task.wrong
        """What stands where `task.right` should."""
        self.last: Call | None = None
        self.last_failed = False

    def next_call(self, number: int) -> Call | None:
        """The next tool call; None to stop and close."""
        if self.dice.chance(self.skill):
            return self._purposeful()
        if number > 2 and self.dice.chance(12):
            self.quits = True
            return None
        return self._slip()

    def act(self, call: Call) -> str:
        """Carry out a call and take in what its observation tells."""
        observation = self.workspace.call(call.tool, call.arguments)
        self.last, self.last_failed = call, is_error(observation)
        task = self.task
        if task.target in observation:
            self.located = True
        if self.current and self.current in observation:
            self.seen = True
        if call.tool in ("edit_file", "write_file") and not self.last_failed:
            self.current = call.arguments.get("new", task.right)
            self.verified = False
        elif self.workspace.solved() and (call.tool == "run_tests" or task.right in observation):
            self.verified = True
        return observation

    def closing(self) -> str:
        """The final message: what was done, a claim, or a surrender."""
        if self.workspace.solved() and not self.quits:
            return self.dice.pick(DONE).format(self.task.symbol)
        return self.dice.pick(CLAIMS if self.quits else SURRENDERS)

    def _purposeful(self) -> Call | None:
        task = self.task
        if self.verified:
            return None
        if self.workspace.solved():
            if task.failure:
                return Call(self._thought("verify"), "run_tests")
            return Call(self._thought("read", _basename(task.target)), "read_file", {"path": task.target})
        if not self.located:
            if task.symbol in task.request and task.kind != "missing":
                return Call(self._thought("search", task.symbol), "search", {"text": task.symbol})
            return Call(self._thought("test"), "run_tests")
        if task.kind == "missing":
            return Call(
                self._thought("write", _basename(task.target)), "write_file", {"path": task.target, "text": task.right}
            )
        if not self.seen:
            return Call(self._thought("read", _basename(task.target)), "read_file", {"path": task.target})
        return Call(
            self._thought("edit", task.symbol),
            "edit_file",
            {"path": task.target, "old": self.current, "new": task.right},
        )

    def _slip(self) -> Call | None:
        """One of the habits that waste a step."""
        if self.last is not None and self.last_failed and self.dice.chance(50):
            return Call(self._musing(), self.last.tool, self.last.arguments)
        package = self.task.target.split("/")[0]
        habit = self.dice.below(8)
        if habit == 0:
            return Call(self._musing(), "read_file", {"path": f"{self.dice.pick(MODULES)}.py"})
        if habit == 1:
            return Call(self._musing(), "read_file", {"path": f"{package}/{self.dice.pick(MODULES)}.py"})
        if habit == 2:
            return Call(self._musing(), "read_file", {"path": self.dice.pick(sorted(self.workspace.files))})
        if habit == 3:
            return Call(self._musing(), "list_files")
        if habit == 4:
            return Call(self._musing(), "search", {"text": self.dice.pick(NOUNS)})
        if habit == 5:
            command = self.dice.pick(("pytst", "ls", "make", "pytest", "lint"))
            return Call(self._musing(), "shell", {"command": command})
        if habit == 6:
            return Call(self._musing(), "run_tests")
        return self._wrong_edit()

    def _wrong_edit(self) -> Call:
        """An edit of text that is not there, or, once the line is known, of the line into something wrong."""
        if not self.seen or not self.current or self.workspace.solved():
            old = f"return {self.dice.pick(NOUNS)}"
            return Call(self._musing(), "edit_file", {"path": self.task.target, "old": old, "new": "return 0"})
        head = self.current.split()[0]
        new = f"{head} = {self.dice.between(2, 98)}" if " = " in self.current else f"{head} {self.dice.pick(NOUNS)}"
        arguments = {"path": self.task.target, "old": self.current, "new": new}
        return Call(self._musing(), "edit_file", arguments)

    def _thought(self, purpose: str, *names: str) -> str:
        thought = self.dice.pick(THOUGHTS[purpose]).format(*names)
        return thought if self.dice.chance(self.skill) else f"{self._musing()} {thought}"

    def _musing(self) -> str:
        return " ".join(self.dice.sample(MUSINGS, self.dice.between(1, 2)))


def _basename(path: str) -> str:
    return path.rsplit("/", 1)[-1]
