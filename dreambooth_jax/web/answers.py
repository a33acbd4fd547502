"""What /api/openapi.json says that the types of the API do not: refusals, files, uploads and the stream of events.

FastAPI would describe errors of its own making, which this server never answers with, and images as JSON. A route whose
answer is no JSON has Response as its class there: its refusals would else be described as of the answer's media type.
"""

from typing import Any

from fastapi import Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from dreambooth_jax.web.photos import MOST_BYTES, MOST_PIXELS

EVENT_STREAM = 'text/event-stream'
_FILE, _TEXT = {'schema': {'type': 'string', 'format': 'binary'}}, {'schema': {'type': 'string'}}
_WHY = {
    401: 'The token is missing or wrong.',
    403: 'A page of another site asks.',
    404: 'Something that the address or the body names is not there.',
    408: 'The body has stopped coming, or comes too slowly.',
    409: 'It is not in a state for this, or its name is taken.',
    413: 'The body has too many bytes, or the image in it too many pixels.',
    415: 'The body is no image of a format that is read.',
    421: 'The server is asked by another name than 127.0.0.1 or localhost with its port.',
    422: 'A part of the address or of the body is missing, unknown or not allowed, or the settings of the run are.',
    500: 'A file cannot be read or written.',
    503: 'Too many uploads wait already.',
    504: 'It took too long.',
    507: 'The disk is full.',
}
# What the guard, the check of fields or the disk may answer to any request.
_ALWAYS = (401, 403, 413, 421, 422, 500, 507)
# What the guard asks for, so that the description says it too; the guard alone decides.
TOKEN = Security(
    HTTPBearer(auto_error=False, description='The token in the address that serve prints, kept in RUNS/.serve/token.')
)


class Refusal(BaseModel):
    """The answer to whatever is not done."""

    error: str = Field(description='One sentence: what is wrong, and where it helps, what is allowed.')


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the description of the refusals of a route.

    Args:
      statuses: those of its own, besides those that any request may be answered with.
    """
    return {status: {'model': Refusal, 'description': _WHY[status]} for status in sorted({*_ALWAYS, *statuses})}


def file(*types: str) -> dict[int | str, dict[str, Any]]:
    """Returns the description of an answer that is no JSON.

    Args:
      types: the media types that it may have.
    """
    return {
        200: {
            'description': 'What was asked for.',
            'content': {type_: _TEXT if type_.startswith('text/') else _FILE for type_ in types},
        }
    }


def upload(*, required: bool) -> dict[str, Any]:
    """Returns the description of a body that is an image's file; for a route's `openapi_extra`.

    Args:
      required: whether it may not be empty.
    """
    return {
        'requestBody': {
            'required': required,
            'description': f'The bytes of the file itself, no form; at most {MOST_BYTES // 2**20} MB and '
            f'{MOST_PIXELS // 10**6} million pixels. Its format is seen in them, whatever Content-Type says.',
            'content': {'image/*': _FILE, 'application/octet-stream': _FILE},
        }
    }


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        'description': 'Server-sent events, until the folder of the run is gone or the server ends. `metrics`: `data` '
        "is a line of the run's numbers, `id` names it. `run`: `data` is the run as /api/runs/{run} has it, with "
        '`samples` (stage -> steps that have a grid), `downloads` (names) and `exports` (states) besides; it comes '
        'after the lines that are there, and then whenever it changes. A comment shows now and then that the '
        'stream is alive.',
        'content': {
            EVENT_STREAM: {
                'schema': {'type': 'string'},
                'example': 'id: base:120:0\nevent: metrics\ndata: {"stage": "base", "step": 120, "loss": 0.1}\n\n',
            }
        },
    }
}
