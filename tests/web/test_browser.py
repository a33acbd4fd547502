"""A person with a browser, from four photos to a download; the page is reloaded and the server killed meanwhile."""

import contextlib
import itertools
import json
import time
import zipfile

import psutil
import pytest
from PIL import Image

from dreambooth_jax.client import Client
from dreambooth_jax.storybook import draw, subjects
from tests.support import chromium, smallest_pipelines
from tests.support.served import Server, image_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason='Chromium is not installed'),
]

# The run is stopped long before its last step, so that nothing depends on how fast a machine is.
SETTINGS = '''"""A small model on the subject's photos."""
from dreambooth_jax.config import DreamBoothConfig, to_config_dict


def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.model = {model!r}
    config.super_resolution_model = 'none'
    config.data.instance_prompt, config.data.class_prompt = 'a sks dog', 'a dog'
    config.prior.num_images, config.prior.steps = 2, 2
    config.base.steps, config.base.learning_rate = 1_000_000, 1e-4
    config.samples.steps, config.samples.num_images, config.samples.prompts = 2, 1, ('a sks dog', 'a dog')
    config.checkpoint.every = 100_000
    return config
'''


@pytest.fixture
def photos(tmp_path):
    """Four photos and a file that is none."""
    for number, scene in enumerate(subjects.reference_scenes('dog')[:4]):
        pixels = draw.paint(scene, 128)
        chromium_image(pixels).save(tmp_path / f'IMG_{number}.jpg')
    (tmp_path / 'notes.jpg').write_text('no photo')
    return [*sorted(tmp_path.glob('IMG_*.jpg')), tmp_path / 'notes.jpg']


def chromium_image(pixels):
    return Image.fromarray(pixels).resize((180, 140))


@pytest.fixture
def configs(tmp_path):
    folder = tmp_path / 'configs'
    folder.mkdir()
    (folder / 'small.py').write_text(SETTINGS.format(model=str(smallest_pipelines.folder('pixels'))))
    return folder


@pytest.fixture
def serve(configs, tmp_path):
    """Starts the server; at the end it and what it has started are ended."""
    started = []

    def start(port=0):
        started.append(Server(tmp_path / 'runs', '--price_per_hour=3 USD', configs=configs, port=port))
        return started[-1]

    yield start
    if started[-1].process.poll() is None:
        started[-1].end()
    for path in (tmp_path / 'runs' / '.serve' / 'jobs').glob('*.json'):
        job = json.loads(path.read_text())
        with contextlib.suppress(psutil.NoSuchProcess):
            if (
                job['state'] == 'running'
                and f'--workdir={tmp_path / "runs" / "rex"}' in psutil.Process(job['pid']).cmdline()
            ):
                psutil.Process(job['pid']).kill()


def text(page, selector):
    return page.run(f'document.querySelector({json.dumps(selector)})?.textContent ?? ""')


def state_is(page, state, seconds=120):
    page.until(f"document.querySelector('[data-part=head] .state')?.textContent === '{state}'", seconds)


def step(page):
    return int(text(page, '#step') or 0)


def step_after(page, least, seconds=180):
    page.until(f"Number(document.querySelector('#step')?.textContent ?? 0) > {least}", seconds)
    return step(page)


def test_from_photos_to_a_download(photos, serve, tmp_path):
    server = serve()
    port, asked = server.port, Client(server.address)
    with chromium.Page(server.address, tmp_path / 'profile') as page:
        assert page.run('location.search') == '' and 'There is no run yet' in text(page, 'main')

        # Four photos are dropped, and one that is none is refused by name.
        page.go(f'http://127.0.0.1:{port}/photos')
        page.drop('.drop', photos)
        page.until("location.pathname === '/photos/photos-1' && document.querySelectorAll('main li img').length === 4")
        page.until(
            "[...document.querySelectorAll('main li img')].every(one => one.complete && one.naturalWidth === 140)"
        )
        page.until("document.querySelector('.findings .error')?.textContent.includes('smaller than the resolution')")
        page.drop('.drop', photos[-1:])
        page.until("document.querySelector('#refused').textContent.includes('notes.jpg is text, no photo')")
        page.fill('[data-caption]', 'a sks dog on the floor')
        page.until("document.querySelector('#told').textContent === 'The caption is saved.'")

        # A mask is added and taken away, and the photos are shown in their own ratio.
        mask = Image.new('L', Image.open(photos[0]).size, 0)
        mask.paste(255, (40, 0, 140, 140))
        mask.save(tmp_path / 'mask.png')
        page.choose('[data-mask]', tmp_path / 'mask.png')
        page.until("document.querySelector('#told').textContent.startsWith('The mask is saved')")
        page.screenshot(tmp_path / 'masked.png')
        page.click('[data-unmask]')
        page.until("!document.querySelector('[data-unmask]')")
        page.go(f'http://127.0.0.1:{port}/photos/photos-1?ratio=1')
        page.until("[...document.querySelectorAll('main li img')].every(one => one.complete && one.naturalWidth > 0)")
        page.screenshot(tmp_path / 'photos.png')

        # The plan follows the form; a wrong setting is told before anything starts.
        page.click('header a.main')
        page.until("location.pathname === '/new' && document.querySelector('#photos').value === 'photos-1'")
        page.until("document.querySelector('#plan').textContent.includes('4 images')", 120)
        assert 'show each of 4 photos' in text(page, '#about-steps')
        assert page.run("document.querySelector('#take-steps').hidden")
        # What it costs stands beside it, since the server knows what an hour does.
        assert text(page, '[data-fact=price]').endswith(' at 3 USD an hour')
        assert 'without compilation' in text(page, '[data-fact=time]') and 'MiB' in text(page, '[data-fact=memory]')
        page.run("document.querySelector('.all-settings').open = true")
        page.fill('[data-setting="base.batch_size"]', '0')
        page.until("document.querySelector('#wrong').textContent === 'config.base.batch_size must be > 0, got 0'")
        # More photos take more steps, which are proposed once.
        for number in range(2):
            asked.ask('POST', '/api/photos/photos-1', image_bytes(180, 140, seed=number))
        page.fill('[data-setting="base.batch_size"]', '2')
        page.until("document.querySelector('#take-steps').textContent === 'Take 1200000 steps'")
        page.screenshot(tmp_path / 'new.png')
        page.click('#take-steps')
        assert page.run('document.activeElement.dataset.setting + document.activeElement.value') == 'base.steps1200000'
        page.until("document.querySelector('#about-steps').hidden")
        assert 'Proposed' not in text(page, '#plan')
        page.fill('[data-setting="data.instance_prompt"]', 'a sks cat')
        assert page.run('document.querySelector(\'[data-setting="samples.prompts"]\').value') == 'a sks cat\na dog'
        page.fill('#name', 'rex')
        page.click('form button.main')

        # The run goes on through a reload of the page and the end of the server.
        page.until("location.pathname === '/runs/rex'")
        state_is(page, 'running')
        first = step_after(page, 3)
        page.run('window.isOld = true')
        page.call('Page.reload')
        page.until("!window.isOld && document.body?.dataset.server === 'here'")
        reloaded = step_after(page, first)
        before = list(page.complaints)
        server.end(kill=True)
        page.until("document.body.dataset.server === 'away'")
        server = serve(port)
        came_back = step_after(page, reloaded)
        # Requests that the kill has cut off, in one way or another, are no complaints.
        page.complaints = [*before, *(one for one in page.complaints[len(before) :] if 'net::ERR_' not in one)]

        # What is asked for is done.
        page.click('#do-pause')
        state_is(page, 'paused')
        waits_at = step_after(page, came_back - 1)
        page.click('#do-sample')
        page.until(f"document.querySelector('.slider')?.dataset.steps === '{waits_at}'", 120)
        page.until("document.querySelector('.slider img').naturalWidth > 100")
        assert step(page) == waits_at
        page.click('#do-resume')
        state_is(page, 'running')
        step_after(page, waits_at)
        page.click('#do-stop')
        state_is(page, 'stopped')
        page.until("document.querySelector('#do-start') !== null")
        stopped_at = asked.ask('GET', '/api/runs/rex')['progress']['step']
        page.click('#do-start')
        state_is(page, 'running')
        step_after(page, stopped_at)
        page.click('#do-stop')
        state_is(page, 'stopped')

        # What was trained is exported and downloaded.
        page.click('#do-export')
        page.until("document.querySelector('.downloads a')?.textContent === 'rex-diffusers.zip'", 120)
        asked.download('/api/runs/rex/exports/rex-diffusers.zip', tmp_path / 'rex.zip')
        url = page.run("document.querySelector('.downloads a').getAttribute('href')")
        size = page.run(f"fetch('{url}').then(one => one.blob()).then(one => one.size)")
        assert size == (tmp_path / 'rex.zip').stat().st_size
        page.go(f'http://127.0.0.1:{port}/')
        assert 'rex' in text(page, '.runs') and 'stopped' in text(page, '.runs')
        # The photo and the setting that were refused.
        assert [one for one in page.complaints if 'status of 4' not in one] == []

    # Nothing is lost: every step is there once, and the photos, the caption, the settings and the samples.
    steps = [line['step'] for line in asked.ask('GET', '/api/runs/rex/metrics')]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] > stopped_at
    assert [len(list(group)) for _, group in itertools.groupby(steps)] == [1] * len(steps)
    settings = asked.ask('GET', '/api/runs/rex/settings')
    assert (settings['base.batch_size'], settings['base.steps']) == (2, 1_200_000)
    assert settings['data.instance_prompt'] == 'a sks cat'
    assert asked.ask('GET', '/api/photos/photos-1')[0]['caption'] == 'a sks dog on the floor'
    assert {'step': waits_at, 'stage': 'base', 'url': f'/api/runs/rex/samples/base/{waits_at}'} in asked.ask(
        'GET', '/api/runs/rex/samples'
    )
    assert 'rex-diffusers/model_index.json' in zipfile.ZipFile(tmp_path / 'rex.zip').namelist()


def test_a_finished_run_is_leafed_through_trained_on_and_saved(photos, serve, tmp_path):
    folder = tmp_path / 'photos_of_rex'
    folder.mkdir()
    for path in photos[:3]:
        path.rename(folder / path.name)
    server = serve()
    settings = {'base.steps': 4, 'samples.every': 2, 'data.instance_dir': str(folder)}
    Client(server.address).ask('POST', '/api/runs', {'name': 'rex', 'config': 'small', 'settings': settings})
    checkpoints = tmp_path / 'runs' / 'rex' / 'base' / 'checkpoints'
    with chromium.Page(server.address, tmp_path / 'profile') as page:
        page.go(f'http://127.0.0.1:{server.port}/runs/rex')
        state_is(page, 'finished')
        page.until("document.querySelector('.slider')?.dataset.steps === '2,4'")
        assert text(page, '.slider output') == 'step 4'
        page.run("document.querySelector('.slider input').focus()")
        page.press('ArrowLeft')
        page.until("document.querySelector('.slider output').textContent === 'step 2'")
        page.until("document.querySelector('.slider img').src.endsWith('/samples/base/2')")
        page.until("document.querySelector('.slider img').naturalWidth > 100")
        assert page.run("document.querySelector('.grid-link').getAttribute('href')").endswith('/samples/base/2')

        page.fill('[name=steps]', '1000000')
        page.click('#do-extend')
        state_is(page, 'running')
        step_after(page, 4)
        assert text(page, '.slider output') == 'step 2'  # what somebody looks at stays
        before = {path.name for path in checkpoints.iterdir()}
        page.click('#do-save')
        end = time.monotonic() + 120
        while not {path.name for path in checkpoints.iterdir() if path.name.isdigit()} - before:
            assert time.monotonic() < end
            time.sleep(0.05)
        state_is(page, 'running')
        page.click('#do-stop')
        state_is(page, 'stopped')
        assert page.complaints == []


def test_pages_work_with_the_keyboard_on_narrow_and_dark_screens(tmp_path):
    with Server(tmp_path / 'runs') as server:
        asked = Client(server.address)
        asked.ask('POST', '/api/photos', {'name': 'rex'})
        asked.ask('POST', '/api/photos/rex', image_bytes(200, 100))
        with chromium.Page(server.address, tmp_path / 'profile', width=360, dark=True) as page:
            for path in ('/', '/photos', '/photos/rex', '/new', '/nowhere'):
                page.go(f'http://127.0.0.1:{server.port}{path}')
                assert page.run('document.documentElement.scrollWidth') <= 360, path
                assert page.run('getComputedStyle(document.body).backgroundColor') == 'rgb(20, 23, 27)'
            page.go(f'http://127.0.0.1:{server.port}/photos/rex')
            seen = []
            for _ in range(12):
                page.press('Tab')
                seen.append(page.run('document.activeElement.textContent.trim() || document.activeElement.id'))
            assert {'Skip to the page', 'Runs', 'Photos', 'New run', 'files', 'Remove'} <= set(seen)
            assert page.complaints == ['Failed to load resource: the server responded with a status of 404 (Not Found)']
