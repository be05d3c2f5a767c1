"""README.md says what is true: its tables are those of the committed results, its examples run."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from polyprune_core.cli import cli
from polyprune_core.plugins.decorator import provider_of
from polyprune_core.testing.tiny import tiny_calibration
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
QUESTIONS = (ROOT / "docs" / "howto" / "which-command.md").read_text("utf-8")
COMMANDS = [
    shlex.split(command.replace("…", ""))[1:]
    for command in re.findall(r"`(polyprune [^`$]*)`", QUESTIONS)
    if not command.startswith("polyprune completion")
]


def test_the_tables_are_those_of_the_committed_results(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    for page in tables["PAGES"]:
        text = page.read_text("utf-8")
        assert "<!-- table: " in text
        assert tables["render"](text) == text


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_command_line_knows_every_option_that_is_shown(words) -> None:
    result = CliRunner().invoke(cli, [*words, "--help"])
    assert result.exit_code == 0, result.output


def test_the_picture_of_a_terminal_is_what_the_command_prints_of_the_committed_results() -> None:
    picture = runpy.run_path(str(ROOT / "benchmarks" / "picture.py"))
    assert picture["PICTURE"].read_text("utf-8") == picture["drawn"]()


def test_the_plugin_example_scores_units(llama, space_of) -> None:
    space = space_of(llama, Head(), Channel())
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "@initializer" in block]
    names: dict = {}
    exec(example, names)
    provider = provider_of(names["contribution"])
    scores = provider.factory(power=1.0).score(llama, space, tiny_calibration(llama))
    assert scores.shape == (len(space),)
    assert torch.isfinite(scores).all()
