"""Names of texts to texts; whatever cannot be used is refused with what to do."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from polyprune_core.errors import ConfigError, DataError
from polyprune_core.evaluation import pydocs
from polyprune_core.evaluation.text import Text, load_text, load_texts


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize("role", ["calibration", "evaluation"])
def test_the_built_in_text_is_that_of_pydocs_for_its_role(role) -> None:
    expected = {"calibration": pydocs.calibration_text, "evaluation": pydocs.evaluation_text}[role]()
    assert load_text("builtin:pydocs", role) == Text("builtin:pydocs", expected)


def test_the_hash_of_a_text_is_that_of_its_utf8_bytes() -> None:
    assert Text("any", "naïve é\n").sha256 == hashlib.sha256("naïve é\n".encode()).hexdigest()


@pytest.mark.parametrize("role", ["calibration", "evaluation"])
def test_a_file_is_taken_as_it_is(tmp_path, role) -> None:
    content = " = Title = \n\n  A paragraph, é.\n\tindented\n\n\n"
    name = write(tmp_path / "some.txt", content)
    assert load_text(name, role) == Text("some.txt", content)


def test_a_raw_file_holds_one_row_a_line_joined_by_blank_lines(tmp_path) -> None:
    name = write(tmp_path / "wiki.test.raw", " \n = Title = \n \n First row . \n Second row . \n")
    # The rows as the hub's copy of WikiText gives them: "", " = Title = \n", "", " First row . \n", " Second row . \n".
    rows = ["", " = Title = \n", "", " First row . \n", " Second row . \n"]
    assert load_text(name, "evaluation").content == "\n\n".join(rows)


def test_only_a_line_end_ends_a_row_of_a_raw_file(tmp_path) -> None:
    """Other separators, which WikiText has inside its rows, do not: the hub's copy was cut at line ends alone."""
    name = write(tmp_path / "wiki.raw", "one \x0b two \x0c three \x85 four \u2028 five \x1c six \u2029 seven\nnext\n")
    expected = "one \x0b two \x0c three \x85 four \u2028 five \x1c six \u2029 seven\n\n\nnext\n"
    assert load_text(name, "evaluation").content == expected


def test_a_raw_file_without_a_last_line_end_keeps_its_last_row(tmp_path) -> None:
    assert load_text(write(tmp_path / "wiki.raw", "one\ntwo"), "evaluation").content == "one\n\n\ntwo"


@pytest.fixture
def hub(monkeypatch) -> SimpleNamespace:
    """Stands in for the datasets package: `rows` is what it serves or raises, `asked` what it was asked for."""
    served = SimpleNamespace(rows=None, asked=[])

    class Rows:
        @property
        def column_names(self) -> list[str]:
            return list(served.rows)

        def __getitem__(self, name: str) -> list[str]:
            return served.rows[name]

    def load_dataset(*args: object, **kwargs: object) -> Rows:
        served.asked.append((args, kwargs))
        if isinstance(served.rows, Exception):
            raise served.rows
        return Rows()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return served


def test_a_dataset_and_the_raw_file_of_its_rows_give_the_same_text(tmp_path, hub) -> None:
    hub.rows = {"text": ["", " = Title = \n", "", " First row . \n", " Second row . \n"]}
    name = write(tmp_path / "wiki.raw", " \n = Title = \n \n First row . \n Second row . \n")
    assert load_text("Salesforce/wikitext", "evaluation").content == load_text(name, "evaluation").content


@pytest.mark.parametrize(
    ("name", "role", "asked"),
    [
        ("owner/name", "calibration", ("owner/name", None, "train")),
        ("owner/name", "evaluation", ("owner/name", None, "test")),
        ("owner/name:config", "evaluation", ("owner/name", "config", "test")),
        ("owner/name:config:validation", "calibration", ("owner/name", "config", "validation")),
        ("owner/name::validation", "evaluation", ("owner/name", None, "validation")),
    ],
)
def test_the_two_roles_read_different_splits_unless_one_is_named(hub, name, role, asked) -> None:
    hub.rows = {"text": ["some text"]}
    assert load_text(name, role) == Text(name, "some text")
    assert hub.asked == [((asked[0], asked[1]), {"split": asked[2]})]


def test_a_dataset_without_a_text_column_is_refused_with_the_columns_it_has(hub) -> None:
    hub.rows = {"id": ["1"], "body": ["some text"]}
    with pytest.raises(DataError, match=r"'owner/name' has no column 'text'; it has id, body.*--text-column"):
        load_text("owner/name", "calibration")


@pytest.mark.parametrize("error", [ConnectionError("offline\nmore"), ValueError("unknown split"), KeyError("builder")])
def test_a_dataset_that_cannot_be_loaded_is_refused_with_the_reason(hub, error) -> None:
    hub.rows = error
    with pytest.raises(DataError, match="cannot load dataset 'owner/name': ") as refusal:
        load_text("owner/name", "calibration")
    assert error.args[0].splitlines()[0] in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["nothing-here.txt", "x" * 300, "x\0", "./nothing/here", "/nothing/here.raw", "~/text", "a/b/c.txt", ""]
)
def test_a_text_that_is_not_there_is_refused_without_asking_the_hub(hub, name) -> None:
    with pytest.raises(DataError, match=r"no text '.*give builtin:pydocs, an existing text file, or a hub dataset"):
        load_text(name, "calibration")
    assert hub.asked == []


@pytest.mark.parametrize("name", ["builtin:pydoc", "builtin:", "builtin:wikitext"])
def test_an_unknown_built_in_text_is_refused_with_those_there_are(name) -> None:
    with pytest.raises(DataError, match=r"no built-in text named .* Available: mix, prose, pydocs"):
        load_text(name, "calibration")


def test_a_mistyped_built_in_text_gets_the_nearest_name() -> None:
    with pytest.raises(DataError, match="Did you mean 'pydocs'"):
        load_text("builtin:pydoc", "calibration")


@pytest.mark.parametrize("suffix", [".txt", ".raw"])
@pytest.mark.parametrize("content", ["", " ", "\n\n \t\n"])
def test_a_text_of_blanks_is_refused(tmp_path, suffix, content) -> None:
    with pytest.raises(DataError, match="is empty"):
        load_text(write(tmp_path / f"empty{suffix}", content), "calibration")


@pytest.mark.parametrize("suffix", [".txt", ".raw"])
def test_a_file_that_is_not_text_is_refused(tmp_path, suffix) -> None:
    name = write(tmp_path / f"weights{suffix}", bytes(range(256)))
    with pytest.raises(DataError, match=r"cannot read .*weights.* as UTF-8 text"):
        load_text(name, "calibration")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is readable to this user")
def test_a_file_that_may_not_be_read_is_refused(tmp_path) -> None:
    name = write(tmp_path / "secret.txt", "text")
    Path(name).chmod(0)
    with pytest.raises(DataError, match="cannot read"):
        load_text(name, "calibration")


def test_a_folder_is_no_text(tmp_path) -> None:
    with pytest.raises(DataError, match="no text"):
        load_text(str(tmp_path), "calibration")


# Rows of datasets and of files.


def test_a_column_of_a_dataset_can_be_chosen(hub) -> None:
    hub.rows = {"id": ["1"], "body": ["some text"]}
    assert load_text("owner/name", "calibration", "body").content == "some text"


@pytest.mark.parametrize("missing", [None, "", " \n"])
def test_a_row_without_text_is_an_empty_one(hub, missing) -> None:
    hub.rows = {"text": ["one", missing, "two"]}
    assert load_text("owner/name", "calibration").content == "one\n\n\n\ntwo"


@pytest.mark.parametrize(("row", "kind"), [(3, "int"), ([{"role": "user"}], "list"), (b"x", "bytes"), ({}, "dict")])
def test_a_row_that_is_not_text_is_refused_with_its_number_and_column(hub, row, kind) -> None:
    hub.rows = {"text": ["one", row], "body": ["a", "b"]}
    refusal = rf"'owner/name', row 2: column 'text' holds {kind}, not text.*--text-column \(there are text, body\)"
    with pytest.raises(DataError, match=refusal):
        load_text("owner/name", "calibration")


RECORDS = [{"id": 1, "text": "first\u2028row"}, {"id": 2, "text": None}, {"id": 3}, {"id": 4, "text": "é\n"}]
JOINED = "first\u2028row\n\n\n\n\n\né\n"


def lines(records: list[object]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def columnar(records: list[dict[str, object]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(records), out)
    return out.getvalue()


FORMS = {
    "rows.jsonl": lines,
    "rows.ndjson": lines,
    "lines.json": lines,
    "rows.json": lambda records: json.dumps(records).encode(),
    "columns.json": lambda records: json.dumps({"text": [record.get("text") for record in records]}).encode(),
    "rows.parquet": columnar,
    "rows.jsonl.gz": lambda records: gzip.compress(lines(records)),
    "rows.parquet.gz": lambda records: gzip.compress(columnar(records)),
    "marked.jsonl": lambda records: b"\xef\xbb\xbf" + lines(records),
}


@pytest.mark.parametrize("name", FORMS)
def test_rows_of_a_file_are_read_as_those_of_a_dataset_are(tmp_path, hub, name) -> None:
    hub.rows = {"text": [record.get("text") for record in RECORDS]}
    assert load_text("owner/name", "calibration").content == JOINED
    path = write(tmp_path / name, FORMS[name](RECORDS))
    assert load_text(path, "calibration") == Text(name, JOINED)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_a_column_of_a_file_can_be_chosen_and_one_that_is_missing_is_refused(tmp_path, name) -> None:
    path = write(tmp_path / name, FORMS[name]([{"body": "some text", "id": 1}]))
    assert load_text(path, "calibration", "body").content == "some text"
    with pytest.raises(DataError, match=rf"{name}' has no column 'text'; it has body, id.*--text-column"):
        load_text(path, "calibration")
    with pytest.raises(DataError, match=rf"{name}', row 1: column 'id' holds int, not text"):
        load_text(path, "calibration", "id")


def test_lines_that_are_strings_are_text_themselves(tmp_path) -> None:
    assert load_text(write(tmp_path / "a.jsonl", '"one"\n\n"two"\n'), "calibration").content == "one\n\ntwo"


@pytest.mark.parametrize(("suffix", "plain"), [(".txt", True), (".raw", False)])
def test_a_compressed_text_is_the_text(tmp_path, suffix, plain) -> None:
    content = "one\r\ntwo\n"
    packed = write(tmp_path / f"a{suffix}.gz", gzip.compress(content.encode()))
    unpacked = load_text(write(tmp_path / f"a{suffix}", content), "calibration").content
    assert load_text(packed, "calibration").content == unpacked == ("one\ntwo\n" if plain else "one\n\n\ntwo\n")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.json", '{"text": ', "is not JSON"),
        ("a.json", '{"other": 1}', "has no column 'text'; it has other"),
        ("a.json", "3", "row 1: column 'text' holds int"),
        ("a.parquet", "PAR1 no", "as a Parquet file"),
        ("a.txt.gz", "not packed", "cannot read .*a.txt.gz"),
        ("a.csv", "text\nx", "is a table, which is not read as text; give a text, .jsonl, .json or .parquet"),
        ("a.txt.zst", "x", "is an archive"),
        ("a.PDF", "x", "is a document"),
    ],
    ids=lambda value: value[:9],
)
def test_a_file_that_is_broken_or_of_another_kind_is_refused_by_name(tmp_path, name, content, told) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=told) as refusal:
        load_text(path, "calibration")
    assert name in str(refusal.value)


def test_a_column_where_no_text_has_one_is_refused(tmp_path) -> None:
    rows = write(tmp_path / "a.jsonl", '{"body": "some text"}')
    with pytest.raises(ConfigError, match=r"--text-column body is about datasets.*no columns in builtin:pydocs"):
        load_texts("builtin:pydocs", ("builtin:pydocs",), "body")
    assert load_texts(rows, ("builtin:pydocs",), "body").calibration.content == "some text"


# Mixes.


def test_a_mix_has_its_parts_and_a_hash_of_theirs(tmp_path) -> None:
    one, two = (write(tmp_path / name, name) for name in ("one.txt", "two.txt"))
    mix = load_text(f"{one}+{two}", "calibration")
    assert (mix.name, mix.parts) == ("one.txt+two.txt", (Text("one.txt", "one.txt"), Text("two.txt", "two.txt")))
    hashes = {load_text(name, "calibration").sha256 for name in (one, two, f"{one}+{two}", f"{two}+{one}")}
    assert len(hashes) == 4


def test_a_file_with_a_plus_in_its_name_is_one_text(tmp_path) -> None:
    assert load_text(write(tmp_path / "c++.txt", "x"), "evaluation").parts == ()


@pytest.mark.parametrize("name", ["builtin:pydocs+builtin:pydocs", "builtin:pydocs+"])
def test_a_mix_of_a_text_with_itself_or_nothing_is_refused(name) -> None:
    with pytest.raises(DataError, match="give different texts joined by"):
        load_text(name, "calibration")


def test_perplexity_is_not_measured_on_a_mix() -> None:
    with pytest.raises(DataError, match=r"perplexity is of one text, and a mix is for --calibration only"):
        load_text("builtin:pydocs+other/text", "evaluation")
