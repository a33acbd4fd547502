"""Class images on two hosts that share no folder: both generate, the first one keeps, and its errors end both."""

import os
import re
import socket
import subprocess
import sys

import pytest


def run_hosts(folder, what):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, '-m', 'tests.support.class_images_host', port, str(number), str(folder), what],
            env={**os.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [re.search('RESULT: (.*)', out)[1] for out, _ in outputs]  # XLA's network prints there too


@pytest.mark.slow
def test_both_hosts_generate_and_the_first_keeps_and_reads_for_both(tmp_path):
    first, second = run_hosts(tmp_path, 'sound')
    assert first.startswith('3 files, 3 generated, [[') and second == first.replace('3 files', '0 files')


@pytest.mark.slow
def test_an_error_of_the_first_host_ends_both(tmp_path):
    first, second = run_hosts(tmp_path, 'broken')
    assert 'manifest.json is no readable manifest' in first
    assert second == 'the first host could not keep class images; what it says itself tells why'
