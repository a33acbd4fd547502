"""The compute capability is that of an NVIDIA card, and nothing is known of other devices."""

from types import SimpleNamespace

import jax
import pytest

from dreambooth_jax.system import cuda


@pytest.mark.parametrize(
    ('platform', 'version', 'expected'),
    [('gpu', 'PJRT C API\ncuda 12090', (7, 5)), ('gpu', 'rocm 6.0', None), ('tpu', 'TPU v5', None)],
)
def test_only_nvidia_cards_have_a_compute_capability(monkeypatch, platform, version, expected):
    client = SimpleNamespace(platform_version=version)
    device = SimpleNamespace(platform=platform, client=client, compute_capability='7.5')
    monkeypatch.setattr(jax, 'local_devices', lambda: [device])
    assert cuda.capability() == expected


def test_a_cpu_has_none():
    assert cuda.capability() is None
