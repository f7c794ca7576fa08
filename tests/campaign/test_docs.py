"""What docs/suites.md shows and says of the keys of suites."""

import re
import tomllib
from pathlib import Path

import pytest

from finetrial.campaign.settings import KEYS, OWN_SETTINGS, SuiteConfig
from finetrial.campaign.spec import resolve

TEXT = (Path(__file__).parents[2] / "docs" / "suites.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
CONDITIONS = {"conditions": [{"name": "old"}, {"name": "new"}], "seeds": [1], "max_steps": 60}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: re.findall(r'^name = "(.*)"', snippet, re.M)[0])
def test_every_snippet_loads(snippet: str) -> None:
    tables = tomllib.loads(snippet)
    spec = resolve({"campaign": CONDITIONS, **tables}, "docs/suites.md")
    assert [suite.name for suite in spec.suites] == [table["name"] for table in tables["suites"]]


def test_every_kind_and_key_is_explained() -> None:
    assert {suite["kind"] for one in SNIPPETS for suite in tomllib.loads(one)["suites"] if "kind" in suite} == {
        kind for kind in KEYS if kind != "perplexity"
    }
    keys = {*SuiteConfig.model_fields, *OWN_SETTINGS, *(key for known in KEYS.values() for key in known)}
    assert [key for key in sorted(keys) if not re.search(rf"`{key}\b|^{key} = ", TEXT, re.MULTILINE)] == []
