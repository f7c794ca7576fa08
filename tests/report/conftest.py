"""One simulated campaign and its report, shared by the tests of reports."""

from pathlib import Path

import pytest
from campaign_folder import write_campaign

from finetrial.report.build import ReportPaths, gather, write
from finetrial.report.facts import Report


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small simulated campaign."""
    return write_campaign(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def report(campaign: Path) -> Report:
    """The small campaign, read and judged."""
    return gather(campaign)


@pytest.fixture(scope="session")
def paths(campaign: Path, report: Report) -> ReportPaths:
    """Its report on disk."""
    return write(report, campaign / "report")
