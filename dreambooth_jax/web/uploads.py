"""Takes in files that are uploaded, a few at a time, so that many at once need no more memory than a few.

Whoever waits sends nothing meanwhile: the body of a request that is not read stays on the other side of the connection.
"""

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator

from fastapi import Request

from dreambooth_jax.web.refused import Refused

AT_ONCE, MOST_WAITING = 2, 64  # one file is decoded while another one arrives
_LONGEST_PAUSE = 20.0  # seconds without a byte, after which a file that no longer comes makes way for others
_SLOWEST = 20_000  # bytes a second over a file, once the time of that pause is over; slower ones make way too


class Uploads:
    """The files that are being taken in by one server.

    Args:
      at_once: how many are held in memory.
      most_waiting: how many more may wait for their turn.
    """

    def __init__(self, at_once: int = AT_ONCE, most_waiting: int = MOST_WAITING):
        self._turns, self._waiting, self._most_waiting = asyncio.Semaphore(at_once), 0, most_waiting

    @contextlib.asynccontextmanager
    async def file_in(self, request: Request) -> AsyncIterator[bytes]:
        """Gives the file that is the body of a request, when its turn has come; inside, it counts as held.

        Raises:
          Refused: if the body is a form, stops coming or comes too slowly, or too many wait already.
        """
        if request.headers.get('content-type', '').lower().startswith('multipart/'):
            raise Refused('the body is a form; send the bytes of the file alone, as curl --data-binary @FILE does', 415)
        if self._turns.locked() and self._waiting >= self._most_waiting:
            raise Refused(f'{self._waiting} uploads wait already; send this one again when some of them are done', 503)
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield await _body(request)
        finally:
            self._turns.release()


async def _body(request: Request) -> bytes:
    # BytesIO gives its bytes away without a copy; two of 64 MB would be held else.
    pieces, file, begun = request.stream(), io.BytesIO(), time.monotonic()
    with contextlib.suppress(StopAsyncIteration):
        while True:
            try:
                async with asyncio.timeout(_LONGEST_PAUSE):
                    piece = await anext(pieces)
            except TimeoutError:
                raise Refused(f'nothing has come for {_LONGEST_PAUSE:.0f} seconds; send the file again', 408) from None
            file.write(piece)
            seconds = time.monotonic() - begun
            if seconds > _LONGEST_PAUSE and file.tell() < _SLOWEST * seconds:
                raise Refused(f'only {file.tell()} bytes have come in {seconds:.0f} seconds; send the file again', 408)
    return file.getvalue()
