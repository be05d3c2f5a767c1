"""The published schema is that of the code, and results are what it says."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pydantic
import pytest
from packaging.version import Version

from polyprune_core.results import schema
from polyprune_core.results.results import Results
from polyprune_core.results.row import columns_of_row
from polyprune_core.results.schema import published, rendered, results_schema

COMMITTED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "estimators.json"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    record = json.loads(published())
    jsonschema.Draft202012Validator.check_schema(record)
    return jsonschema.Draft202012Validator(record)


@pytest.mark.skipif(
    Version(pydantic.VERSION) < Version("2.14"), reason="older releases do not describe types, and the file does"
)
def test_the_file_that_ships_is_the_one_that_the_types_give() -> None:
    assert published() == rendered(), f"write it anew: {schema.__doc__}"


def test_every_field_of_a_row_is_in_the_schema() -> None:
    assert set(results_schema()["$defs"]["Row"]["properties"]) == set(columns_of_row())


def test_committed_results_and_what_they_are_read_as_are_valid(validator) -> None:
    record = json.loads(COMMITTED.read_text("utf-8"))
    validator.validate(record)
    validator.validate(Results.from_json(record).to_json())


@pytest.mark.parametrize(
    "fault",
    [
        {"schema": 2},
        {"model": {}},
        {"rows": [{"kind": "dense"}]},
        {"rows": [{"id": "x", "kind": "dense", "perplexity": "low"}]},
        {"texts": None},
        {"summary": [{}]},
    ],
)
def test_what_is_not_results_is_not_valid(validator, fault) -> None:
    record = json.loads(COMMITTED.read_text("utf-8"))
    assert not validator.is_valid(record | fault)
    assert not validator.is_valid({name: value for name, value in record.items() if name not in fault})
