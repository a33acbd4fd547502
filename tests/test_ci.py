"""What .ci/run installs for the tests: what is missing, where that is possible, and never at the cost of the tests."""

import re
import subprocess
from pathlib import Path

import pytest

CI = (Path(__file__).parents[1] / '.ci' / 'run').read_text('utf-8')
NAMES = ('Chromium', 'exiftool')


@pytest.fixture
def installed(tmp_path):
    """Runs the function of .ci/run where these commands alone are there; returns what it says, and apt-get's calls."""
    functions = re.search(r'^install_packages\(\) \{$.*?^\}$.*?^\}$', CI, re.DOTALL | re.MULTILINE)[0]

    def run(user='0', **commands):
        for name, body in {'id': f'echo {user}', **commands}.items():
            path = tmp_path / name.replace('_', '-')
            path.write_text(f'#!/bin/bash\n{body}\n')
            path.chmod(0o755)
        script = f'set -euo pipefail\nPATH={tmp_path}\n{functions}\ninstall_packages'
        ended = subprocess.run(['/bin/bash', '-c', script], env={}, capture_output=True, text=True, timeout=30)
        calls = tmp_path / 'calls'
        assert (ended.returncode, ended.stderr) == (0, '')
        return ended.stdout.splitlines(), calls.read_text().splitlines() if calls.exists() else []

    run.apt = f'echo "$DEBIAN_FRONTEND" "$@" >> {tmp_path / "calls"}'
    return run


@pytest.mark.parametrize('browser', ['chromium', 'chromium_browser'])
def test_what_is_there_is_not_installed(installed, browser):
    assert installed(**{browser: ''}, exiftool='', apt_get=installed.apt) == (
        [f'{name} is there' for name in NAMES],
        [],
    )


def test_what_is_missing_is_installed(installed):
    said, calls = installed(apt_get=installed.apt)
    assert said == [f'{name} was installed' for name in NAMES]
    packages = ('chromium', 'libimage-exiftool-perl')
    install = [f'noninteractive -q install -y --no-install-recommends {package}' for package in packages]
    assert calls == [' -q update', install[0], ' -q update', install[1]]


def test_what_cannot_be_installed_is_said_and_no_failure(installed):
    assert installed(user='1000')[0] == [
        f'{name} is not installed, because this is not root; its tests skip' for name in NAMES
    ]
    assert installed()[0] == [f'{name} is not installed, because there is no apt-get; its tests skip' for name in NAMES]
    assert installed(apt_get='exit 100')[0] == [f'{name} could not be installed; its tests skip' for name in NAMES]


def test_the_tests_do_not_wait_for_it():
    (call,) = re.findall(r'^install_packages .*$', CI, re.MULTILINE)
    assert call.endswith(' &') and not re.search(r'^\s*wait\b', CI, re.MULTILINE)
