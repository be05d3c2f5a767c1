"""What comes before any work: a quick start, help and lists that can be piped, colours only where they are wanted."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import pty
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

import polyprune_core
from polyprune_core import __version__
from polyprune_core.cli import main
from polyprune_core.plugins import registry
from polyprune_core.plugins.options import describe_options, explain_options

ROOT = Path(__file__).parents[2]
ENTRIES = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
FIRST_PARTY = {
    kind: {entry.removeprefix(f"{plural}-") for entry in ENTRIES["polyprune"] if entry.startswith(f"{plural}-")}
    for kind, hook in registry.KINDS.items()
    for plural in [hook.removeprefix("polyprune_")]
}
FIRST_PARTY["exporter"].add("vllm")  # huggingface and it are one module
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")
PROGRAM = "from polyprune_core.cli import main; main()"
OPTIONS = [
    "--model",
    "--estimators",
    "--granularity",
    "--calibration-samples",
    "--masks-per-step",
    "--output",
    "--quiet",
]


def polyprune(*arguments: str) -> tuple[Any, str, str]:
    """Runs the command line in this process; returns its exit status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["polyprune", *arguments])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            status: Any = 0
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def plain_environment(**changes: str) -> dict[str, str]:
    """This environment without what decides about colours and widths."""
    decides = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CI"}
    kept = {name: value for name, value in os.environ.items() if name not in decides}
    return kept | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | changes


def piped(*arguments: str, program: str = PROGRAM, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    environment = plain_environment(**changes)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def on_a_terminal(*arguments: str, **changes: str) -> str:
    """Returns what a terminal of 80 columns gets on both streams."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = plain_environment(COLUMNS="80", **changes)
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # how Linux tells that nobody writes to the terminal any more
            while block := os.read(ours, 65536):
                seen += block
        os.close(ours)
    assert process.returncode == 0, seen
    return seen.decode()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Adds an entry point to those that are installed: installed(name, load)."""
    real = registry.load_registry

    def install(name: str, load: Callable[[], Any]) -> None:
        points = entry_points(group="polyprune")
        broken = SimpleNamespace(name=name, load=load, dist=SimpleNamespace(name="someones-plugins", version="4.2"))
        monkeypatch.setattr(registry, "load_registry", lambda: real([*points, broken]))

    return install


WATCHED = """
import sys
from polyprune_core.cli import main
heavy = {"torch", "transformers", "scipy", "datasets", "safetensors", "tokenizers"}
for command in sys.argv[1:]:
    sys.argv = ["polyprune", *command.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    print(f"end of {command}", flush=True)
    print(f"{command} loaded {sorted(heavy & sys.modules.keys())}", file=sys.stderr)
"""


def test_no_heavy_library_is_loaded_for_help_and_lists() -> None:
    commands = [
        "--version",
        "--help",
        *(f"{name} --help" for name in ("compare", "prune", "evaluate", "export", "report", "models", "masks")),
        "plugins list",
    ]
    run = piped(*commands, program=WATCHED)
    assert run.stderr.splitlines() == [f"{command} loaded []" for command in commands]
    assert "\x1b" not in run.stdout
    rest = run.stdout
    for command in commands:
        said, _, rest = rest.partition(f"end of {command}\n")
        assert said, command


def test_the_version_is_that_of_the_package() -> None:
    assert polyprune("--version") == (0, f"polyprune, version {__version__}\n", "")


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["compare"],
        ["prune"],
        ["evaluate"],
        ["export"],
        ["report"],
        ["plugins"],
        ["models"],
        ["models", "check"],
        ["masks"],
        ["masks", "diff"],
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_on_stdout_and_is_not_cut(command: list[str], flag: str) -> None:
    status, out, err = polyprune(*command, flag)
    assert (status, err) == (0, "")
    assert "Usage:" in out
    assert "…" not in out.replace(", …", "")  # which says that there are more names
    assert "..." not in out.replace("[ARGS]...", "").replace("STORE...", "").replace("COMMAND...", "")


def test_the_help_of_compare_names_its_options_whole() -> None:
    _, out, _ = polyprune("compare", "--help")
    for option in OPTIONS:
        assert re.search(rf"{option}(?![\w-])", out), option


def test_the_list_of_plugins_has_all_that_come_with_polyprune() -> None:
    status, out, err = polyprune("plugins", "list")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()[1:]]
    ours = [row for row in rows if row[-2:] == ["polyprune", __version__]]
    assert len(ours) == sum(map(len, FIRST_PARTY.values())) > 50
    assert {kind: {row[1] for row in ours if row[0] == kind} for kind in FIRST_PARTY} == FIRST_PARTY


def test_the_list_of_plugins_is_one_line_each_however_long() -> None:
    _, out, _ = polyprune("plugins", "list")
    items = registry.load_registry().all()
    assert max(map(len, out.splitlines())) > 80
    for item in items:
        line = [line for line in out.splitlines() if line.split()[:2] == [item.kind, item.provider.name]]
        assert len(line) == 1
        assert item.provider.summary in line[0]
        assert str(item.source) in line[0]


def test_a_plugin_that_cannot_be_used_is_told_on_stderr_and_the_others_are_listed(installed) -> None:
    def load() -> Any:
        raise ModuleNotFoundError("No module named 'a_library_that_is_not_here_and_has_a_name_beyond_eighty_columns'")

    _, before, _ = polyprune("plugins", "list")
    installed("fluctuation", load)
    status, out, err = polyprune("plugins", "list")
    assert (status, out) == (0, before)
    assert len(err.splitlines()) == 1
    for part in ("fluctuation", "someones-plugins 4.2", "beyond_eighty_columns"):
        assert part in err


def test_a_plugin_is_shown_with_its_options_its_source_and_its_reference() -> None:
    status, out, err = polyprune("plugins", "show", "llm-pruner")
    assert (status, err) == (0, "")
    for part in ("llm-pruner", "initializer", f"polyprune {__version__}", "arXiv 2305.11627", "needs", "gradients"):
        assert part in out
    option = next(line for line in out.splitlines() if line.startswith("option "))
    for part in ("taylor", "element1", "vector", "element2", "mix"):
        assert part in option


def test_every_option_of_our_own_plugins_is_explained() -> None:
    ours = [item.provider for item in registry.load_registry().all() if item.source.distribution == "polyprune"]
    for provider in ours:
        _, meanings = explain_options(inspect.getdoc(provider.factory) or "")
        assert set(meanings) == set(describe_options(provider)), provider.name


def test_the_meaning_of_an_option_is_shown_below_it() -> None:
    out = polyprune("plugins", "show", "rloo")[1] + polyprune("plugins", "show", "sleb")[1]
    assert re.search(r"^option windows: int = 16\n    how many windows of calibration text", out, re.M)
    assert "Options:" not in out
    assert "RLOO()" not in out


def test_a_formula_is_shown_on_lines_of_its_own_as_it_is_indented() -> None:
    out = polyprune("plugins", "show", "rloo")[1]
    assert "\n\n    g = 1/(K-1) sum_k (L_k - mean L) (m_k - s) / (s (1 - s))\n\n" in out


@pytest.mark.parametrize("name", ["LLM_Pruner", "llm-pruner:taylor=mix"])
def test_a_plugin_is_found_by_whatever_would_use_it(name: str) -> None:
    assert polyprune("plugins", "show", name) == polyprune("plugins", "show", "llm-pruner")


def test_every_plugin_can_be_shown() -> None:
    for names in FIRST_PARTY.values():
        for name in names:
            status, out, _ = polyprune("plugins", "show", name)
            assert status == 0
            assert out.startswith(f"{name} (")


def test_an_unknown_plugin_gets_the_nearest_one() -> None:
    status, out, err = polyprune("plugins", "show", "reinforcd")
    assert (status, out) == (2, "")
    assert err.startswith("polyprune: no plugin named 'reinforcd'. Did you mean 'reinforce'?")
    assert len(err.splitlines()) == 1


def test_what_a_plugin_says_of_itself_is_not_wrapped_in_a_pipe() -> None:
    _, out, _ = polyprune("plugins", "show", "llm-pruner")
    source = Path(polyprune_core.__file__).parents[1] / "plugins/polyprune_plugins/initializers/llm_pruner.py"
    first = source.read_text("utf-8").splitlines()[0].strip('"')
    assert len(first) > 80
    assert first in out.splitlines()


def test_a_pipe_gets_no_control_codes_even_from_a_terminal_that_has_colours() -> None:
    run = piped("--help", "plugins list", "plugins show wanda", program=WATCHED, COLUMNS="40")
    assert run.returncode == 0, run.stderr
    assert "wanda" in run.stdout
    assert "\x1b" not in run.stdout + run.stderr


def test_a_terminal_gets_colours_unless_it_says_no() -> None:
    assert COLOUR.search(on_a_terminal("--help"))
    assert not COLOUR.search(on_a_terminal("--help", NO_COLOR="1"))


def test_a_terminal_that_wants_no_colours_gets_none_in_lists_either() -> None:
    assert not COLOUR.search(on_a_terminal("plugins", "list", NO_COLOR="1"))
