"""The package of the tutorial builds in a folder that already holds what other commands wrote."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "first-plugin.md"


def test_the_package_of_the_tutorial_holds_the_plugin_and_nothing_else_of_its_folder(tmp_path: Path) -> None:
    for text in re.findall(r"^```(?:python|toml)\n(# [\w.]+\n.*?)^```", PAGE.read_text("utf-8"), re.M | re.S):
        (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text, encoding="utf-8")
    for other in ("pruned", "masks", "store"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "modeling_polyprune.py").write_text("")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "wheels"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    info = "polyprune_contribution-0.1.0.dist-info"
    assert {name.split("/")[0] for name in ZipFile(wheel).namelist()} == {"contribution.py", info}
