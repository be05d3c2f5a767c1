"""A release is cut in one step: every place states its number, and the changelog's open part becomes its own."""

from __future__ import annotations

import datetime
import runpy
import shutil
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
    assert len(RELEASE["faults"](copy, "9.8.7")) == len(RELEASE["PLACES"]) + 1
    RELEASE["cut"](copy, "9.8.7", datetime.date(2026, 12, 24))
    assert RELEASE["faults"](copy, "9.8.7") == []
    assert RELEASE["notes"](copy, "9.8.7") == "- New."
    assert RELEASE["notes"](copy, "0.0.9") == "- Old."
    assert RELEASE["notes"](copy, "Unreleased") == ""
    assert "## 9.8.7 (2026-12-24)\n" in (copy / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("version", ["1.0", "v1.0.0", "1.0.0rc1 "])
def test_what_is_no_version_changes_nothing(copy: Path, version: str) -> None:
    before = RELEASE["stated"](copy)
    with pytest.raises(SystemExit, match="no version"):
        RELEASE["cut"](copy, version, datetime.date(2026, 12, 24))
    assert RELEASE["stated"](copy) == before
