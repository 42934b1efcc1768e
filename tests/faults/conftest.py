"""The real partners of the integration tests serve here too."""

from tests.integration.conftest import programs  # noqa: F401
