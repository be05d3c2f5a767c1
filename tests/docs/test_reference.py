"""The reference leaves nothing out, for a reader of the files as for one of the site."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import polyprune_core
from polyprune_core.testing.family import FAMILY_CHECKS

ROOT = Path(__file__).resolve().parents[2]
API = (ROOT / "docs" / "reference" / "api.md").read_text("utf-8")
MODULE = re.compile(r"polyprune_core(?:/\w+)+\.(?:py|toml)|\bpolyprune_core(?:\.\w+)+")
PROSE = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def listed(page: str) -> set[str]:
    """The names in the first column of a page's tables."""
    return set(re.findall(r"^\| `(\w+)` \|", page, re.M))


def test_every_public_name_is_in_a_table_or_in_the_text_of_the_interface() -> None:
    in_the_text = {"API_VERSION", "State", "hookimpl"}
    assert set(polyprune_core.__all__) - listed(API) == in_the_text
    assert all(re.search(rf"`(polyprune_core\.)?{name}`", API) for name in in_the_text)


def test_what_the_site_documents_of_the_interface_a_reader_of_the_file_finds_too() -> None:
    documented = set(re.findall(r"^\.\. auto(?:class|function):: polyprune_core\.(?:\w+\.)*(\w+)$", API, re.M))
    assert len(documented) > 30
    assert documented <= listed(API)


@pytest.mark.parametrize("kind", ["granularity", "initializer", "policy", "estimator", "repair", "exporter"])
def test_the_page_of_plugins_has_a_table_of_every_kind(kind) -> None:
    page = (ROOT / "docs" / "reference" / "plugins.md").read_text("utf-8")
    assert re.search(rf"<!-- table: plugins {kind} -->\n(\| .*\n){{3,}}<!-- end: plugins {kind} -->", page)


def test_a_command_is_told_with_its_options_and_their_defaults(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    told = runpy.run_path(str(ROOT / "benchmarks" / "reference.py"))["commands"]()
    (prune,) = re.findall(r"^### polyprune prune$(.*?)^### ", told, re.M | re.S)
    assert re.search(r"^\| `-s, --sparsity X` \| .*\[0\.2\] \|$", prune, re.M)
    assert "### polyprune plugins check\n\n`polyprune plugins check [OPTIONS] PLUGIN`\n" in told


@pytest.mark.parametrize("page", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_that_a_page_names_are_there(page) -> None:
    for name in MODULE.findall(page.read_text("utf-8")):
        if "/" in name:
            assert (ROOT / name).is_file(), name
        else:
            assert found(name), name


def found(name: str) -> bool:
    """Whether a dotted name leads to a module, or to something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = __import__(".".join(parts[:end])) and sys.modules[".".join(parts[:end])]
        except ImportError:
            continue
        for part in parts[end:]:
            thing = getattr(thing, part, None)
        return thing is not None
    return False


def test_every_family_was_checked_as_it_is_now(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    now = runpy.run_path(str(ROOT / "benchmarks" / "check_families.py"))["types"]()
    record = json.loads((ROOT / "benchmarks" / "results" / "families.json").read_text("utf-8"))["types"]
    again = "run python benchmarks/check_families.py --output benchmarks/results/families.json"
    assert {name: {key: found[key] for key in ("family", "said", "kinds")} for name, found in record.items()} == now, (
        again
    )
    checks = {check.__name__: "passed" for check in FAMILY_CHECKS}
    assert all(found["checks"] == checks for found in record.values()), again
