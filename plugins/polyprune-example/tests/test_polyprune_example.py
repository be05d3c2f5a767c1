import polyprune_example
from polyprune_core.testing import conformance_tests

test_conformance = conformance_tests(polyprune_example)
