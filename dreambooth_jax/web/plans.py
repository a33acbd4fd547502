"""Plans: what `train --dry_run` says of settings, photos, steps, memory, time and price, in a process of its own."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Hashable, Sequence

from pydantic import BaseModel, Field

from dreambooth_jax.config.price import Price
from dreambooth_jax.web.devices import ALL, DeviceSet
from dreambooth_jax.web.refused import Refused

_LONGEST = 300.0  # seconds
_MOST_KEPT = 32


# What a plan may use: on a GPU only the memory that it needs, and beside a training nothing but the CPU, since a TPU
# serves one process.
_ENVIRONMENT = {False: {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}, True: {'JAX_PLATFORMS': 'cpu'}}
_BESIDE = 'The devices are at work, so this is a plan for the CPU{}; plan again when they are free.'


class Plan(BaseModel):
    """What a run will need, before it starts."""

    note: str | None = Field(description='Why it is not for the devices that the run will have; null: it is for them.')
    devices: str = Field(description='What it is for, such as `4 x cpu`.')
    seconds: float | None = Field(description='How long the run takes, without compilation and samples; null: unknown.')
    time: str | None = Field(description='That in words.')
    cost: float | None = Field(
        description='What these seconds cost, in the currency of --price_per_hour; null: serve was not given that, or '
        'the plan is not for the devices that the run will have.'
    )
    price: str | None = Field(description='That in words, with currency and what an hour costs.')
    peak_bytes: int | None = Field(description='The most memory that each device needs, as far as it is counted.')
    memory: str | None = Field(description="That in words: 'at least' where not all is counted, and when that is.")
    about_steps: str | None = Field(
        description='How often the steps of the base stage show each photo, and how many steps are proposed; null: no '
        'photos of your own are trained on.'
    )
    proposed_steps: int | None = Field(
        description='What is proposed for base.steps in place of what is set, if that is of a settings file; null: '
        'nothing else.'
    )
    plan: str = Field(description='What `train --dry_run` prints: photos, settings, and all of this in more detail.')


class Plans:
    """Asks train for plans, one after the other, and keeps the last ones.

    Args:
      idle: returns a set of accelerators on which neither a training nor a generation works; None if there is none.
      price: of an hour of this machine; None: plans say nothing of it.
    """

    def __init__(self, idle: Callable[[], DeviceSet | None] = lambda: ALL, price: Price | None = None):
        self._idle, self._price, self._turn = idle, price, asyncio.Lock()
        self._kept: dict[tuple[bool, DeviceSet, tuple[str, ...], Hashable], Plan] = {}

    async def plan(
        self, arguments: Sequence[str], is_gone: Callable[[], Awaitable[bool]], stamp: Hashable = None
    ) -> Plan:
        """Returns the plan of a command line.

        Args:
          arguments: the flags of train.
          is_gone: whether nobody waits for the answer any more; the process is ended then.
          stamp: what else the plan depends on, such as how the photos are now: another one, and it is made anew.

        Raises:
          Refused: if train refuses the settings, in its own words, or takes too long.
        """
        async with self._turn:
            if await is_gone():
                raise Refused('nobody waits for the plan')
            idle = self._idle()
            beside, devices = idle is None and os.environ.get('JAX_PLATFORMS') != 'cpu', idle or ALL
            asked = beside, devices, tuple(arguments), stamp
            if asked in self._kept:
                return self._kept[asked]
            # Beside a training the plan is for the CPU, where the run will not be: its time there would cost too much.
            priced = [f'--price_per_hour={self._price.text}'] if self._price and not beside else []
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                '-m',
                'dreambooth_jax.train',
                *arguments,
                *priced,
                '--dry_run',
                '--as_json',
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT[beside], **devices.environment()},
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
            note = _BESIDE.format(', without a price' if self._price else '') if beside else None
            made = json.loads(out.splitlines()[-1])
            text = made.pop('text').encode('utf-8', 'replace').decode()  # names of files may be no text
            return self._kept.setdefault(asked, Plan(note=note, plan=text, **made))


async def _finished(process, is_gone: Callable[[], Awaitable[bool]]) -> tuple[bytes, bytes]:
    reading = asyncio.create_task(process.communicate())
    waited = 0.0
    while not (await asyncio.wait([reading], timeout=0.5))[0]:
        waited += 0.5
        if waited > _LONGEST or await is_gone():
            reading.cancel()
            raise Refused(f'the plan took more than {_LONGEST:.0f} seconds', 504)
    return reading.result()
