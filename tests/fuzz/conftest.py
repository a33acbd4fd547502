from tests.programs.conftest import program, quick  # noqa: F401
