"""The text source `builtin:pydocs`: English prose that every CPython carries, so that nothing has to be fetched.

The prose is `pydoc_data.topics`, the help topics of the language reference (about 0.4 MB once topics that repeat one
another are dropped). It varies with the Python version, its length by 4 to 15 % between neighbouring ones: compare
perplexities only when they come from the same version. The side of the split a topic falls on depends on its name
alone, and so is the same in every version.
"""

from __future__ import annotations

import ast
import functools
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from polyprune_core.errors import DataError
from polyprune_core.evaluation.apart import runs, without

HELD_OUT = 0.28  # share of the topic names; 22-24 % of the characters in CPython 3.11 to 3.14
NOT_TEXT = frozenset({"test", "tests", "idlelib", "lib2to3", "turtledemo"})


@functools.cache
def _topics() -> dict[str, str]:
    """Returns the topics by name, sorted, without those mostly contained in longer ones ("with" in "compound")."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            f"builtin:pydocs needs pydoc_data, which {sys.executable} lacks. Give a text file or use a full CPython."
        ) from None
    kept: dict[str, str] = {}
    seen: set[tuple[str, ...]] = set()
    for name in sorted(topics, key=lambda n: (-len(topics[n]), n)):
        there = runs(topics[name])
        if 2 * len(there & seen) < len(there):
            kept[name] = topics[name].strip("\n")
            seen |= there
    return dict(sorted(kept.items()))


def _held_out(name: str) -> bool:
    return zlib.crc32(f"topics/{name}".encode()) < HELD_OUT * 2**32


@functools.cache
def calibration_text() -> str:
    """Returns the topics to calibrate and train on, joined by blank lines; `DataError` without `pydoc_data`."""
    return "\n\n".join(text for name, text in _topics().items() if not _held_out(name))


@functools.cache
def evaluation_text() -> str:
    """Returns the held-out topics, joined by blank lines, without paragraphs that share twelve words with calibration.

    Shorter paragraphs are left out when they occur whole in the calibration text. `DataError` without `pydoc_data`.
    """
    seen = runs(calibration_text())
    texts = (without(text, seen) for name, text in _topics().items() if _held_out(name))
    return "\n\n".join(text for text in texts if text)


def _sources() -> Iterator[Path]:
    """Yields the source files of the public standard-library modules, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(n for n in sys.stdlib_module_names if not n.startswith("_")):
        for path in [root / f"{name}.py", *sorted((root / name).rglob("*.py"))]:
            parts = path.relative_to(root).with_suffix("").parts
            public = not any(part.startswith("_") and part != "__init__" for part in parts)
            if path.is_file() and public and NOT_TEXT.isdisjoint(parts):
                yield path


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Yields the docstrings of a module, class or function and of its public members, in source order."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, kinds) and not getattr(node, "name", "").startswith("_"):
        yield ast.get_docstring(node) or ""
        for child in node.body if isinstance(node, ast.Module | ast.ClassDef) else ():
            yield from _docstrings(child)


@functools.cache
def docstrings_text() -> str:
    """Returns the distinct docstrings of the public standard library, for training only, joined by blank lines.

    Nothing is imported. No paragraph shares `RUN` words in a row with the evaluation text. `DataError` without source.
    """
    seen = runs(evaluation_text())
    docs: dict[str, None] = {}
    for path in _sources():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes(), str(path))
        docs.update(dict.fromkeys(without(doc, seen) for doc in _docstrings(tree)))
    docs.pop("", None)
    if not docs:
        raise DataError(f"no standard-library source under {sysconfig.get_path('stdlib')}. Use a complete CPython.")
    return "\n\n".join(docs)
