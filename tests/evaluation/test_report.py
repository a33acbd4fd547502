"""What people read of an evaluation."""

from dreambooth_jax.evaluation import benchmark, report


def score(value, low=None, high=None):
    return {'value': value, 'low': low, 'high': high}


def test_every_score_has_a_row_with_its_floor_its_ceiling_and_its_meaning():
    names = {'dino': score(0.7, 0.65, 0.74), 'dino_pres': score(0.4)}
    found = {
        'models': {'run': {'sks dog': names}, 'base': {'sks dog': {name: score(0.2) for name in names}}},
        'ceiling': {'dino': {'sks dog': {'others': 0.81, 'with_self': 0.9}}},
    }
    assert report.text(found).splitlines() == [
        'sks dog:',
        '  score      run                   base   photos  wanted  meaning',
        "  dino       0.700 [0.650, 0.740]  0.200  0.810   more    like the subject's photos, by DINO",
        '  dino_pres  0.400                 0.200  -       less    images of the class like the subject: PRES',
    ]


def test_the_ceiling_of_a_single_photo_is_left_open():
    found = {'models': {'run': {'a': {'dino': score(0.7)}}}, 'ceiling': {'dino': {'a': {'others': None}}}}
    assert '  dino   0.700  -       more ' in report.text(found)


def of_subject(name, run, base, ceiling, **kinds):
    def told(value):
        parts = {kind: {'value': value} for kind in kinds.get('kinds', ('context', 'property'))}
        return {'dino': score(value) | {'kinds': parts}, 'dino_copy': score(value) | {'kinds': parts}}

    return {
        'models': {'run': {name: told(run)}, 'base': {name: told(base)}},
        'ceiling': {'dino': {name: {'others': ceiling}}},
        'subjects': {name: {'live': 'accessory' in kinds.get('kinds', ())}},
        'weights': ['base: checkpoint 200', 'super_resolution: checkpoint 100'],
    }


def test_a_benchmark_has_a_row_for_each_subject_and_one_for_each_mean():
    subjects = {
        'dog': of_subject('sks dog', 0.6, 0.2, 0.8, kinds=('context', 'accessory', 'property')),
        'vase': of_subject('sks vase', 0.4, 0.3, None),
    }
    found = {'subjects': subjects, 'missing': {'cat': 'runs/cat holds neither'}, 'means': benchmark.means(subjects)}
    lines = report.benchmark_text(found).splitlines()
    assert lines[:5] == [
        'subject  dino (base, photos)',
        'dog      0.600 (0.200, 0.800)',
        'vase     0.400 (0.300, -)',
        'cat      missing',
        'mean     0.500 (0.250, 0.800)',
    ]
    assert lines[6] == 'means over 2 subjects, with intervals from the bootstrap over subjects:'
    head, dino, copy = lines[7:10]
    assert head.split() == ('mean run base photos live objects context accessory property wanted meaning'.split())
    assert dino.startswith('dino       0.500 [0.400, 0.600]  0.250 [0.200, 0.300]  0.800   0.600  0.400    0.500')
    assert copy.startswith('dino_copy  0.500 [0.400, 0.600]  0.250 [0.200, 0.300]  -  ')
    assert lines[-2:] == ['', 'cat is missing: runs/cat holds neither'] and 'weights:' not in lines
    # A run at another checkpoint than the others, such as one that is not at its end, is told.
    subjects['vase']['weights'] = ['base: checkpoint 50']
    told = report.benchmark_text(found).splitlines()
    assert told[:-5] == lines[:-1] and told[-5:] == [
        'weights:',
        'dog: base: checkpoint 200; super_resolution: checkpoint 100',
        'vase: base: checkpoint 50',
        '',
        'cat is missing: runs/cat holds neither',
    ]


def test_scores_without_background_say_so():
    found = {'models': {'run': {'a': {'clip_i_masked': score(0.7)}}}, 'ceiling': {}}
    assert report.text(found).splitlines()[-1] == (
        '  clip_i_masked  0.700  -       more    the same, photos without their background'
    )
