"""What the files at the top promise: links that lead somewhere, one version, lower bounds that are the ones tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from packaging.requirements import Requirement

from polyprune_core import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]


def links(path: Path) -> list[str]:
    """Every link and image of a Markdown file."""
    tokens = [child for token in MarkdownIt().parse(path.read_text("utf-8")) for child in token.children or ()]
    found = [token for token in tokens if token.type in ("link_open", "image")]
    return [str(token.attrs.get("href", token.attrs.get("src"))) for token in found]


def anchors(path: Path) -> set[str]:
    """What a Markdown file's headings are called in links."""
    headings = re.findall(r"^#+ (.*)", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


REPOSITORY = PROJECT["urls"]["Source"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(page) -> None:
    raw = REPOSITORY.replace("github.com", "raw.githubusercontent.com")
    for link in links(ROOT / page):
        link = link.removeprefix(f"{REPOSITORY}/blob/main/").removeprefix(f"{raw}/main/")
        if not link.startswith(("https://", "http://")):
            file, _, anchor = link.partition("#")
            target = ROOT / (file or page)
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__ == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert (ROOT / "LICENSE").read_text("utf-8").lstrip().startswith("Apache License")


@pytest.mark.parametrize("requirement", [Requirement(text) for text in PROJECT["dependencies"]], ids=str)
def test_the_oldest_versions_tested_are_the_lower_bounds(requirement) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints-min.txt").read_text("utf-8").splitlines()[1:])
    (lowest,) = [bound for bound in requirement.specifier if bound.operator == ">="]
    assert requirement.specifier.contains(pins[requirement.name])
    assert pins[requirement.name].removesuffix(".0").startswith(lowest.version.removesuffix(".0"))


def test_the_readme_has_no_link_that_the_package_index_could_not_follow() -> None:
    assert [link for link in links(ROOT / "README.md") if not link.startswith("https://")] == []


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_forms_can_be_read_and_every_job_has_a_limit(path) -> None:
    read = yaml.safe_load(path.read_text("utf-8"))
    for name, job in read.get("jobs", {}).items():
        assert job["timeout-minutes"] <= 45, name
