"""The application: API, pages and errors behind the guard."""

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from dreambooth_jax.config import ConfigError
from dreambooth_jax.system import disk
from dreambooth_jax.web import api, guard, pages
from dreambooth_jax.web.refused import Refused
from dreambooth_jax.web.state import Desk


def application(desk: Desk, token: str, port: int, stopped: Callable[[], bool] = lambda: False) -> guard.Guard:
    """Returns the whole server as an ASGI application.

    Args:
      token: what whoever asks must know (guard.py).
      port: the server's.
      stopped: whether the server ends.
    """
    # Swagger's pages would fetch scripts from elsewhere; the description itself is served.
    app = FastAPI(
        title='DreamBooth-JAX', openapi_url='/api/openapi.json', docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.include_router(api.router(desk, stopped))
    app.include_router(pages.router(desk))
    app.mount('/static', StaticFiles(directory=Path(__file__).parent / 'static'))

    def told(request: Request, status: int, sentence: str):
        if request.url.path.startswith('/api/'):
            return JSONResponse({'error': sentence}, status)
        if request.url.path.startswith('/static/'):
            return PlainTextResponse(sentence, status)
        return pages.error_page(status, sentence)

    for kind in (Refused, ConfigError):
        app.add_exception_handler(kind, lambda request, error: told(request, *api.sentence(error)))

    @app.exception_handler(HTTPException)
    def of_starlette(request: Request, error: HTTPException):
        return told(request, error.status_code, 'there is no such page' if error.status_code == 404 else error.detail)

    @app.exception_handler(RequestValidationError)
    def of_fields(request: Request, error: RequestValidationError):
        wrong = '; '.join(f'{".".join(map(str, one["loc"]))}: {one["msg"]}' for one in error.errors())
        return told(request, 422, wrong)

    @app.exception_handler(OSError)
    def of_disk(request: Request, error: OSError):
        return told(request, 507 if disk.is_full(error) else 500, disk.sentence(error))

    return guard.Guard(app, token, port)
