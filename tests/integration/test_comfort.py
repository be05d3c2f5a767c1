"""Completion, loudness and the terminal's view of a run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from click.shell_completion import BashComplete
from commandline import polyprune
from elsewhere import Fork, screen
from forks import forks

from polyprune_core.cli import cli
from polyprune_core.search import checkpoint

PROGRAM = "from polyprune_core.cli import main; main()"
SMALL = ("compare", "-m", "tiny", "--limit", "2", "--seq-len", "32", "--eval-seq-len", "32", "--batch-size", "2")
SMALL += ("--calibration-samples", "2", "--baselines", "random", "--estimators", "rloo", "--steps", "3")


@pytest.fixture
def texts(tmp_path: Path) -> tuple[str, ...]:
    for name in ("learn", "test"):
        (tmp_path / name).write_text(f"It was the best of times in {name}, it was the worst of times. " * 60)
    return ("--calibration", str(tmp_path / "learn"), "--evaluation", str(tmp_path / "test"))


def environment(**changes: str) -> dict[str, str]:
    decides = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CI"}
    kept = {name: value for name, value in os.environ.items() if name not in decides}
    return kept | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | changes


def asking(words: str) -> dict[str, str]:
    """What a shell sets to ask what is offered in place of the last word."""
    place = str(len(words.split(" ")) - 1)
    return {"_POLYPRUNE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": place}


def offers(printed: str) -> list[str]:
    return [line.partition(",")[2] for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("polyprune comp", ["compare", "completion"]),
        ("polyprune compare --estimators r", ["reinforce", "reinforce-released", "residual", "rloo"]),
        ("polyprune compare --estimators rloo,r", ["rloo,reinforce", "rloo,reinforce-released", "rloo,residual"]),
        ("polyprune compare --baselines w", ["wanda"]),
        ("polyprune compare --granularity head+c", ["head+channel"]),
        ("polyprune compare --model t", ["tiny"]),
        ("polyprune compare --format ", ["table", "json", "csv", "markdown", "latex"]),
        ("polyprune compare --scope g", ["global"]),
        ("polyprune compare --dtype b", ["bfloat16"]),
        ("polyprune compare --calibration b", ["builtin:pydocs", "builtin:prose", "builtin:mix"]),
        ("polyprune prune --exporter h", ["huggingface"]),
        ("polyprune prune --initializer l", ["llm-pruner"]),
        ("polyprune plugins show anti", ["antithetic"]),
    ],
)
def test_a_shell_is_offered_commands_plugins_models_and_formats(words, offered) -> None:
    with mock.patch.dict(os.environ, asking(words)):
        assert offers(BashComplete(cli, {}, "polyprune", "_POLYPRUNE_COMPLETE").complete()) == offered


def test_a_shell_is_answered_by_the_program_itself() -> None:
    asked = environment(**asking("polyprune comp"))
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=asked, capture_output=True, text=True, check=False)
    assert offers(run.stdout) == ["compare", "completion"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell_asks_polyprune(shell) -> None:
    run = polyprune("completion", shell)
    assert (run.status, run.err) == (0, "")
    assert f"_POLYPRUNE_COMPLETE={shell}_complete" in run.out
    if shutil.which(shell):
        check = subprocess.run([shell, "-n"], input=run.out, text=True, capture_output=True, check=False)
        assert (check.returncode, check.stderr) == (0, "")


def test_an_unknown_shell_is_refused() -> None:
    run = polyprune("completion", "csh")
    assert (run.status, run.out) == (2, "")
    assert "'bash', 'zsh', 'fish'" in run.err


@pytest.mark.parametrize("command", [SMALL, ("prune", "-o", "nowhere")])
def test_quiet_and_verbose_together_are_refused(command) -> None:
    run = polyprune(*command, "-q", "-v")
    assert (run.status, run.out) == (2, "")
    assert "--quiet and --verbose" in run.err
    assert "Traceback" not in run.err


def test_verbose_tells_every_step_and_nothing_of_it_on_stdout(texts, tmp_path) -> None:
    run = polyprune(*SMALL, *texts, "-o", tmp_path / "store", "--format", "csv", "-v")
    assert run.status == 0
    steps = re.findall(r"^thinet → rloo, sparsity 0\.2, seed 0: step (\d) of 3, loss [\d.]+", run.err, re.M)
    assert steps == ["1", "2", "3"]
    assert len(re.findall(r"^cell [0-9a-f]{16}, ", run.err, re.M)) == 4
    assert "step" not in run.out


def test_a_pipe_gets_a_line_a_cell_with_its_number_and_no_bars(texts, tmp_path) -> None:
    run = polyprune(*SMALL, *texts, "-o", tmp_path / "store")
    assert re.findall(r"^(\d/\d) .*: perplexity ", run.err, re.M) == ["1/4", "2/4", "3/4", "4/4"]
    assert "\x1b" not in run.err + run.out
    assert "━" not in run.err


@forks
def test_a_terminal_sees_the_grid_run_and_keeps_the_cells_and_the_table(texts, tmp_path) -> None:
    terminal = environment(COLUMNS="80", LINES="40", NO_COLOR="1")
    seen = screen(terminal, *SMALL, *texts, "-o", tmp_path / "store")
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", seen)
    assert re.search(r"cells 0 of 4", text)
    assert re.search(r"4/4.*thinet → rloo", text)
    assert text.rindex("criterion") > text.rindex("cells ")
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d)m", seen)


@forks
def test_an_interruption_is_one_line_that_says_how_to_go_on(texts, tmp_path) -> None:
    def prepare() -> None:
        checkpoint.SECONDS_BETWEEN = 0.0

    run = Fork(prepare, *SMALL, *texts, "-o", tmp_path / "store", "--steps", "100000")
    while not list(tmp_path.glob("store/cells/*.search.safetensors")):
        assert not os.waitpid(run.pid, os.WNOHANG)[0]
        time.sleep(0.1)
    os.kill(run.pid, signal.SIGINT)
    stopped = run.finished()
    assert (stopped.status, stopped.out) == (130, "")
    assert stopped.err.splitlines()[-1] == (
        "polyprune: interrupted; finished cells are kept, and the same command goes on from there."
    )
    assert "Traceback" not in stopped.err
