"""A person tries the models of a run in a browser; the page is reloaded, server and process are killed meanwhile."""

import contextlib
import json

import psutil
import pytest

from dreambooth_jax.client import Client
from dreambooth_jax.config.dreambooth import RunSamplesConfig
from dreambooth_jax.generation.cascade import Cascade
from tests.support import chromium, smallest_pipelines
from tests.support.served import Server
from tests.support.written_runs import begun, save

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason='Chromium is not installed'),
]
MODEL = smallest_pipelines.folder('pixels')
# Whether two column headings of the last table overlap, or one does not fit its column.
OVERLAP = """(() => {
  const heads = [...document.querySelector('.side-by-side').querySelectorAll('thead th')];
  const boxes = heads.map(one => one.getBoundingClientRect());
  return heads.some((one, at) => one.scrollWidth > one.clientWidth + 1
    || (at && boxes[at].left < boxes[at - 1].right - 0.5));
})()"""
LOADED = (
    "[...document.querySelectorAll('#request-{} img')].filter(one => one.complete && one.naturalWidth === 16).length"
)


@pytest.fixture
def runs(tmp_path):
    """A folder with one small run of two checkpoints."""
    folder = tmp_path / 'runs'
    folder.mkdir()
    samples = RunSamplesConfig(
        steps=2, sampler='ddim', guidance_scale=1.0, batch_size=1, prompts=('a sks dog', 'a dog')
    )
    begun(folder / 'rex', MODEL, samples=samples)
    save(folder / 'rex', 'base', [10, 20], {'unet': Cascade.load(MODEL).base.denoiser.params})
    return folder


def processes(runs):
    """The processes that generate for the run."""
    found = []
    for path in sorted((runs / '.serve' / 'jobs').glob('*.json')):
        job = json.loads(path.read_text())
        with contextlib.suppress(psutil.NoSuchProcess):
            if job['state'] == 'running' and f'--workdir={runs / "rex"}' in psutil.Process(job['pid']).cmdline():
                found.append(psutil.Process(job['pid']))
    return found


@pytest.fixture
def serve(runs):
    """Starts the server; at the end it and what it has started are ended."""
    started = []

    def start(port=0):
        started.append(Server(runs, port=port))
        return started[-1]

    yield start
    if started[-1].process.poll() is None:
        started[-1].end()
    for process in processes(runs):
        process.kill()


def is_done(number):
    return f"document.querySelector('#request-{number} .state')?.textContent === 'done'"


def test_from_prompts_to_images_of_two_models(runs, serve, tmp_path):
    server = serve()
    port, asked = server.port, Client(server.address)
    with chromium.Page(server.address, tmp_path / 'profile') as page:
        page.go(f'http://127.0.0.1:{port}/runs/rex')
        page.click('#try-it')
        page.until("document.querySelector('#prompts')?.value === 'a sks dog\\na dog'")
        assert page.run("[...document.querySelectorAll('[name=models]')].map(one => [one.value, one.checked])") == [
            ['20', True],
            ['10', False],
            ['base_model', True],
        ]

        # A wrong number is told in a sentence, and nothing is asked for.
        page.fill('#try-num_images', '17')
        page.click('#do-generate')
        page.until("document.querySelector('#told').textContent === 'num_images must be in [1, 16], got 17'")
        page.fill('#try-num_images', '16')
        page.fill('#prompts', 'a sks dog on the beach\n\n a dog ')
        page.fill('#try-seed', '7')
        page.click('#do-generate')

        # The page is reloaded as soon as the first images are there, then the server is killed.
        page.until(f'{LOADED.format(1)} > 0', 600)
        page.run('window.isOld = true')
        page.call('Page.reload')
        page.until(f"!window.isOld && {LOADED.format(1)} > 0 && document.body?.dataset.server === 'here'")
        assert [one for one in page.complaints if 'status of 422' not in one] == []
        server.end(kill=True)
        page.until("document.body.dataset.server === 'away'")
        server = serve(port)
        page.until(is_done(1), 600)
        page.until(f'{LOADED.format(1)} === 64')
        page.complaints.clear()  # of the server that was away
        page.screenshot(tmp_path / 'wide.png')
        found = asked.ask('GET', '/api/runs/rex/generate/1')
        assert (found['done'], found['request']['prompts'], found['request']['seed']) == (
            64,
            ['a sks dog on the beach', 'a dog'],
            7,
        )

        # The process that generates is killed: another one goes on.
        page.fill('#try-num_images', '16')
        page.fill('#try-steps', '60')  # so that it takes a while
        page.click('#do-generate')
        page.until(f'{LOADED.format(2)} > 0', 600)
        (process,) = processes(runs)
        process.kill()
        page.until(is_done(2), 600)
        page.until(f'{LOADED.format(2)} === 64')
        ended = [job for job in _jobs(runs) if job['state'] == 'ended']
        assert [job['program'] for job in ended] == ['generate'] and len(_jobs(runs)) == 2

        # One is cancelled and removed.
        page.click('#do-generate')
        page.until("document.querySelector('#cancel-3') !== null")
        page.click('#cancel-3')
        page.until("document.querySelector('#remove-3') !== null", 600)
        page.run('window.confirm = () => true')
        page.click('#remove-3')
        page.until("document.querySelector('#request-3') === null")

        # An image is looked at, with the keyboard alone.
        page.run("document.querySelector('#request-1 [data-look]').focus()")
        page.press('Enter')
        told = "[...document.querySelectorAll('#looked-at dd')].map(one => one.textContent)"
        page.until(f"{told}.includes('a sks dog on the beach')")
        facts = page.run(told)
        assert {'7', 'ddim', 'rex', '20'} <= set(facts) and any(len(one) == 64 for one in facts)
        assert 'generated by a trained model (IPTC trainedAlgorithmicMedia)' in facts
        page.press('ArrowRight')
        page.until("document.querySelector('#look-file').getAttribute('href').endsWith('/20/000_01')")
        page.screenshot(tmp_path / 'dialog.png')
        page.press('Escape')
        page.until("!document.querySelector('#looked-at').open")
        assert page.run('document.activeElement.id') == 'image-1-20-000_01'

        # Narrow and dark: the page has no more width than the screen, and no heading runs into another.
        assert not page.run(OVERLAP)
        page.size(360, dark=True)
        assert page.run('document.documentElement.scrollWidth') <= 360
        assert not page.run(OVERLAP)
        assert page.run('getComputedStyle(document.body).backgroundColor') == 'rgb(20, 23, 27)'
        page.screenshot(tmp_path / 'narrow.png')
        page.run("document.querySelector('#prompts').focus()")
        seen = []
        for _ in range(10):
            page.press('Tab')
            seen.append(page.run('document.activeElement.value || document.activeElement.id'))
        assert {'20', '10', 'base_model', '16', '60', 'do-generate'} <= set(seen)
        assert page.complaints == []


def _jobs(runs):
    return [json.loads(path.read_text()) for path in sorted((runs / '.serve' / 'jobs').glob('*.json'))]
