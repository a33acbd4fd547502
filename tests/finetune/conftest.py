from tests.quick import quick  # noqa: F401
