"""Chromium without a window, driven over its debugging pipe: what a page says on its console, and what scripts find."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
_QUIET = (
    '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe'
).split()


class Page:
    """A tab that shows one file, or the pages of a server. Close it, or use it in a `with` block.

    Args:
      shown: the file, or an http address, whose server may be asked for more.

    Attributes:
      complaints: what the console and the browser had to say: errors, warnings, requests that went out or were refused.
    """

    def __init__(self, shown: Path | str, profile: Path, *, width: int = 1200, height: int = 900, dark: bool = False):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        command = [PROGRAM, *_QUIET, f'--user-data-dir={profile}']
        # The browser reads commands from descriptor 3 and writes to 4.
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._browser = subprocess.Popen(
            ['bash', '-c', shell, 'bash', *command], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        url = shown if isinstance(shown, str) else shown.absolute().as_uri()
        self._own = '/'.join(url.split('/')[:3]) + '/' if isinstance(shown, str) else 'file:'
        self._number, self._rest, self._session, self._loaded = 0, b'', None, False
        self.complaints: list[str] = []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')
        self.size(width, height, dark)
        self.go(url)

    def __enter__(self) -> 'Page':
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        self._browser.kill()
        self._browser.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **parameters: Any) -> dict:
        """One command of the DevTools protocol; its result."""
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': parameters}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._read()
            if answer.get('id') == self._number:
                assert 'error' not in answer, f'{method}: {answer["error"]}'
                return answer['result']

    def run(self, script: str) -> Any:
        """The value of a script's last expression."""
        answer = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in answer, answer['exceptionDetails']
        return answer['result'].get('value')

    def go(self, url: str) -> None:
        """Opens an address and waits until it has loaded."""
        self._loaded = False
        self.call('Page.navigate', url=url)
        while not self._loaded:
            self._read()

    def until(self, script: str, seconds: float = 60) -> Any:
        """Waits until a script's last expression is true, through loads of the page, and returns it."""
        end = time.monotonic() + seconds
        while True:
            try:
                if value := self.run(script):
                    return value
            except AssertionError as error:  # the page is being left, or is not there yet
                told = error
            else:
                told = self.run('document.body.innerText')
            assert time.monotonic() < end, f'{script} was not true in {seconds} s: {told}'
            time.sleep(0.1)

    def drop(self, selector: str, files: Sequence[Path]) -> None:
        """Drops files onto an element, as from a file manager."""
        self.run(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
        box = self.run(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
        at = {'x': box['x'] + box['width'] / 2, 'y': box['y'] + box['height'] / 2}
        data = {'items': [], 'files': [str(file.absolute()) for file in files], 'dragOperationsMask': 1}
        for kind in ('dragEnter', 'dragOver', 'drop'):
            self.call('Input.dispatchDragEvent', type=kind, data=data, **at)

    def choose(self, selector: str, file: Path) -> None:
        """Chooses a file in a field for files."""
        root = self.call('DOM.getDocument')['root']['nodeId']
        node = self.call('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.call('DOM.setFileInputFiles', nodeId=node, files=[str(file)])

    def fill(self, selector: str, value: str) -> None:
        """Replaces what is in a field, and tells the page."""
        script = """((selector, value) => {
          const field = document.querySelector(selector);
          field.value = value;
          for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true}));
        })"""
        self.run(f'{script}({json.dumps(selector)}, {json.dumps(value)})')

    def click(self, selector: str) -> None:
        """Clicks an element where it is, with the mouse."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.run(f'document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()')
        at = {'x': box['x'] + box['width'] / 2, 'y': box['y'] + box['height'] / 2}
        for kind in ('mousePressed', 'mouseReleased'):
            self.call('Input.dispatchMouseEvent', type=kind, button='left', clickCount=1, **at)

    def size(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Makes the window as large, and dark or light."""
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        self.call('Emulation.setEmulatedMedia', features=[scheme])

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        answer = self.call('Page.captureScreenshot', captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer['data']))

    def press(self, key: str) -> None:
        code = {'ArrowLeft': 37, 'ArrowRight': 39, 'Tab': 9, 'Enter': 13, 'Escape': 27}[key]
        text = {'text': '\r'} if key == 'Enter' else {}
        for kind, more in (('keyDown', text), ('keyUp', {})):
            self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def _read(self) -> dict:
        while b'\0' not in self._rest:
            piece = os.read(self._in, 1 << 20)
            assert piece, 'the browser has ended'
            self._rest += piece
        line, self._rest = self._rest.split(b'\0', 1)
        message = json.loads(line)
        told = message.get('params', {})
        match message.get('method'):
            case 'Page.loadEventFired':
                self._loaded = True
            case 'Runtime.consoleAPICalled':
                self.complaints.append(str([one.get('value') for one in told['args']]))
            case 'Runtime.exceptionThrown':
                self.complaints.append(str(told['exceptionDetails']))
            case 'Log.entryAdded':
                self.complaints.append(told['entry']['text'])
            case 'Network.requestWillBeSent' if not told['request']['url'].startswith(('file:', 'data:', self._own)):
                self.complaints.append(f'request of {told["request"]["url"]}')
        return message
