"""Every family that comes with polyprune, on tiny random models of transformers' own configurations."""

from __future__ import annotations

from pathlib import Path

from polyprune_core.models import families
from polyprune_core.testing.family import family_tests

test_family = family_tests(Path(families.__file__).with_name("families.toml"))
