"""Plans come from train itself, one at a time, and only while somebody waits."""

import asyncio
import sys

import pytest

from dreambooth_jax.config.price import Price
from dreambooth_jax.web import devices, plans
from dreambooth_jax.web.devices import ALL
from dreambooth_jax.web.plans import Plans
from dreambooth_jax.web.refused import Refused

NOTHING = {
    **dict.fromkeys(('seconds', 'time', 'cost', 'price', 'peak_bytes', 'memory', 'about_steps', 'proposed_steps')),
    'price': 'about 0.20 USD at 1.20 USD an hour',
}


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Makes plans with a stand-in for train, which counts its calls."""
    program = tmp_path / 'program'
    calls = tmp_path / 'calls'
    program.write_text(
        f'#!{sys.executable}\nimport json, os, sys, time\n'
        f'print(*sys.argv[3:], file=open({str(calls)!r}, "a"))\n'
        'assert sys.argv[1:3] == ["-m", "dreambooth_jax.train"] and sys.argv[-2:] == ["--dry_run", "--as_json"]\n'
        'if "--slow" in sys.argv: time.sleep(60)\n'
        'if "--wrong" in sys.argv: print("a warning", file=sys.stderr); sys.exit("the sentence")\n'
        'print("a line that a library prints")\n'
        'seen = ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_PREALLOCATE")\n'
        f'plan = {NOTHING!r} | {{"text": "the plan of " + sys.argv[3] + "\\udcff" * ("--odd" in sys.argv)}}\n'
        'plan["devices"] = " ".join(os.environ.get(name, "-") for name in seen)\n'
        'print(json.dumps(plan))\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(plans.sys, 'executable', str(program))
    return calls


async def here():
    return False


async def gone():
    return True


def test_a_plan_is_made_once_and_anew_when_its_photos_change(planned):
    async def twice():
        made = Plans()
        found = [await made.plan(['--a'], here, stamp) for stamp in (None, None, 'new photos', 'new photos')]
        assert found[2] is found[3] is not found[1]
        return found[:2]

    first, second = asyncio.run(twice())
    assert first is second and (first.plan, first.note, first.seconds) == ('the plan of --a', None, None)
    assert first.price == 'about 0.20 USD at 1.20 USD an hour'
    assert planned.read_text() == 2 * '--a --dry_run --as_json\n'


def test_a_file_name_that_is_no_text_is_shown_as_far_as_it_is(planned):
    assert asyncio.run(Plans().plan(['--a', '--odd'], here)).plan == 'the plan of --a?'


def test_what_train_refuses_is_told_in_its_words(planned):
    with pytest.raises(Refused, match='^the sentence$') as error:
        asyncio.run(Plans().plan(['--wrong'], here))
    assert error.value.status == 422


def test_a_plan_that_nobody_waits_for_is_ended(planned):
    async def first_is_left():
        made, left = Plans(), asyncio.Event()

        async def is_gone():
            return left.is_set()

        slow = asyncio.create_task(made.plan(['--slow'], is_gone))
        await asyncio.sleep(0.3)
        next_one = asyncio.create_task(made.plan(['--b'], here))
        left.set()
        with pytest.raises(Refused):
            await slow
        return await next_one

    assert asyncio.run(first_is_left()).plan == 'the plan of --b'
    with pytest.raises(Refused):
        asyncio.run(Plans().plan(['--c'], gone))
    assert '--c' not in planned.read_text()


def test_a_plan_that_takes_too_long_is_ended(planned, monkeypatch):
    monkeypatch.setattr(plans, '_LONGEST', 0.1)
    with pytest.raises(Refused, match='took more than'):
        asyncio.run(Plans().plan(['--slow'], here))


def test_a_plan_leaves_the_accelerators_to_a_training(planned, monkeypatch):
    for name in ('CUDA_VISIBLE_DEVICES', 'JAX_PLATFORMS'):
        monkeypatch.delenv(name, raising=False)
    at_work = []
    made = Plans(lambda: None if at_work else ALL)

    async def before_and_beside():
        first = await made.plan(['--a'], here)
        at_work.append('dog')
        return first, await made.plan(['--a'], here)

    first, beside = asyncio.run(before_and_beside())
    assert (first.note, first.devices, beside.devices) == (None, '- - false', '- cpu -')
    assert beside.note == 'The devices are at work, so this is a plan for the CPU; plan again when they are free.'


def test_a_plan_is_made_on_an_idle_set_of_accelerators_and_anew_on_another(planned, monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    idle = [*devices.parse(['0,1', '2']), ALL]
    made = Plans(lambda: idle[0])

    async def on_each():
        found = []
        while idle:
            found += [(await made.plan(['--a'], here)).devices.split()[0] for _ in range(2)]
            idle.pop(0)
        return found

    assert asyncio.run(on_each()) == ['0,1', '0,1', '2', '2', '-', '-']
    assert len(planned.read_text().splitlines()) == 3


def test_a_plan_is_asked_for_its_price_where_the_run_would_be(planned, monkeypatch):
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    at_work = []
    made = Plans(lambda: None if at_work else ALL, Price.parsed('--price_per_hour', '1.20 USD'))

    async def before_and_beside():
        await made.plan(['--a'], here)
        at_work.append('dog')
        return await made.plan(['--a'], here)

    assert ', so this is a plan for the CPU, without a price;' in asyncio.run(before_and_beside()).note
    assert [line.removesuffix(' --dry_run --as_json') for line in planned.read_text().splitlines()] == [
        '--a --price_per_hour=1.20 USD',
        '--a',
    ]
