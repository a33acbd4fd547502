from tests.support.holding import hold  # noqa: F401
