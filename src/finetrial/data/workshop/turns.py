"""What can be wrong with the turns of a conversation."""

from collections.abc import Iterator, Sequence

from finetrial.records import Message


def turn_faults(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """(check, what is wrong) for every fault of roles, order and emptiness; a check may come several times."""
    previous = ""
    for place, message in enumerate(messages):
        role, calls = message["role"], message.get("tool_calls")
        if not message["content"].strip() and not calls and role != "tool":
            yield "empty turn", f"message {place} ({role}) is empty"
        if role == "system" and place:
            yield "order", f"message {place} is a system message, not the first"
        if role == previous == "assistant":
            yield "order", f"messages {place - 1} and {place} are both the assistant's"
        if role == previous == "user":
            yield "order", f"messages {place - 1} and {place} are both the user's"
        if role == "tool" and previous not in ("tool", "assistant"):
            yield "order", f"message {place} answers a tool that nobody called"
        if role == "assistant" and previous in ("", "system"):
            yield "order", f"message {place} is the assistant's and answers nothing"
        previous = role
    if previous in ("user", "system"):
        yield "no answer", f"the conversation ends with the {previous}"


def refusal(reason: str) -> str:
    """The check that a row which is no Example fails, by the reader's reason."""
    if reason.endswith("is empty"):
        return "empty turn"
    if reason in ("no assistant message", "no messages"):
        return "no answer"
    return "role" if "has the role" in reason else "unreadable"
