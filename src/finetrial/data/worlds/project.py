"""Small simulated projects: their files, their one defect, and tools that act on the state.

A project is a handful of text files and a goal. Its tests are simulated by comparison with the solution: they pass
when every source file reads as the solution does, and otherwise report the first difference the way a test runner
would. Nothing is executed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from finetrial.data.worlds.dice import Dice

TOOLS = ("list_files", "read_file", "search", "edit_file", "write_file", "run_tests", "shell")

PACKAGES = ("billing", "orders", "reports", "storage", "accounts", "shipping", "metrics", "catalog")
MODULES = (
    "pricing", "parser", "limits", "tables", "invoice", "weights", "cursor", "routes",
    "session", "letters", "matrix", "points", "budget", "stocks", "labels", "ranges",
    "timing", "colors", "basket", "ledger", "signals", "quotas", "layout", "ratios",
)  # fmt: skip
VERBS = ("add", "scale", "merge", "count", "shift", "total", "split", "join", "find", "rank", "mix", "trim")
NOUNS = ("price", "width", "rate", "score", "index", "level", "offset", "amount", "length", "share", "step", "weight")
NAMES = ("left", "right", "first", "last", "low", "high", "size", "value", "base", "part", "item", "unit")
KEYS = ("timeout", "retries", "max_items", "page_size", "min_score", "batch", "depth", "workers", "cache_mb", "port")


@dataclass(frozen=True)
class Task:
    """One problem: a project with a defect, the request to mend it, and what the solution looks like."""

    kind: str
    """operator, undefined, constant, rename, setting or missing."""
    request: str
    files: Mapping[str, str]
    solution: Mapping[str, str]
    target: str
    """Path of the file that must change (or come into being)."""
    line: int
    """Line of the defect in the target, from 1."""
    symbol: str
    """Function or key that the request or the failing test is about."""
    wrong: str
    """The defective text in the target; empty where the file is missing."""
    right: str
    failure: str
    """Last line of the failing test; empty where no test covers the goal."""
    tools: tuple[str, ...]

    def canonical(self) -> str:
        """The problem as text: request and files before and after, but not which tools happen to be there."""
        return json.dumps([self.request, sorted(self.files.items()), sorted(self.solution.items())])


@dataclass
class Workspace:
    """The state of one attempt; `call` is what the agent's tools do to it."""

    task: Task
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = dict(self.task.files)

    def solved(self) -> bool:
        """Whether the goal is reached: every file reads as in the solution."""
        return self.files == dict(self.task.solution)

    def call(self, tool: str, arguments: Mapping[str, str]) -> str:
        """The observation of one tool call, which may change the files."""
        if tool not in self.task.tools:
            return f"Error: unknown tool '{tool}'"
        match tool:
            case "list_files":
                return "\n".join(sorted(self.files))
            case "read_file":
                return self._read(arguments["path"])
            case "search":
                return self._search(arguments["text"])
            case "edit_file":
                return self._edit(arguments["path"], arguments["old"], arguments["new"])
            case "write_file":
                self.files[arguments["path"]] = arguments["text"]
                return f"Wrote {arguments['path']}"
            case "run_tests":
                return self._tests()
        return self._shell(arguments["command"])

    def _read(self, path: str) -> str:
        return self.files.get(path, f"Error: No such file or directory: '{path}'")

    def _search(self, text: str) -> str:
        hits = [
            f"{path}:{number}: {line.strip()}"
            for path in sorted(self.files)
            for number, line in enumerate(self.files[path].split("\n"), 1)
            if text in line
        ]
        return "\n".join(hits[:4]) or f"No matches for '{text}'"

    def _edit(self, path: str, old: str, new: str) -> str:
        if path not in self.files:
            return f"Error: No such file or directory: '{path}'"
        if self.files[path].count(old) != 1:
            return f"Error: text not found in {path}"
        self.files[path] = self.files[path].replace(old, new)
        return f"Edited {path}"

    def _tests(self) -> str:
        covered = [path for path in sorted(self.task.solution) if path.endswith(".py") or self.task.failure]
        broken = [path for path in covered if self.files.get(path) != self.task.solution[path]]
        if not broken:
            return f"{len(covered) + 2} passed"
        failure = self.task.failure
        if broken[0] != self.task.target or self.files.get(self.task.target) != self.task.files.get(self.task.target):
            failure = f"AssertionError: wrong result in {broken[0]}"
        elif self.task.kind != "missing":
            failure = f"{self.task.target}, line {self.task.line}, in {self.task.symbol}\n{failure}"
        return f"Traceback:\n{failure}\n{len(broken)} failed, {len(covered) + 2 - len(broken)} passed"

    def _shell(self, command: str) -> str:
        match command.split():
            case ["ls"]:
                return "\n".join(sorted(self.files))
            case ["cat", path]:
                return self._read(path)
            case ["pytest"]:
                return self._tests()
        return f"sh: {command.split()[0]}: command not found"


@dataclass(frozen=True)
class Defect:
    """What is wrong with a sound project, in one place."""

    target: str
    line: int
    symbol: str
    wrong: str
    right: str
    failure: str
    requests: tuple[str, ...]


@dataclass(frozen=True)
class Sound:
    """A project without defects, and the module and settings in which one will be placed."""

    package: str
    files: Mapping[str, str]
    module: str
    function: str
    keys: Sequence[str]
    values: Sequence[int]

    @property
    def path(self) -> str:
        return f"{self.package}/{self.module}.py"

    @property
    def code(self) -> list[str]:
        """Lines of the module without indentation: constant, definition, return."""
        return [line.strip() for line in self.files[self.path].split("\n")]

    @property
    def report(self) -> str:
        return f"The tests of {self.package} fail. Fix the code."


def draw_task(dice: Dice) -> Task:
    """A random project with one defect of a random kind."""
    sound = _sound(dice)
    kind = dice.pick(tuple(DEFECTS))
    defect = DEFECTS[kind](dice, sound)
    solution = {**sound.files, defect.target: sound.files.get(defect.target, defect.right)}
    files = {**solution, defect.target: solution[defect.target].replace(defect.right, defect.wrong, 1)}
    if not defect.wrong:
        del files[defect.target]
    dropped = dice.pick((None, None, None, "list_files", "shell"))
    return Task(
        kind=kind,
        request=dice.pick(defect.requests),
        files=files,
        solution=solution,
        target=defect.target,
        line=defect.line,
        symbol=defect.symbol,
        wrong=defect.wrong,
        right=defect.right,
        failure=defect.failure,
        tools=tuple(tool for tool in TOOLS if tool != dropped),
    )


def _sound(dice: Dice) -> Sound:
    package = dice.pick(PACKAGES)
    modules = dice.sample(MODULES, dice.between(3, 5))
    verbs = dice.sample(VERBS, len(modules))
    constants = dice.sample(NOUNS, len(modules))
    functions = [f"{verb}_{dice.pick(NOUNS)}" for verb in verbs]
    files = {
        f"{package}/{module}.py": _source(dice, function, constant.upper())
        for module, function, constant in zip(modules, functions, constants, strict=True)
    }
    keys = dice.sample(KEYS, 3)
    values = [dice.between(2, 98) for _ in keys]
    files[f"{package}/settings.cfg"] = "\n".join(f"{key} = {value}" for key, value in zip(keys, values, strict=True))
    return Sound(package, files, modules[0], functions[0], keys, values)


def _source(dice: Dice, function: str, noun: str) -> str:
    constant = f"{noun}_{dice.pick(('MAX', 'MIN', 'STEP', 'BASE'))}"
    first, second = dice.sample(NAMES, 2)
    return (
        f"{constant} = {dice.between(2, 98)}\n"
        f"def {function}({first}, {second}):\n"
        f"    return {first} {dice.pick('+-')} {second}"
    )


def _other(dice: Dice, value: int) -> int:
    """A number from 2 to 98 that is not `value`."""
    other = dice.between(2, 97)
    return other + (other >= value)


def _operator(dice: Dice, sound: Sound) -> Defect:
    right = sound.code[2]
    sign, other = ("+", "-") if "+" in right else ("-", "+")
    low, high = dice.between(2, 9), dice.between(2, 9)
    value = {"+": low + high, "-": low - high}
    return Defect(
        target=sound.path,
        line=3,
        symbol=sound.function,
        wrong=right.replace(sign, other),
        right=right,
        failure=f"AssertionError: {sound.function}({low}, {high}) is {value[other]}, not {value[sign]}",
        requests=(
            sound.report,
            f"{sound.function}({low}, {high}) gives {value[other]} instead of {value[sign]}. Fix it.",
        ),
    )


def _undefined(dice: Dice, sound: Sound) -> Defect:
    right = sound.code[2]
    name = right.split()[1]
    misspelt = name[0] + name
    return Defect(
        target=sound.path,
        line=3,
        symbol=sound.function,
        wrong=right.replace(name, misspelt, 1),
        right=right,
        failure=f"NameError: name '{misspelt}' is not defined",
        requests=(sound.report, f"{sound.function} raises an error. Fix it."),
    )


def _constant(dice: Dice, sound: Sound) -> Defect:
    right = sound.code[0]
    constant, value = right.split(" = ")
    other = _other(dice, int(value))
    return Defect(
        target=sound.path,
        line=1,
        symbol=constant,
        wrong=f"{constant} = {other}",
        right=right,
        failure=f"AssertionError: {constant} is {other}, not {value}",
        requests=(sound.report, f"{constant} must be {value} in {sound.package}."),
    )


def _rename(dice: Dice, sound: Sound) -> Defect:
    right = sound.code[1]
    return Defect(
        target=sound.path,
        line=2,
        symbol=sound.function,
        wrong=right.replace(sound.function, f"{sound.function}s"),
        right=right,
        failure=f"ImportError: no '{sound.function}' in {sound.module}",
        requests=(sound.report, f"Rename {sound.function}s to {sound.function} in {sound.package}."),
    )


def _setting(dice: Dice, sound: Sound) -> Defect:
    key, value = sound.keys[0], sound.values[0]
    return Defect(
        target=f"{sound.package}/settings.cfg",
        line=1,
        symbol=key,
        wrong=f"{key} = {_other(dice, value)}",
        right=f"{key} = {value}",
        failure="",
        requests=(f"Set {key} to {value} in {sound.package}.", f"{key} must be {value}."),
    )


def _missing(dice: Dice, sound: Sound) -> Defect:
    target = f"{sound.package}/{dice.pick(('quotas', 'prices', 'defaults', 'bounds'))}.cfg"
    right = f"{sound.keys[1]} = {sound.values[1]}"
    return Defect(
        target=target,
        line=1,
        symbol=sound.keys[1],
        wrong="",
        right=right,
        failure=f"FileNotFoundError: No such file or directory: '{target}'",
        requests=(f"The tests of {sound.package} fail. A file with {right} is missing.",),
    )


DEFECTS: dict[str, Callable[[Dice, Sound], Defect]] = {
    "operator": _operator,
    "undefined": _undefined,
    "constant": _constant,
    "rename": _rename,
    "setting": _setting,
    "missing": _missing,
}
