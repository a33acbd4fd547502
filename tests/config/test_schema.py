"""The machinery of settings: ranges, types, groups, former names, and the way through ConfigDict and JSON."""

import copy
import dataclasses
import json
import pathlib
import pickle
import subprocess
import sys
from typing import Literal

import pytest

from dreambooth_jax import config as config_lib
from dreambooth_jax.config import (
    Config,
    ConfigError,
    DreamBoothConfig,
    PretrainConfig,
    path_setting,
    resolve,
    schema,
    setting,
    to_config_dict,
    to_dict,
)
from tests.config.test_dreambooth import DOG, UNET, dog

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(Config):
    share: float = setting(0.5, 'in (0, 1]')
    kind: Literal['new', 'plain'] | None = setting(None, former_values={'old': 'new'})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole(Config):
    """Settings of every known type."""

    on: bool = False
    count: int = setting(1, '>= 0', formerly='number')
    sizes: tuple[int, ...] = setting((), '> 0')
    folder: str | None = path_setting(None)
    free: dict = dataclasses.field(default_factory=dict)
    part: Part = Part()
    parts: tuple[Part, ...] = setting((), formerly='pieces')

    def check(self, path):
        if self.on and not self.sizes:
            raise ConfigError(f'{path}.sizes must be given')


@pytest.mark.parametrize(
    ('allowed', 'inside', 'outside'),
    [
        ('>= 2', (2, 3), (1.9,)),
        ('> 2', (2.1,), (2, -1)),
        ('in [0, 1)', (0, 0.9), (1, -0.1)),
        ('in (0, 1]', (0.1, 1), (0, 1.1)),
        ('in [-1, 1.75]', (-1, 1.75), (-1.1, 1.76)),
    ],
)
def test_a_range_means_what_it_says(allowed, inside, outside):
    made = dataclasses.make_dataclass('Made', [('x', float, setting(inside[0], allowed))], bases=(Config,), frozen=True)
    for value in inside:
        assert resolve(made, {'x': value}).x == value
    for value in outside:
        with pytest.raises(ConfigError) as error:
            resolve(made, {'x': value})
        assert str(error.value) == f'config.x must be {allowed}, got {float(value)}'


@pytest.mark.parametrize('allowed', ['0 to 1', 'in 0, 1', '< 3', ''])
def test_a_range_that_cannot_be_read_fails_where_it_is_declared(allowed):
    with pytest.raises(ValueError, match='must look like ">= 0", "> 0" or "in '):
        setting(1, allowed)


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        ({'sizes': (3, 0)}, 'config.sizes[1] must be > 0, got 0'),
        ({'part': {'share': 0}}, 'config.part.share must be in (0, 1], got 0.0'),
        (
            {'parts': [{}, {'shar': 1}]},
            'config.parts[1].shar is not a known setting; did you mean config.parts[1].share?',
        ),
        ({'part': {'kind': 'old'}}, "config.part.kind is 'old', which is now called 'new'"),
        ({'part': {'kind': 'x'}}, "config.part.kind must be one of 'new', 'plain' or None, got 'x'"),
        ({'number': 3}, 'config.number is now called config.count'),
        ({'share': 1}, 'config.share is not a known setting; did you mean config.part.share?'),
        ({'on': True}, 'config.sizes must be given'),
        ({'folder': ' '}, "config.folder is ' ', which is no path; give one (is a shell variable not set?)"),
        (
            {'folder': 'a\0b'},
            "config.folder is 'a\\x00b', which holds characters that no path can hold here; give another",
        ),
        ({'free': {'a': [object]}}, 'config.free.a[0] must be a number, string, bool or None, or tuples or dicts of '),
    ],
)
def test_what_is_wrong_is_one_sentence(given, sentence):
    with pytest.raises(ConfigError) as error:
        resolve(Whole, given)
    assert str(error.value).startswith(sentence)


def test_paths_begin_at_home_and_other_texts_do_not(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    assert resolve(Whole, {'folder': '~/photos'}).folder == '/home/someone/photos'
    assert resolve(Whole, {'free': {'text': '~/photos'}}).free == {'text': '~/photos'}
    assert schema.expanded('--model', 'plain') == 'plain'
    with pytest.raises(ConfigError, match=r'^config.folder is .* but there is no home folder ~nobody_of_this_name; '):
        resolve(Whole, {'folder': '~nobody_of_this_name/photos'})


def test_former_names_are_read_from_files_of_older_runs_only():
    written = {'number': 3, 'part': {'kind': 'old'}, 'pieces': [{'kind': 'old'}, 'wrong'], 'free': {'number': 'old'}}
    renamed = schema.with_new_names(Whole, written)
    assert renamed == {
        'count': 3,
        'part': {'kind': 'new'},
        'parts': ({'kind': 'new'}, 'wrong'),
        'free': {'number': 'old'},
    }
    assert schema.with_new_names(Whole, ['no', 'settings']) == ['no', 'settings']
    assert written['pieces'][0] == {'kind': 'old'}


def test_a_locked_config_dict_takes_groups_part_by_part():
    config = to_config_dict(Whole(sizes=(1, 2)))
    config.part = {'kind': 'plain'}
    config.parts = [{'share': 1}]
    assert (config.part.share, config.part.kind) == (0.5, 'plain')
    assert resolve(Whole, config) == Whole(sizes=(1, 2), part=Part(kind='plain'), parts=(Part(share=1.0),))
    with pytest.raises(ConfigError, match=r'^config.part must be a group of settings \(share, kind\), got 3 \(int\)$'):
        config.part = 3


def test_a_dataclass_made_by_hand_is_checked_too():
    with pytest.raises(ConfigError, match=r'^weight must be >= 0, got -1.0$'):
        config_lib.PriorConfig(weight=-1)


@pytest.mark.parametrize(('cls', 'start'), [(DreamBoothConfig, DOG), (PretrainConfig, UNET)])
def test_json_round_trip(cls, start):
    resolved = resolve(cls, start)
    assert resolve(cls, json.loads(json.dumps(to_dict(resolved)))) == resolved


def test_free_form_settings_take_any_key_and_come_back_as_plain_values():
    config = to_config_dict(PretrainConfig())
    config.unet = {'block_out_channels': [8, 16], 'nested': {'x': None}}
    config.unet.sample_size = 32
    config.text_encoder = {'d_model': 8}
    unet = resolve(PretrainConfig, config).unet
    assert unet == {'block_out_channels': (8, 16), 'nested': {'x': None}, 'sample_size': 32}
    assert type(unet['nested']) is dict
    with pytest.raises(ConfigError) as error:
        _ = config.unet.sampel_size
    assert str(error.value) == 'config.unet.sampel_size is not a known setting; did you mean config.unet.sample_size?'


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_copied_config_dict_is_independent_and_still_checks(duplicate):
    config = dog()
    other = duplicate(config)
    other.prior.weight = 0.5
    assert config.prior.weight == 1.0
    with pytest.raises(ConfigError):
        other.prior.wieght = 1


def test_a_config_dict_answers_hasattr_and_get():
    config = dog()
    assert hasattr(config, 'seed') and not hasattr(config, 'sead')
    assert config.get('sead', 3) == 3
    assert config['prior.weight'] == 1.0


def test_config_imports_nothing_heavy():
    heavy = ('jax', 'numpy', 'flax', 'PIL', 'transformers')
    code = f'import sys, dreambooth_jax.config; print([name for name in {heavy} if name in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve(DreamBoothConfig, DOG).seed = 1


def test_defaults_survive_the_config_dict():
    assert resolve(DreamBoothConfig, dog()) == resolve(DreamBoothConfig, DOG)
