"""What tests of `polyprune compare` share: a finished store, made once, and a list of the cells that are run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import Run
from grids import grid

from polyprune_core import report
from polyprune_core.results.row import Row
from polyprune_core.runs import workplace


@pytest.fixture(scope="session")
def unbroken(short_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A store and the run that filled it; a test that writes there works on a copy."""
    store = tmp_path_factory.mktemp("unbroken") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(short_texts)
        run = grid(store)
    assert run.status == 0, run.err
    return store, run


@pytest.fixture
def copy(unbroken: tuple[Path, Run], tmp_path: Path) -> Path:
    """A copy of the finished store."""
    return Path(shutil.copytree(unbroken[0], tmp_path / "copy"))


@pytest.fixture
def record(unbroken: tuple[Path, Run]) -> dict[str, Any]:
    return json.loads(unbroken[1].out, parse_constant=pytest.fail)


@pytest.fixture
def cells_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is run and not read, by the name it has in a table."""
    names: list[str] = []
    run = workplace.run_cell

    def counted(decider: Any, blank: Row, *rest: Any) -> Row:
        names.append(report.label(blank))
        return run(decider, blank, *rest)

    monkeypatch.setattr(workplace, "run_cell", counted)
    return names
