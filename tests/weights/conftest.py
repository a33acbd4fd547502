import pytest

from dreambooth_jax.storybook import vocabulary
from tests.support import tiny_networks as tiny


@pytest.fixture(scope='session')
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizer')
    vocabulary.write_tokenizer(folder)
    return folder


@pytest.fixture(scope='session')
def diffusers_folder(tmp_path_factory, tokenizer_folder):
    """Both stages as diffusers itself writes them; not to be changed by a test."""
    folder = tmp_path_factory.mktemp('saved') / 'pipeline'
    tiny.torch_pipeline(tokenizer_folder).save_pretrained(folder)
    tiny.torch_pipeline(tokenizer_folder, super_resolution=True).save_pretrained(folder / 'super_resolution')
    return folder
