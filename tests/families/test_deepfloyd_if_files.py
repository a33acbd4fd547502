"""DeepFloyd IF's ids in metadata."""

from dreambooth_jax.families import deepfloyd_if_files


def test_the_stages_have_ids_of_their_own():
    assert deepfloyd_if_files.ARCHITECTURE == 'deepfloyd-if-i'
    assert deepfloyd_if_files.SUPER_RESOLUTION_ARCHITECTURE == 'deepfloyd-if-ii'
