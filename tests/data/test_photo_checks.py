"""Every finding about photos: where it is found, what it says, and where it is not found."""

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image
from scipy import ndimage

from dreambooth_jax.data import photo_checks
from dreambooth_jax.data.colour import matrix_profile
from dreambooth_jax.data.images import read_image
from dreambooth_jax.data.photo_checks import CheckedPhoto, Finding, Reading, check_together
from dreambooth_jax.data.subjects import ImageFile
from tests.support import marked_files
from tests.support.made_photos import array, scene, written

SQUARE = Reading({'training': ((256, 256),)})
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


def checked(path, reading=SQUARE, mask=None, index=0) -> CheckedPhoto:
    return photo_checks.check_photo(ImageFile(path, None, mask), index, reading)


def told(path, *arguments, **options):
    """The sentences about a photo."""
    return [str(finding) for finding in checked(path, *arguments, **options).findings]


def saved(path, image, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


# One photo


def test_a_good_photo_has_no_finding_and_is_cropped_as_in_training(tmp_path):
    path = saved(tmp_path / '1.png', scene(0))
    found = checked(path)
    assert found.findings == [] and found.size == (384, 384) and found.proposal is None
    np.testing.assert_array_equal(found.crops['training'][0].image, read_image(path, 256))
    assert found.crops['training'][0].box == (0, 0, 384, 384)


def test_all_crops_of_all_stages_are_those_of_training(tmp_path):
    path = saved(tmp_path / '1.png', scene(0, (400, 300)))
    found = checked(path, Reading({'base': ((64, 64),), 'super_resolution': ((256, 256),)}, crops=3, seed=5), index=2)
    for stage, side in (('base', 64), ('super_resolution', 256)):
        for number, crop in enumerate(found.crops[stage]):
            rng = np.random.default_rng([5, 2, number])
            wanted = read_image(path, side, crop='random' if number else 'center', rng=rng)
            np.testing.assert_array_equal(crop.image, wanted)
        assert number == 2
    assert found.centre is found.crops['super_resolution'][0]
    assert found.centre.box == pytest.approx((50, 0, 350, 300), abs=1)


def test_a_photo_that_cannot_be_read_is_an_error(tmp_path):
    path = saved(tmp_path / '1.png', scene(0))
    path.write_bytes(path.read_bytes()[:2000])
    found = checked(path)
    assert [str(one) for one in found.findings] == [
        'error: 1.png: it is truncated or damaged; replace it or take it out of its folder'
    ]
    assert (found.size, found.shown, found.centre, dict(found.crops)) == (None, None, None, {})


def test_a_photo_that_is_too_small_is_an_error(tmp_path):
    path = saved(tmp_path / '1.png', scene(0, (300, 200)))
    assert told(path) == [
        'error: 1.png: it is 300 x 200 pixels, smaller than the resolution 256; use a larger image or a lower '
        'resolution'
    ]
    second = Reading({'base': ((64, 64),), 'super_resolution': ((256, 256),)})
    assert list(checked(path, second).crops) == ['base']
    assert told(saved(tmp_path / '2.png', scene(0, (256, 256)))) == []


def test_a_blurred_photo_is_a_warning(tmp_path):
    (sentence,) = told(saved(tmp_path / '1.png', ndimage.gaussian_filter(array(0), (3, 3, 0))))
    assert sentence.startswith('warning: 1.png: even its sharpest edges are blurred, by ') and sentence.endswith(
        ' pixels of its crop of 256 x 256; take a sharper photo, with more light or a steady hand'
    )


def test_blur_is_judged_at_the_size_that_is_trained_on(tmp_path):
    """A large photo is often soft at its own size."""
    large = scene(0, (1024, 1024))
    soft = ndimage.gaussian_filter(np.asarray(large), (2, 2, 0))
    path = saved(tmp_path / '1.png', soft)
    assert told(path) == []
    assert 'blurred' in told(path, Reading({'training': ((1024, 1024),)}))[0]


def test_a_sharp_background_does_not_hide_a_blurred_subject_that_has_a_mask(tmp_path):
    image, inside = array(0), np.zeros((384, 384), np.uint8)
    inside[96:-96, 96:-96] = 255
    image = np.where(inside[..., None], ndimage.gaussian_filter(image, (4, 4, 0)), image)
    path, mask = saved(tmp_path / '1.png', image), saved(tmp_path / '1.mask.png', inside)
    reading = Reading({'training': ((384, 384),)})
    assert told(path, reading) == []
    assert [finding.check for finding in checked(path, reading, mask).findings] == ['blurred']


def test_lettering_at_the_edge_is_a_note(tmp_path):
    path = saved(tmp_path / '1.png', written(array(1), 'Photo by Jane Doe'))
    assert told(path) == [
        'note: 1.png: there may be lettering near its upper or lower edge; if it is a watermark or a date, crop it '
        'away or black it out in a mask, or the model will write it too'
    ]


@pytest.mark.parametrize('bars, side', [(48, 288), (70, 244)])
def test_bars_are_a_warning_with_a_better_crop(tmp_path, bars, side):
    image = np.zeros((384, 384, 3), np.uint8)
    image[bars:-bars] = array(0, (384, 384 - 2 * bars))
    found = checked(saved(tmp_path / '1.png', image))
    sentence = str(found.findings[0])
    assert sentence.startswith(
        'warning: 1.png: it has bars of one colour at opposite edges, which the model would learn; '
    )
    if side >= 256:
        left, top, right, bottom = found.proposal
        assert side - 4 <= right - left == bottom - top <= side and top >= bars
        assert sentence.endswith(
            f'; crop it to the {right - left} x {right - left} pixels that begin {left} from the left and {top} from '
            f'the top if the subject is inside, or cut the bars away and set config.data.aspect_buckets=True'
        )
    else:
        assert found.proposal is None
        assert 'take another photo, for between them it has 24' in sentence and sentence.endswith('the crop needs 256')


def masked(tmp_path, left, right):
    mask = np.zeros((384, 768), np.uint8)
    mask[50:-50, left:right] = 255
    return {'path': saved(tmp_path / '1.png', scene(0, (768, 384))), 'mask': saved(tmp_path / '1.mask.png', mask)}


def test_a_subject_that_the_crop_cuts_is_a_warning_where_there_is_a_mask(tmp_path):
    found = checked(**masked(tmp_path, 92, 392))
    assert [str(one) for one in found.findings] == [
        'warning: 1.png: its crop cuts off 33 % of the subject, by its mask; crop it to the 384 x 384 pixels that '
        'begin 50 from the left and 0 from the top, or set config.data.aspect_buckets=True'
    ]
    assert found.proposal == (50, 0, 434, 384)


def test_a_subject_inside_the_crop_and_one_without_a_mask_are_no_finding(tmp_path):
    assert told(**masked(tmp_path, 250, 500)) == []
    assert told(tmp_path / '1.png') == []


def test_a_marked_photo_is_an_error_without_consent_and_a_note_with_it(tmp_path):
    data = scene(0)
    packet = marked_files.xmp(marked_files.mining('DMI-PROHIBITED'))
    path = saved(tmp_path / '1.jpg', data, quality=95, xmp=packet)
    assert told(path) == [
        'error: 1.jpg: it is marked "do not train" (IPTC: plus:DataMining is DMI-PROHIBITED); take it out, or say in '
        'config.data.consent whose consent to train on it there is and how it was given'
    ]
    assert told(path, Reading(SQUARE.stages, consent='mine')) == [
        'note: 1.jpg: it is marked "do not train" (IPTC: plus:DataMining is DMI-PROHIBITED); config.data.consent says: '
        'mine'
    ]


def test_a_turned_photo_is_a_note_and_is_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = saved(tmp_path / '1.jpg', scene(0, (300, 400)), quality=95, exif=exif)
    assert told(path) == [
        'note: 1.jpg: it lies turned in its file; it is trained on upright, as shown here'
    ] and checked(path).size == (400, 300)
    exif[ExifTags.Base.Orientation] = 1
    assert told(saved(tmp_path / '2.jpg', scene(0), quality=95, exif=exif)) == []


def test_another_colour_profile_is_a_note(tmp_path):
    path = saved(tmp_path / '1.png', scene(0), icc_profile=matrix_profile(P3))
    assert told(path) == ['note: 1.png: its colours are those of the profile CICP; they are converted to sRGB']
    srgb = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
    assert told(saved(tmp_path / '2.png', scene(0), icc_profile=matrix_profile(srgb))) == []


def test_a_heic_is_a_note_and_its_turn_too(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name, options in (('1.heic', {}), ('2.heic', {'exif': exif.tobytes()})):
        pillow_heif.from_pillow(scene(0)).save(tmp_path / name, quality=95, **options)
    note = 'it is a HEIC image; it is read as it is, by pillow-heif'
    assert told(tmp_path / '1.heic') == [f'note: 1.heic: {note}']
    assert told(tmp_path / '2.heic') == [
        f'note: 2.heic: {note}',
        'note: 2.heic: it lies turned in its file; it is trained on upright, as shown here',
    ]


# Photos together


def together(images, **options):
    return [str(one) for one in check_together([f'{i}.jpg' for i in range(len(images))], images, **options)]


PLACES = [array(number) for number in range(5)]


def test_different_photos_of_one_subject_have_no_finding():
    assert together(PLACES) == [] == together([])


@pytest.mark.parametrize('mirrored', [False, True])
def test_twice_the_same_photo_is_a_warning(mirrored):
    again = np.ascontiguousarray(PLACES[1][:, ::-1] if mirrored else PLACES[1][4:, :-3])
    assert together([*PLACES, again, again]) == [
        f'warning: {number}.jpg: it shows nearly the same as 1.jpg{", mirrored" if mirrored else ""}; keep one of the '
        f'two, or take it from another side: twice the same photo is learned twice as fast'
        for number in (5, 6)
    ]


def test_one_background_is_a_warning_if_most_photos_have_it():
    meadow = [array(number, background=(60, 120, 60)) for number in range(5)]
    words = (
        'have nearly the same colours all around, as of one background; take some in other places, or the model learns '
        'the place together with the subject'
    )
    assert together(meadow) == [f'warning: all photos: 5 of 5 {words}']
    assert together([*meadow[:4], PLACES[0]])[0] == f'warning: all photos: 4 of 5 {words}'
    assert together([*meadow[:3], *PLACES[:2]]) == [] == together(meadow[:2])[:-1]


def test_the_same_lines_on_all_photos_are_a_warning():
    stamped = [written(image, 'SAMPLE', (0.2, 0.4), 0.15, 140) for image in PLACES]
    words = 'crop it away or black it out in masks, or the model will show it too'
    sentence = f'warning: all photos: the same lines lie on all of them at one place; {words}'
    assert together(stamped) == together(stamped[:4]) == [sentence]
    small = [np.asarray(Image.fromarray(image).resize((255, 255))) for image in stamped]
    assert together(small) == []  # too small to tell
    assert together(stamped[:3]) == []  # too few to tell
    assert together([*stamped[:4], PLACES[4]]) == []


def test_photos_that_are_twice_the_same_are_no_watermark():
    assert all('duplicate' == one.check for one in check_together(list('abcd'), [PLACES[0]] * 2 + [PLACES[1]] * 2))


def test_another_subject_is_a_note_by_its_colours():
    (sentence,) = together([*PLACES[:4], array(9, subject=(30, 200, 40))])
    assert sentence.startswith('note: 4.jpg: its middle has other colours than those of the others, by 0.')
    assert sentence.endswith('; look whether it shows the same subject, and take it out if not')
    assert together([*PLACES[:2], array(9, subject=(30, 200, 40))]) == []  # there is no majority


def test_another_subject_is_a_warning_by_the_features_of_an_encoder_which_replace_the_colours():
    features = np.eye(4, dtype=np.float32)[[0, 0, 1, 0, 0]]
    assert together(PLACES, features=features) == [
        "warning: 2.jpg: the encoder's features of it are unlike those of the others, by 1.00; look whether it shows "
        'the same subject, and take it out if not'
    ]
    odd = [*PLACES[:4], array(9, subject=(30, 200, 40))]
    assert together(odd, features=np.eye(4, dtype=np.float32)[[0] * 5]) == []


def test_the_odd_one_is_the_one_that_is_least_like_the_others():
    likeness = np.full((4, 4), 0.8)
    likeness[2] = likeness[:, 2] = 0.3
    index, gap = photo_checks.odd_one(likeness)
    assert index == 2 and gap == pytest.approx(0.5)


@pytest.mark.parametrize('count', [1, 2])
def test_few_photos_are_a_note(count):
    there = 'is only 1' if count == 1 else 'are only 2'
    assert together(PLACES[:count]) == [
        f'note: all photos: there {there}; the paper has 3 to 5 photos of a subject; add some from other sides and in '
        f'other places'
    ]


def test_large_parts_left_out_by_crops_are_one_note(tmp_path):
    wide = [checked(saved(tmp_path / f'{i}.png', scene(i, size))) for i, size in enumerate([(512, 384), (256, 384)])]
    square = checked(saved(tmp_path / '3.png', scene(3)))
    (finding,) = photo_checks.check_crops([*wide, square])
    assert str(finding) == (
        'note: all photos: the crop of 2 of 3 leaves out 25 to 33 % of the photo; look whether the subject is inside; '
        'if not, crop the photo by hand, set config.data.aspect_buckets=True, or paint a mask of the subject, by which '
        'the crop is checked'
    )
    assert photo_checks.check_crops([square]) == []


def test_the_worst_comes_first():
    some = [Finding(severity, 'a', None, 'b', 'c') for severity in ('note', 'error', 'warning', 'error')]
    assert [one.severity for one in photo_checks.worst_first(some)] == ['error', 'error', 'warning', 'note']
