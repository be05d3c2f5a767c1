"""The conformance kit: what every plugin has to do, as tests that its author runs too.

    import polyprune_fluctuation
    from polyprune_core.testing import conformance_tests

    test_conformance = conformance_tests(polyprune_fluctuation)

A file of model families has its own tests: `family_tests(path)`.

`polyprune_core.testing.tiny` has small models, units and calibration for tests of one's own.
"""

from polyprune_core.testing.family import family_tests
from polyprune_core.testing.kit import CheckResult, conformance_tests, run_checks

__all__ = ["CheckResult", "conformance_tests", "family_tests", "run_checks"]
