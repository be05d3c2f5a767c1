"""The cache of models is never half full: not by a failure, a kill, or two processes at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polyprune_core.errors import ModelError
from polyprune_core.models import cache


def test_a_build_that_fails_leaves_nothing_and_is_tried_again(own_cache):
    def fail(work: Path) -> None:
        (work / "half").write_text("half")
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        cache.build_once("m", Path.exists, fail, print)
    assert not cache.model_folder("m").exists()
    assert not list(cache.models_folder().glob("*/half"))
    folder = cache.build_once("m", Path.exists, lambda work: (work / "whole").touch(), print)
    assert [path.name for path in folder.iterdir()] == ["whole"]


BUILD = """
import sys, time
from pathlib import Path
from polyprune_core.models import cache
def build(work):
    (work / "part").write_text("part")
    print("building", flush=True)
    time.sleep(float(sys.argv[1]))
    (work / "whole").write_text("whole")
cache.build_once("m", lambda folder: (folder / "whole").exists(), build, print)
"""


def start_build(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILD, str(seconds)], stdout=subprocess.PIPE, text=True)


def test_a_killed_build_leaves_nothing_usable_and_the_next_one_cleans_up(own_cache):
    killed = start_build(60)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "building\n"
    killed.kill()
    killed.wait()
    assert not cache.model_folder("m").exists()
    assert len(list(cache.models_folder().glob(".m.*.tmp"))) == 1
    assert start_build(0).wait() == 0
    assert sorted(path.name for path in cache.model_folder("m").iterdir()) == ["part", "whole"]
    assert not list(cache.models_folder().glob(".m.*.tmp"))


def test_of_two_processes_one_builds_and_the_other_waits_for_it(own_cache):
    said = [process.communicate()[0] for process in (start_build(1.0), start_build(1.0))]
    assert sum("building" in text for text in said) == 1
    assert sum("waiting" in text for text in said) == 1
    assert (cache.model_folder("m") / "whole").exists()


def test_a_cache_that_cannot_be_written_is_a_model_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be used.*POLYPRUNE_CACHE"):
        cache.build_once("m", Path.exists, Path.touch, print)
