"""A client that holds every answer of the API against what /api/openapi.json says of it."""

import functools
import re

from starlette.testclient import TestClient


@functools.cache
def _pattern(path: str) -> re.Pattern:
    return re.compile(re.sub(r'\{\w+\}', '[^/]+', path))


def described_answers(paths: dict, method: str, path: str) -> dict | None:
    """Status -> description of the answers of the operation that answers a request; None: there is none."""
    for there, operations in paths.items():
        if method.lower() in operations and _pattern(there).fullmatch(path):
            return operations[method.lower()]['responses']
    return None


class DescribedClient(TestClient):
    """A client without a server process whose answers must be as described: status, media type, refusals' form."""

    _paths = None

    @property
    def paths(self) -> dict:
        """What is described; asked behind the guard and once a session, since it is the same for all servers."""
        if DescribedClient._paths is None:
            DescribedClient._paths = self.app._app.openapi()['paths']
        return DescribedClient._paths

    def request(self, method, url, **options):
        answer = super().request(method, url, **options)
        path = answer.request.url.path
        told = described_answers(self.paths, method, path) if path.startswith('/api/') else None
        if told is None:
            return answer
        where, status = f'{method} {path}', str(answer.status_code)
        assert status in told, f'{where} answers {status}, which is not described'
        kinds = set(told[status].get('content', {}))
        found = answer.headers.get('content-type', '').partition(';')[0]
        assert (found in kinds) if kinds else not answer.content, (
            f'{where} answers {status} with {found!r}, not {kinds}'
        )
        if answer.status_code >= 400:
            assert list(answer.json()) == ['error'] and isinstance(answer.json()['error'], str), where
        return answer
