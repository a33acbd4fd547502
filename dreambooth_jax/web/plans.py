"""Plans: what `train --dry_run` says of settings, photos, steps, memory and time, in a process of its own."""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Sequence

from dreambooth_jax.web.refused import Refused

_LONGEST = 300.0  # seconds
_MOST_KEPT = 32


class Plans:
    """Asks train for plans, one after the other, and keeps the last ones."""

    def __init__(self):
        self._turn = asyncio.Lock()
        self._kept: dict[tuple[str, ...], str] = {}

    async def plan(self, arguments: Sequence[str], is_gone: Callable[[], Awaitable[bool]]) -> str:
        """Returns the plan of a command line.

        Args:
          arguments: the flags of train.
          is_gone: whether nobody waits for the answer any more; the process is ended then.

        Raises:
          Refused: if train refuses the settings, in its own words, or takes too long.
        """
        async with self._turn:
            if await is_gone():
                raise Refused('nobody waits for the plan')
            if tuple(arguments) in self._kept:
                return self._kept[tuple(arguments)]
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                '-m',
                'dreambooth_jax.train',
                *arguments,
                '--dry_run',
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                out, wrong = await _finished(process, is_gone)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            if process.returncode:
                lines = [line for line in wrong.decode('utf-8', 'replace').splitlines() if line.strip()]
                raise Refused(lines[-1] if lines else 'the plan could not be made', 422)
            while len(self._kept) >= _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            return self._kept.setdefault(tuple(arguments), out.decode('utf-8', 'replace').strip())


async def _finished(process, is_gone: Callable[[], Awaitable[bool]]) -> tuple[bytes, bytes]:
    reading = asyncio.create_task(process.communicate())
    waited = 0.0
    while not (await asyncio.wait([reading], timeout=0.5))[0]:
        waited += 0.5
        if waited > _LONGEST or await is_gone():
            reading.cancel()
            raise Refused(f'the plan took more than {_LONGEST:.0f} seconds', 504)
    return reading.result()
