"""What people read of an evaluation."""

from dreambooth_jax.evaluation import report


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
