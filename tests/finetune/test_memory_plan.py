"""The memory of a plan is what really lies on a device; phases, padding and errors are told as they will be."""

import dataclasses

import jax
import numpy as np
import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.config.price import Price
from dreambooth_jax.finetune import memory_plan, plan, target
from dreambooth_jax.generation.cascade import BASE, Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.training.placement import device_bytes, make_placement
from tests.support import planned_runs, smallest_pipelines
from tests.support.planned_runs import photos, planned, settings

# Small arrays are sharded too, so that fsdp differs from pmap.
SHARDED = {'mode': 'fsdp', 'fsdp_min_bytes': 256}
PLACEMENTS = pytest.mark.parametrize('parallel', [{'mode': 'pmap'}, SHARDED], ids=['pmap', 'fsdp'])


@pytest.fixture
def cascade():
    return planned_runs.cascade


def uses_of(cascade, config, **options):
    placement, stages = planned(cascade, config)
    with target.planned_for(**options) as where:
        return memory_plan.uses(config, cascade, stages, placement, where)


def on_first(tree):
    """Bytes of what really lies on the first device."""
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == first
    )


@PLACEMENTS
@pytest.mark.parametrize(
    'changed',
    [
        {},
        {'lora': {'rank': 2}, 'base': {'train_text_encoder': True}},
        pytest.param(
            {'lora': {'rank': 2, 'frozen_dtype': 'nf4'}, 'prior': {'kind': 'distillation'}}, marks=pytest.mark.slow
        ),
        pytest.param(
            {'optimizer': {'ema_decay': 0.9, 'state_dtype': 'int8'}, 'super_resolution': {'steps': 1}},
            marks=pytest.mark.slow,
        ),
        {'prior': {'kind': 'distillation'}},
    ],
    ids=['whole', 'lora', 'quantised', 'ema and int8', 'distillation'],
)
def test_what_a_stage_holds_is_what_lies_on_the_device(cascade, parallel, changed):
    config = settings(parallel=parallel, **changed)
    model = cascade('pixels', config.lora.frozen_dtype)
    placement, stages = planned(model, config)
    with target.planned_for() as where:
        found = memory_plan.uses(config, model, stages, placement, where)
    for name, stage in stages.items():
        (use,) = (use for use in found if use.phase == f'training {name}')
        run = stage.run
        frozen = {kind: tree for kind, tree in run.frozen.items() if kind != 'data'}
        data = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.frozen['data'])
        state = placement.place_state(run.init, placement.place(run.params))
        batch = placement.place_batch(run.batch)
        assert use.weights == on_first((state.params, placement.place(frozen)))
        assert use.state == on_first((state.step, state.ema, state.opt_state))
        assert use.data == on_first((placement.place(data), batch))
        assert use.temporaries == on_first(state.params) and not use.complete
    if parallel['mode'] == 'fsdp':
        assert use.weights < uses_of(model, settings(**changed))[-1].weights


@pytest.mark.slow
def test_quantised_weights_are_counted_by_their_codes_and_scales(cascade):
    """Of the smallest networks many kernels are too narrow, so less is saved than of others."""
    weights, largest, exported = {}, {}, {}
    for kind in (None, 'int8', 'nf4'):
        config = settings(lora={'rank': 2, 'frozen_dtype': kind}, super_resolution={'steps': 1})
        model = cascade('pixels', kind)
        stages = planned(model, config)[1]
        uses = uses_of(model, config)
        weights[kind] = next(use.weights for use in uses if use.phase == 'training base')
        largest[kind] = max(use.weights for use in uses if use.phase == 'samples of super_resolution')
        exported[kind] = memory_plan.host_bytes(model, stages)
    for found in (weights, largest):
        assert found['nf4'] < found['int8'] < 0.6 * found[None]
    # To export, the kernels of the files are read in addition, and adapters are merged into them.
    held = {
        kind: sum(
            value.nbytes
            for stage in (cascade('pixels', kind).base, cascade('pixels', kind).super_resolution)
            for network in stage.components.values()
            for value in network.params.values()
        )
        for kind in weights
    }
    assert all(exported[kind] == exported[None] + held[kind] for kind in ('int8', 'nf4'))


def test_a_model_that_only_generates_the_samples_is_counted_with_them_alone(cascade):
    config = settings(lora={'rank': 2})
    model, other = cascade('pixels'), cascade('pixels', 'nf4')  # smaller, so that it is known by its size
    placement, stages = planned(model, config)

    def weights(**options):
        with target.planned_for() as where:
            found = memory_plan.largest(memory_plan.uses(config, model, stages, placement, where, **options))
        return {phase: use.weights for phase, use in found.items()}

    alone, with_other = weights(), weights(sampled_on=other)
    sampled = {phase for phase in alone if phase.startswith('samples')}
    assert sampled and all(with_other[phase] < alone[phase] for phase in sampled)
    assert all(with_other[phase] == alone[phase] for phase in alone.keys() - sampled)
    held = sum(value.nbytes for network in other.base.components.values() for value in network.params.values())
    assert memory_plan.host_bytes(model, stages, other) == memory_plan.host_bytes(model, stages) + held


@pytest.mark.slow
@pytest.mark.parametrize('parallel,kind', [({'mode': 'pmap'}, 'latents'), (SHARDED, 'pixels')], ids=['pmap', 'fsdp'])
def test_what_generation_holds_is_what_the_cascade_places(cascade, parallel, kind):
    config = settings(parallel=parallel, super_resolution={'steps': 1, 'with_prior': True})
    model = cascade(kind)
    *prompts, last = (use for use in uses_of(model, config) if use.phase == 'class images')
    generating = model.on(make_placement(parallel['mode'], fsdp_min_bytes=config.parallel.fsdp_min_bytes))
    generating.generate(['a dog'], SamplingOptions.of_class_images(config, super_resolution=True), progress=False)
    assert last.weights == on_first(list(generating._on_device.values())) > 0
    # Text encoders are there while prompts are encoded, and go before anything else comes.
    texts = device_bytes(generating._devices.placed_shapes(memory_plan.weight_shapes(model, BASE, 'text_encoder')))
    assert prompts[0].program == 'prompts' and prompts[0].weights == texts > 0
    assert not {component for _, component in generating._on_device} & {'text_encoder'}


@pytest.mark.slow
@pytest.mark.parametrize(
    'lora', [{}, {'rank': 2}, {'rank': 2, 'frozen_dtype': 'int8'}], ids=['whole', 'lora', 'quantised']
)
def test_what_samples_hold_besides_is_what_the_trained_cascade_places(cascade, lora):
    config = settings(lora=lora, base={'train_text_encoder': True})
    model = cascade('pixels', config.lora.frozen_dtype)
    placement, stages = planned(model, config)
    found = uses_of(model, config)
    (step,) = (use for use in found if use.phase == 'training base')
    ours = [use for use in found if use.phase == 'samples of base' and not use.program.startswith('base model')][-1]
    run, trainable = stages[BASE].run, stages[BASE].trainable
    state = placement.place_state(run.init, placement.place(run.params))
    there = {id(x) for x in jax.tree.leaves(state.params)}
    if lora:  # adapters of text encoders are merged on the host; the denoiser's stay beside the training's kernels
        kernels, denoiser = placement.place(trainable.frozen['unet']), state.params['unet']
        there |= {id(x) for x in jax.tree.leaves(kernels)}
        texts = {name: jax.tree.map(np.asarray, part) for name, part in state.params.items() if name != 'unet'}
        params = {**trainable.plain(texts), 'unet': trainable.beside(kernels, denoiser)}
        there |= {id(value) for name, value in params['unet'].items() if name.endswith('lora_b')}  # scaled
    else:
        params = trainable.plain(state.params)
    trained = model.on(placement).with_params(base=params)
    options = SamplingOptions.of_samples(config.samples, config.super_resolution)
    trained.generate(['a dog'], options, progress=False)
    added = [x for x in jax.tree.leaves(list(trained._on_device.values())) if id(x) not in there]
    assert ours.weights - step.weights == on_first(added)


def phases(cascade, **changed):
    return list(memory_plan.largest(uses_of(cascade, settings(**changed))))


def test_the_phases_are_those_of_the_run(cascade):
    pixels, latents = cascade('pixels'), cascade('latents')
    base = ['encoding for base', 'training base', 'samples of base']
    second = [phase.replace('base', 'super_resolution') for phase in base]
    assert phases(pixels) == ['class images', *base]
    assert phases(pixels, super_resolution={'steps': 1}) == ['class images', *base, *second]
    assert phases(pixels, prior={'weight': 0.0}) == phases(pixels, prior={'kind': 'distillation'}) == base
    assert phases(pixels, base={'steps': 0}, super_resolution={'steps': 1}) == second
    # A text encoder that trains reads its prompts in the step, and pixels need no encoding.
    assert phases(pixels, base={'train_text_encoder': True}, prior={'weight': 0.0}) == base[1:]
    assert phases(latents, base={'train_text_encoder': True}, prior={'weight': 0.0}) == base


def test_evaluations_are_a_phase_in_which_encoders_gather_after_both_models_have_generated(cascade):
    config = settings(evaluation={'every': 2, 'class_images': 5}, super_resolution={'steps': 1})
    placement, stages = planned(cascade('pixels'), config)
    counted = []
    with target.planned_for(compiled=True) as where:
        found = memory_plan.uses(
            config,
            cascade('pixels'),
            stages,
            placement,
            where,
            lambda name, lower: (counted.append(name), (Counts, None))[1],
            planned_runs.evaluated(config),
        )
    phases = list(memory_plan.largest(found))
    assert phases[3:5] == ['samples of base', 'evaluation of base'] and 'evaluation of super_resolution' not in phases
    scored = [use for use in found if use.phase == 'evaluation of base']
    ours = ['prompts', 'base sampler']
    assert [use.program for use in scored] == [*ours, *(f'base model, {one}' for one in ours), 'dino image']
    (step,) = (use for use in found if use.phase == 'training base')
    (sampled,) = (use for use in found if (use.phase, use.program) == ('samples of base', 'base sampler'))
    assert scored[-1].weights == step.weights + 256 * 4 * 4 and scored[1].weights == sampled.weights
    assert all((use.state, use.data, use.complete) == (step.state, step.data, True) for use in scored)
    # Its batch of images is one of its own, and each program is counted once.
    assert counted.count('dino image') == 1 and counted.count('base sampler') >= 2


def test_nothing_else_is_on_the_device_while_images_and_prompts_are_encoded(cascade):
    found = uses_of(cascade('latents'), settings())
    # The second stage has a text encoder of its own, for the samples of the base stage.
    images, prompts, second = (use for use in found if use.phase == 'encoding for base')
    vae = sum(x.nbytes for x in cascade('latents').base.components['vae'].params.values())
    texts = sum(x.nbytes for x in cascade('latents').base.components['text_encoder'].params.values())
    assert (images.program, images.weights) == ('images', vae)
    assert (prompts.program, prompts.weights) == ('prompts', texts)
    texts = sum(x.nbytes for x in cascade('latents').super_resolution.components['text_encoder'].params.values())
    assert (second.program, second.weights) == ('prompts', texts)


def test_the_first_samples_generate_with_the_original_model_after_ours(cascade):
    found = uses_of(cascade('pixels'), settings(super_resolution={'steps': 1}))
    first = [use.program for use in found if use.phase == 'samples of base']
    assert first == [
        *(ours := ['base sampler', 'super_resolution sampler']),
        *(f'base model, {program}' for program in ours),
    ]
    assert [use.program for use in found if use.phase == 'samples of super_resolution'] == ours


def test_samples_read_prompts_only_where_a_text_encoder_trains(cascade):
    for trains in (False, True):
        found = uses_of(cascade('pixels'), settings(base={'train_text_encoder': trains}))
        programs = {phase: [use.program for use in found if use.phase == phase] for phase in ('samples of base',)}
        assert ('prompts' in programs['samples of base']) == trains
        assert any(use.phase == 'encoding for base' for use in found) != trains


def test_adapters_generate_beside_the_kernels_that_the_training_has(cascade):
    found = uses_of(cascade('pixels'), settings(lora={'rank': 2}))
    (training,) = (use for use in found if use.phase == 'training base')
    samples = {use.program: use.weights for use in found if use.phase == 'samples of base'}
    assert samples['base sampler'] == samples['base model, base sampler'] == training.weights
    assert samples['super_resolution sampler'] == samples['base model, super_resolution sampler'] > training.weights
    # A model that began as another run ended is not the original, which then has weights of its own.
    found = uses_of(cascade('pixels'), settings(lora={'rank': 2}, init_from='runs/before'))
    samples = {use.program: use.weights for use in found if use.phase == 'samples of base'}
    assert samples['base sampler'] == training.weights < samples['base model, base sampler']


def test_programs_can_be_left_out_of_the_count(cascade):
    config, asked = settings(), []

    def count(name, lower):
        asked.append(name)
        return (Counts, None) if name == 'step base' else None

    placement, stages = planned(cascade('pixels'), config)
    with target.planned_for(compiled=True) as where:
        found = memory_plan.uses(config, cascade('pixels'), stages, placement, where, count)
    assert [use.program for use in found if use.complete] == ['step'] and 'base sampler' in asked


class Counts:
    """What a compiler says of a program."""

    argument_size_in_bytes, output_size_in_bytes, alias_size_in_bytes, temp_size_in_bytes = 0, 30, 20, 1000


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['pixels', 'latents'])
def test_every_program_is_counted_once(cascade, monkeypatch, kind):
    counted = []
    monkeypatch.setattr(memory_plan, 'compiled_counts', lambda lowered, _: (counted.append(lowered) or Counts, None))
    found = uses_of(cascade(kind), settings(super_resolution={'steps': 1}), compiled=True)
    assert all(use.complete and use.temporaries >= 1010 and use.limit is None for use in found)
    steps = [use.temporaries for use in found if use.phase.startswith('training')]
    assert steps == [1010, 1010] and len(counted) < len(found)


@pytest.mark.parametrize(
    'said',
    [
        'in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded',
        'on HBM, the total memory required for HLO temporaries (17.50G) exceeds available HBM (15.75G).',
    ],
    ids=['buffers', 'before buffers'],
)
def test_a_program_that_does_not_fit_is_named(cascade, monkeypatch, said):
    monkeypatch.setattr(plan, 'device_speed', lambda: 1e9)

    class Refused:
        def compile(self, options):
            raise jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: Ran out of memory {said}')

    analysed = memory_plan.compiled_counts
    monkeypatch.setattr(memory_plan, 'compiled_counts', lambda *_: analysed(Refused()))
    config, model = settings(prior={'weight': 0.0}), cascade('pixels')
    with target.planned_for(compiled=True) as where:
        text = plan.describe(config, model, photos(model, config), where).text
    # Sampling has the training's arrays beside what the compiler counts, so that the peak is there.
    assert '  training base (step) does not fit: the compiler counts 17.50 GiB, a device has 15.75 GiB' in text
    assert 'peak: 17.50 GiB on every device, samples of base' in text


@pytest.mark.slow
@PLACEMENTS
def test_the_compiler_counts_what_a_step_needs_besides(cascade, parallel):
    config = settings(parallel=parallel, prior={'weight': 0.0})
    found = uses_of(cascade('pixels'), config, compiled=True)
    assert all(use.complete and use.temporaries > 0 and use.limit is None for use in found)
    # The counts are those of the program that training compiles.
    _, stages = planned(cascade('pixels'), config)
    counts = stages[BASE].run.lower(1).compile().memory_analysis()
    (step,) = (use for use in found if use.phase == 'training base')
    assert step.temporaries >= counts.temp_size_in_bytes > 0


def test_idle_examples_are_named_and_counted(cascade):
    assert jax.device_count() == 4
    for changed, told in (
        (
            {},
            '2 of the 4 examples that a step computes have no weight and teach nothing, because 2 (1 of the subject '
            'and 1 of the class) do not fill 4 devices; config.base.batch_size=2 uses all',
        ),
        ({'prior': {'weight': 0.0}}, 'because 1 (1 of the subject) do not fill 4 devices; config.base.batch_size=4'),
        (
            {'base': {'batch_size': 3, 'gradient_accumulation_steps': 3}},
            'because 6 (3 of the subject and 3 of the '
            'class) do not fill 4 devices x 3 micro-batches; config.base.batch_size=6 uses all',
        ),
        ({'base': {'batch_size': 4}}, None),
    ):
        config = settings(**changed)
        _, stages = planned(cascade('pixels'), config)
        line = plan.idle(config, BASE, stages[BASE].run)
        assert line is None if told is None else told in line


def test_images_that_only_fill_a_batch_are_counted(cascade):
    pixels = cascade('pixels')
    lines = plan.idle_images(settings(), pixels, 4)
    assert lines == [
        '  class images: 1 of 4 images are computed only to fill 1 x 4 at once on 4 devices, and not kept',
        '  a grid of samples: 2 of 4 images are computed only to fill 1 x 4 at once on 4 devices, and not kept',
    ]
    assert plan.idle_images(settings(), pixels, 1) == []
    assert plan.idle_images(settings(prior={'num_images': 8}, samples={'num_images': 4}), pixels, 4) == []


def test_the_plan_shows_phases_peak_and_who_counted(cascade, monkeypatch):
    monkeypatch.setattr(plan, 'device_speed', lambda: 1e9)
    config, model = settings(), cascade('pixels')
    made = plan.describe(config, model, photos(model, config))
    text = made.text
    lines = [line.split()[:2] for line in text.splitlines() if ' MiB  ' in line]
    assert [first for first, _ in lines] == ['class', 'encoding', 'training', 'samples', 'export']
    assert f'  peak: {made.memory}\n' in text and made.memory.startswith('at least ') and made.peak_bytes > 2**10
    assert f'plan for {made.devices}:' in text and '--compile counts them' in text and 'weights on the host' in text


def test_devices_that_are_not_here_have_the_time_of_their_data_sheet_if_it_is_known(cascade):
    config, model, price = settings(), cascade('pixels'), Price.parsed('price', '9 USD')
    with target.planned_for() as where:
        unknown = dataclasses.replace(where, present=False)
        made = plan.describe(config, model, photos(model, config), unknown, price=price)
        assert (made.seconds, made.time, made.cost, made.price) == (None,) * 4
        told = 'time and price: not estimated, because these devices are not here and their speed is not known'
        assert made.text.endswith(f'\n  {told}')
        found = {}
        for speed in (1e6, 2e6):
            known = dataclasses.replace(unknown, speed=speed)
            found[speed] = plan.describe(config, model, photos(model, config), known, price=price)
    assert found[1e6].seconds == pytest.approx(2 * found[2e6].seconds) and found[1e6].cost > 0
    assert found[1e6].time.endswith(", without compilation and samples, at 35 % of the data sheet's speed")


def test_what_takes_more_than_a_card_has_does_not_fit(cascade):
    config, model = settings(), cascade('pixels')
    with target.planned_for() as where:
        text = plan.describe(config, model, photos(model, config), where).text
        assert 'programs may take' not in text and 'does not fit' not in text
        small = dataclasses.replace(where, memory=2**10)
        text = plan.describe(config, model, photos(model, config), small).text
    assert '  programs may take 0.0 MiB of each (XLA_PYTHON_CLIENT_MEM_FRACTION, 0.75 if it is not set)\n' in text
    assert '  training base (step) does not fit: the compiler counts ' in text and ', a device has 0.0 MiB\n' in text


@pytest.mark.slow
def test_a_topology_that_is_no_tpu_is_told():
    pytest.importorskip('libtpu')
    with pytest.raises(ConfigError, match='--topology=v5e:3x4 is no TPU that the installed libtpu knows'):
        with target.planned_for('v5e:3x4'):
            pass


@pytest.mark.slow
@pytest.mark.parametrize('topology,count,kind', [('v5e:2x4', 8, 'v5'), ('v6e:1x1', 1, 'v6')])
def test_a_tpu_that_is_not_here_is_planned_for(topology, count, kind):
    pytest.importorskip('libtpu')
    config = settings(prior={'weight': 0.0})
    with target.planned_for(topology) as where:
        assert where.count == count and not where.present
        model = Cascade.load(smallest_pipelines.folder('latents'))
        text = plan.describe(config, model, photos(model, config), where).text
    assert f'plan for {count} x TPU {kind} lite ({topology}, not here):' in text
    assert f'XLA for {topology}, ahead of time' in text and "at 35 % of the data sheet's speed" in text
    assert ('7 of the 8 examples' in text) == (count == 8)
    assert jax.default_backend() == 'cpu'
    assert device_bytes(model._on_device) == 0


@pytest.mark.slow
@pytest.mark.parametrize('topology,memory', [('v5e:1x1', 15.75), ('v6e:1x1', 31.25)])
def test_the_memory_of_a_chip_is_what_its_compiler_says(topology, memory):
    pytest.importorskip('libtpu')
    with target.planned_for(topology) as where:
        x = jax.ShapeDtypeStruct((2**13, 2**20), 'float32', sharding=jax.sharding.SingleDeviceSharding(where.first))
        counts, (used, limit) = memory_plan.compiled_counts(jax.jit(jax.numpy.sin).lower(x))
    assert counts is None and (used, limit) == (2**36, memory * 2**30)
