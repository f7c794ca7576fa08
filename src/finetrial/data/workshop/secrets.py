"""Strings that look like keys and passwords."""

import re

PATTERNS = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"),
    "AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})\b"),
    "API key": re.compile(r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}"),
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{34}\b"),
    "Slack token": re.compile(r"\bxox[abpr]-[A-Za-z0-9-]{20,}"),
    "Google key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "password in an address": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s:/@]{1,64}:[^\s:/@]{3,64}@"),
}
_HINT = re.compile(r"-----BEGIN|AKIA|ASIA|gh[pousr]_|github_pat_|sk-|hf_|xox|AIza|eyJ|://")
"""What one of them begins with; most texts have none and are done."""


def find_secret(text: str) -> str | None:
    """The first kind of secret that a text seems to hold, with its beginning and the rest masked; None if none."""
    if not _HINT.search(text):
        return None
    for kind, pattern in PATTERNS.items():
        if found := pattern.search(text):
            return f"{kind}: {found[0][:6]}…"
    return None
