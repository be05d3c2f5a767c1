"""What the tutorials write can be done in the order of the site, and in one folder."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial"
BUILD = "from hatchling import build; build.build_wheel('wheels')"


def test_the_first_plugin_can_be_installed_from_a_folder_that_holds_more(tmp_path) -> None:
    page = (TUTORIAL / "first-plugin.md").read_text("utf-8")
    for name, text in re.findall(r"^```(?:python|toml)\n# ([\w.]+)\n(.*?)^```", page, re.M | re.S):
        (tmp_path / name).write_text(text, encoding="utf-8")
    written = set(re.findall(r"--output ([\w-]+)", (TUTORIAL / "first-model.md").read_text("utf-8")))
    assert {"pruned", "masks"} < written
    for folder in (*written, "polyprune-runs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "modeling_polyprune.py").touch()
    run = subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if ".dist-info/" not in name] == ["contribution.py"]
    assert any(name.endswith("entry_points.txt") for name in names)
