"""Who may ask: whoever knows the server's token, on this machine, from its own pages.

    token    in the printed URL once, then in a cookie that no other site's page sends (SameSite=Strict) and no script
             reads; programs send `Authorization: Bearer TOKEN`
    Host     must be this server's address, or a foreign name that was made to lead here (DNS rebinding) would be served
    Origin   where a browser tells from which page a request comes, it must be one of this server
    size     bodies longer than what is needed are cut off

Every answer forbids the browser what the pages do not need, foreign scripts and requests above all.
"""

import contextlib
import hmac
import http.cookies
import os
import secrets
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreambooth_jax.config import ConfigError
from dreambooth_jax.web.photos import MOST_BYTES

TOKEN_FILE = 'token'
_MOST_JSON = 2**20  # bytes
_SAFE = ('GET', 'HEAD', 'OPTIONS')
_HEADERS = {
    'content-security-policy': (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    'x-content-type-options': 'nosniff',
    'x-frame-options': 'DENY',
    'referrer-policy': 'no-referrer',
    'cross-origin-resource-policy': 'same-origin',
    'cross-origin-opener-policy': 'same-origin',
    'permissions-policy': 'camera=(), microphone=(), geolocation=()',
}


def token_in(folder: Path) -> str:
    """Returns the token in a folder, which only its owner can read; a new one if there is none.

    It is kept so that a page that is open goes on when the server is started again.

    Raises:
      ConfigError: if the file is damaged.
      OSError: if it can be neither read nor written.
    """
    path = folder / TOKEN_FILE
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, 'w') as file:
            file.write(secrets.token_urlsafe(32) + '\n')
    token = path.read_text('ascii', 'replace').strip()
    if len(token) < 32:
        raise ConfigError(f'{path} is damaged; delete it, and the next start makes another')
    return token


class Guard:
    """An ASGI application around another one, which only sees requests that may be made.

    Args:
      app: the other one.
      token: what must be known.
      port: the server's.
    """

    def __init__(self, app: ASGIApp, token: str, port: int):
        self._app, self._token = app, token
        self._cookie = f'dreambooth_jax_{port}'  # cookies are shared by all ports of an address
        self._hosts = {f'{name}:{port}' for name in ('127.0.0.1', 'localhost')}
        self._origins = {f'http://{host}' for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] == 'lifespan':
            return await self._app(scope, receive, send)
        if scope['type'] != 'http':
            return await send({'type': 'websocket.close', 'code': 1008})  # there are none

        async def send_guarded(message: Message) -> None:
            if message['type'] == 'http.response.start':
                there = {name.lower() for name, _ in message['headers']}
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                if b'cache-control' not in there:
                    added.append((b'cache-control', b'no-store'))
                message = {**message, 'headers': [*message['headers'], *added]}
            await send(message)

        headers = _headers(scope)
        answer = self._refusal(scope, headers) or self._welcome(scope)
        if answer is None and not self._knows(headers):
            answer = _refused(401, 'open the address that serve has printed, which holds the token', scope)
        if answer is not None:
            return await answer(scope, receive, send_guarded)
        body = _Body(receive, _limit(scope))

        async def send_unless_cut(message: Message) -> None:
            if not body.is_cut:  # what the application makes of half a body is of no use
                await send_guarded(message)

        with contextlib.suppress(_TooLongError):
            await self._app(scope, body.receive, send_unless_cut)
        if body.is_cut:
            await _too_long(scope)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope, headers: Mapping[str, Sequence[str]]) -> Response | None:
        hosts, origins = headers.get('host', []), headers.get('origin', [])
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return _refused(421, 'this server is asked for as 127.0.0.1 or localhost, with its port, only', scope)
        if any(origin not in self._origins for origin in origins):
            return _refused(403, 'a page of another site may not ask this server', scope)
        site = headers.get('sec-fetch-site', ['none'])[0]
        if scope['method'] not in _SAFE and not origins and site not in ('none', 'same-origin'):
            return _refused(403, 'a page of another site may not ask this server', scope)
        lengths = headers.get('content-length', ['0'])
        if any(not length.isascii() or not length.isdigit() or int(length) > _limit(scope) for length in lengths):
            return _too_long(scope)
        return None

    def _welcome(self, scope: Scope) -> Response | None:
        """Answers a page's address that holds the token with a cookie and the address without it."""
        query = urllib.parse.parse_qsl(scope['query_string'].decode('latin-1'))
        given = [value for name, value in query if name == 'token']
        if scope['method'] != 'GET' or not given or not self._is_token(given[0]):
            return None
        rest = urllib.parse.urlencode([(name, value) for name, value in query if name != 'token'])
        path = '/' + scope['path'].lstrip('/')  # //other.site would be another server
        answer = RedirectResponse(path + (f'?{rest}' if rest else ''), 303)
        answer.set_cookie(self._cookie, self._token, max_age=30 * 86400, httponly=True, samesite='strict', path='/')
        return answer

    def _knows(self, headers: Mapping[str, Sequence[str]]) -> bool:
        for value in headers.get('authorization', []):
            kind, _, token = value.partition(' ')
            if kind.lower() == 'bearer' and self._is_token(token.strip()):
                return True
        for value in headers.get('cookie', []):
            with contextlib.suppress(http.cookies.CookieError):
                found = http.cookies.SimpleCookie(value).get(self._cookie)
                if found is not None and self._is_token(found.value):
                    return True
        return False

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


class _TooLongError(Exception):
    """A body is longer than allowed, whatever its head said."""


class _Body:
    """The body of a request, which ends with an error where it becomes too long.

    Attributes:
      is_cut: whether it has.
    """

    def __init__(self, receive: Receive, limit: int):
        self._receive, self._left = receive, limit
        self.is_cut = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message['type'] == 'http.request':
            self._left -= len(message.get('body', b''))
            if self._left < 0:
                self.is_cut = True
                raise _TooLongError
        return message


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope['headers']:
        found.setdefault(name.decode('latin-1').lower(), []).append(value.decode('latin-1'))
    return found


def _limit(scope: Scope) -> int:
    return MOST_BYTES if scope['path'].startswith('/api/photos/') else _MOST_JSON


def _too_long(scope: Scope) -> Response:
    return _refused(413, f'the request has more than {_limit(scope)} bytes', scope)


def _refused(status: int, why: str, scope: Scope) -> Response:
    if scope['path'].startswith('/api/'):
        return JSONResponse({'error': why}, status)
    return Response(f'{why}\n', status, media_type='text/plain')
