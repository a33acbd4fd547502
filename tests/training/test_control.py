"""The names of requests can be known without JAX."""

import subprocess
import sys

from dreambooth_jax.training import control, requests


def test_the_names_are_those_that_are_listened_for():
    assert (control.FOLDER, control.KINDS, control.PAUSED) == (requests.FOLDER, requests.KINDS, requests.PAUSED)
    assert set(control.KINDS) == {control.STOP, control.SAVE, control.SAMPLE, control.PAUSE}


def test_they_need_no_jax():
    code = "import sys; from dreambooth_jax.training import control; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
