"""A release is cut in one step: every place states its number, and the changelog's open part becomes its own."""

from __future__ import annotations

import datetime
import runpy
import shutil
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RELEASE = runpy.run_path(str(ROOT / ".ci" / "release.py"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that state a version, with a changelog of two entries."""
    for name in RELEASE["PLACES"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = "# Changelog\n\n## Unreleased\n\n- New.\n\n## 0.0.9 (2026-01-02)\n\n- Old.\n"
    (tmp_path / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    return tmp_path


def test_all_places_of_this_checkout_state_one_version() -> None:
    assert len(set(RELEASE["stated"](ROOT).values())) == 1


def test_a_cut_release_has_no_fault_and_its_own_notes(copy: Path) -> None:
    assert len(RELEASE["faults"](copy, "9.8.7")) == len(RELEASE["PLACES"]) + len(RELEASE["PLUGINS"]) + 1
    RELEASE["cut"](copy, "9.8.7", datetime.date(2026, 12, 24))
    assert RELEASE["faults"](copy, "9.8.7") == []
    assert RELEASE["notes"](copy, "9.8.7") == "- New."
    assert RELEASE["notes"](copy, "0.0.9") == "- Old."
    assert RELEASE["notes"](copy, "Unreleased") == ""
    assert "## 9.8.7 (2026-12-24)\n" in (copy / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("version", "needed"),
    [("0.2.1", "polyprune>=0.2,<0.3"), ("0.10.0", "polyprune>=0.10,<0.11"), ("1.2.3", "polyprune>=1.2.3,<2")],
)
def test_plugins_that_are_released_with_it_need_what_goes_with_it(copy: Path, version: str, needed: str) -> None:
    RELEASE["cut"](copy, version, datetime.date(2026, 12, 24))
    for name in RELEASE["PLUGINS"]:
        project = tomllib.loads((copy / name).read_text("utf-8"))["project"]
        assert (project["version"], project["dependencies"][0]) == (version, needed)


def test_this_checkout_has_plugins_that_go_with_it() -> None:
    version = RELEASE["stated"](ROOT)["pyproject.toml"]
    assert all(RELEASE["needed"](version) in (ROOT / name).read_text("utf-8") for name in RELEASE["PLUGINS"])


@pytest.mark.parametrize("version", ["1.0", "v1.0.0", "1.0.0rc1 "])
def test_what_is_no_version_changes_nothing(copy: Path, version: str) -> None:
    before = RELEASE["stated"](copy)
    with pytest.raises(SystemExit, match="no version"):
        RELEASE["cut"](copy, version, datetime.date(2026, 12, 24))
    assert RELEASE["stated"](copy) == before
