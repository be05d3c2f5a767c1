"""Runs every shell and Python example of these pages, page by page, each page in an empty folder of its own.

A page's examples share one namespace and one folder. A block that begins with `# name.py` or `# name.toml` is written
to that file instead of being run. A `text` block shows what the command before it printed: every word of it has to be
in the real output; numbers are left alone, for they change with the versions and the machine.
An example that cannot run here is marked `<!--- skip: next "why" -->`, and is reported as skipped.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any
from unittest import mock

from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser, SkipParser

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "integration"))

from commandline import polyprune, runtimes_here
from elsewhere import Here

run_python = PythonEvaluator()
LESS = dict.fromkeys(("CALIBRATION_SAMPLES", "REPAIR_SAMPLES", "LIMIT", "STEPS"), "4") | {"BATCH_SIZE": "16"}
LESS |= dict.fromkeys(("SEQ_LEN", "EVAL_SEQ_LEN"), "32") | {"MASKS_PER_STEP": "2"}
LESS_WORK = {
    f"POLYPRUNE_{command}_{option}": amount for command in ("COMPARE", "PRUNE") for option, amount in LESS.items()
}
FILE_NAME = re.compile(r"# ([\w/-]+\.\w+)\n")
WORD = re.compile(r"[^\W\d_]{2,}")


def file(example: Example) -> bool:
    """Writes the file that the block's first line names, if it names one."""
    name = FILE_NAME.match(example.parsed)
    if name:
        Path(name[1]).parent.mkdir(parents=True, exist_ok=True)
        Path(name[1]).write_text(example.parsed, encoding="utf-8")
    return bool(name)


def python(example: Example) -> str | None:
    """Runs the block, or writes it to its file."""
    return None if file(example) else run_python(example)


def toml(example: Example) -> None:
    """Writes the block to its file."""
    assert file(example), "begin a TOML block with # name.toml, so that a command can read it"


def shell(example: Example) -> None:
    """Runs the block: polyprune's commands in this process, which has its libraries loaded; anything else in bash."""
    text = os.path.expandvars(example.parsed.replace("\\\n", " "))
    lines = [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
    if all(words[:1] == ["polyprune"] and not set(words) & {"|", "&&"} for words in lines if words):
        outputs = []
        for words in filter(None, lines):
            asked, _, target = (words[1:-2], *words[-2:]) if ">" in words else (words[1:], "", "")
            done = polyprune(*asked)
            assert done.status == 0, done.err
            if target:
                Path(target).write_text(done.out, encoding="utf-8")
            else:
                outputs.append(done.out)
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", "-euo", "pipefail", "-c", example.parsed]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})
        assert done.returncode == 0, done.stderr
        outputs = [done.stdout]
    example.namespace["output"] = "".join(outputs)


def output(example: Example) -> None:
    """Compares the words shown with the words printed."""
    missing = set(WORD.findall(example.parsed)) - set(WORD.findall(example.namespace["output"]))
    assert not missing, f"not printed: {', '.join(sorted(missing))}"


def enter(namespace: dict[str, Any]) -> None:
    """Starts a page in a folder of its own, with less work where its commands leave the amount open.

    What would start processes, workers and runtimes, is done in this one, which has its libraries loaded.
    """
    change = namespace["__page__"] = ExitStack()
    change.enter_context(mock.patch.dict(os.environ, LESS_WORK))
    change.enter_context(mock.patch("polyprune_core.utils.processes.Processes", Here))
    change.enter_context(runtimes_here())
    change.enter_context(chdir(change.enter_context(tempfile.TemporaryDirectory(prefix="polyprune-docs-"))))


def leave(namespace: dict[str, Any]) -> None:
    """Leaves nothing behind."""
    namespace["__page__"].close()


pytest_collect_file = Sybil(
    parsers=[
        SkipParser(),
        CodeBlockParser("python", python),
        CodeBlockParser("bash", shell),
        CodeBlockParser("text", output),
        CodeBlockParser("toml", toml),
    ],
    patterns=["*.md"],
    setup=enter,
    teardown=leave,
).pytest()
