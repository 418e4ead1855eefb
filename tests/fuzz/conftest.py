"""How long the fuzzing goes on: as a habit the same examples each time; `make test-fuzz` draws others, and more."""

import os

from hypothesis import HealthCheck, settings

_QUIET = {
    "database": None,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
}
settings.register_profile("habit", derandomize=True, max_examples=100, **_QUIET)
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 3000))
settings.register_profile("long", derandomize=False, max_examples=_EXAMPLES, print_blob=True, **_QUIET)
settings.load_profile("habit")
