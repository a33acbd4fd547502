"""What the NVIDIA card at hand can do."""

import jax


def capability() -> tuple[int, int] | None:
    """Returns the compute capability of the first NVIDIA card; None if there is none."""
    device = jax.local_devices()[0]
    if device.platform != 'gpu' or 'cuda' not in device.client.platform_version:
        return None
    major, minor = device.compute_capability.split('.')
    return int(major), int(minor)


def has_bfloat16() -> bool:
    """Returns whether the card multiplies in bfloat16, as the A100 did first; True where there is no card."""
    return (capability() or (8, 0)) >= (8, 0)
