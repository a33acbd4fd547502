"""What a generation of models states about itself, and the order in which generations are tried."""

import dataclasses
import types

import pytest

from dreambooth_jax.families.originals import ORIGINALS
from dreambooth_jax.weights import original_facts
from dreambooth_jax.weights.original_facts import EPSILON, PREDICTION_TYPES, V_PREDICTION, OriginalLayout


def test_layouts_of_later_families_come_first_and_each_family_keeps_its_order():
    families = [types.SimpleNamespace(originals=names) for names in (('a', 'b'), (), ('c',))]
    assert original_facts.layouts_of(families) == ('c', 'a', 'b')


@pytest.mark.parametrize(('prediction', 'name'), [(EPSILON, 'PNDMScheduler'), (V_PREDICTION, 'DDIMScheduler')])
def test_the_plain_scheduler_is_the_published_one_and_a_new_one_each_time(prediction, name):
    made = original_facts.plain_scheduler(prediction)
    assert made['_class_name'] == name and 'prediction_type' not in made
    assert (made['beta_start'], made['beta_end'], made['steps_offset']) == (0.00085, 0.012, 1)
    made['beta_start'] = 0
    assert original_facts.plain_scheduler(prediction)['beta_start'] == original_facts.BETAS['beta_start'] == 0.00085


def test_a_file_holds_a_prefix_if_one_of_its_tensors_does():
    holds = original_facts.holds_prefix('cond_stage_model.')
    assert holds({'a': (1,), 'cond_stage_model.x': (2,)})
    assert not holds({'a.cond_stage_model.x': (1,)}) and not holds({})


@pytest.mark.parametrize(
    ('config', 'activation'), [({}, 'quick_gelu'), ({'hidden_act': 'gelu'}, 'gelu'), ({'d_model': 8}, None)]
)
def test_the_activation_of_a_clip_is_that_of_transformers_unless_it_says_so(config, activation):
    assert original_facts.activation_of_clip({'text_encoder': config}) == activation


@pytest.mark.parametrize('layout', ORIGINALS, ids=lambda layout: layout.title)
def test_every_generation_states_what_its_files_do_not_say(layout):
    assert set(layout.resolutions) == set(PREDICTION_TYPES) and EPSILON in layout.architectures
    assert set(layout.projected) <= set(layout.text_prefixes) and len(layout.pad_tokens) == len(layout.text_prefixes)
    assert all(prefix.endswith(('.model.', '.transformer.')) for prefix in layout.text_prefixes.values())
    for prediction in PREDICTION_TYPES:
        assert layout.architecture(prediction) and '_class_name' in layout.scheduler(prediction)
    assert set(layout.published_prediction_types.values()) <= set(PREDICTION_TYPES)
    assert bool(layout.ask_prediction_type) == bool(layout.published_prediction_types)


def test_an_id_without_a_prediction_type_of_its_own_is_that_of_epsilon():
    layout = dataclasses.replace(ORIGINALS[-1], architectures={EPSILON: 'a', V_PREDICTION: 'b'})
    assert isinstance(layout, OriginalLayout)
    assert (layout.architecture(EPSILON), layout.architecture(V_PREDICTION)) == ('a', 'b')
    assert dataclasses.replace(layout, architectures={EPSILON: 'a'}).architecture(V_PREDICTION) == 'a'
