from tests.support.quick import quick  # noqa: F401
