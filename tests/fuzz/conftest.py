from tests.programs.conftest import program  # noqa: F401
