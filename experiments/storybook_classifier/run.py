"""Trains the classifier of Storybook from scratch, measures it on scenes that it never saw, and writes both.

  python experiments/storybook_classifier/run.py

Expected on clean images: class 98.8 % (of ordinary scenes from the front, without styles and cubes; 93 % of all),
context 99.7 %, subject 98 % with 0.4 % false subjects, fine marks found 98 % with 1 % false ones. 14 minutes on two
CPU cores that another training used as well, and 2 for measuring; no accelerator needed.

What the classifier learns: random scenes; the thirty subjects in scenes of their own (neither their reference images
nor `held_out_scenes`: those are the test); and lookalikes, which are nobody: a subject's colours without its marks, its
whole look on another class, halves and badges in other colours. Images are disturbed as a diffusion model would:
blurred, noisy, of lower resolution, colours off, shifted. For the fine marks every scene is painted with and without;
images whose 128 px are the upsampled 32 px, sharpened or not, have none: a super-resolution stage that fails.
"""

import dataclasses
import functools
import json
import os
import platform
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx
from tqdm import tqdm

from dreambooth_jax.evaluation import classifier, experiment
from dreambooth_jax.evaluation.disturbance import blurred, disturb, some
from dreambooth_jax.models import functional
from dreambooth_jax.storybook import draw, draw_subject, storybook_folder, subjects, world
from dreambooth_jax.weights import files, mapping

HERE = Path(__file__).parent
_SEED = flags.DEFINE_integer('seed', 0, 'Of images, weights and batches; the test scenes have seeds of their own.')
_OUTPUT = flags.DEFINE_string('output', None, 'Folder of the weights; default: the shipped ones are replaced.')
_RESULTS = flags.DEFINE_string('results', str(HERE / 'results.json'), 'File of the measured numbers.')
_CACHE = flags.DEFINE_string('cache', None, 'Folder that keeps the painted images for the next run; default: none.')
_IMAGES = flags.DEFINE_integer('images', 40000, 'Painted at 32 px for the naming network.', lower_bound=100)
_PAIRS = flags.DEFINE_integer('pairs', 3600, 'Scenes painted at 128 px with and without a fine mark.', lower_bound=20)
_NAMING_STEPS = flags.DEFINE_integer('naming_steps', 3800, 'Steps of the naming network.', lower_bound=1)
_FINE_STEPS = flags.DEFINE_integer('fine_steps', 700, 'Steps of the fine-mark network.', lower_bound=1)
_TRAIN = flags.DEFINE_list('train', ['naming', 'fine_mark'], 'Networks to train; the weights of others are kept.')

NAMING_BATCH, FINE_BATCH = 64, 64
NAMING_LEARNING_RATE, FINE_LEARNING_RATE = 2e-3, 2e-3
TRAIN, TEST = 0, 1  # the second number of every seed
SHARES = {'ordinary': 0.38, 'various': 0.20, 'subject': 0.28, 'lookalike': 0.14}
# Classes whose images differ most among themselves, and how the 'various' scenes are shared out to them.
VARIOUS = {
    'toy': 0.36,
    'stuffed animal': 0.24,
    'boot': 0.1,
    'teapot': 0.1,
    'cartoon': 0.1,
    'backpack': 0.05,
    'can': 0.05,
}
# A mark that an accessory or the badge covers is not in the image: of the pixels that it changes, how many at least.
VISIBLE_LEVELS, VISIBLE_PIXELS = 12, 128
SUBJECT_PAIRS = {(s.class_noun, s.look['colour'], s.look['second_colour']) for s in subjects.SUBJECTS.values()}


# Scenes


def subject_scene(rng: np.random.Generator, name: str) -> world.Scene:
    """A subject somewhere: any context or none, worn things, and now and then the paper's materials, styles, views."""
    subject = subjects.SUBJECTS[name]
    extra = rng.choice(('none', 'material', 'style', 'view'), p=(0.81, 0.08, 0.07, 0.04))
    wears = subject.class_noun in world.WEARING_CLASSES and extra != 'view' and rng.random() < 0.4
    return world.Scene(
        class_noun=subject.class_noun,
        context=str(rng.choice(world.CONTEXTS)) if rng.random() < 0.86 else None,
        accessory=str(rng.choice(world.ACCESSORIES)) if wears else None,
        material=str(rng.choice(world.MATERIALS)) if extra == 'material' else None,
        style=str(rng.choice(world.STYLES)) if extra == 'style' else None,
        view=str(rng.choice(world.VIEWS)) if extra == 'view' else None,
        x=float(rng.uniform(0.41, 0.59)),
        y=float(rng.uniform(0.53, 0.64)),
        scale=float(rng.uniform(0.56, 0.78)),
        flip=bool(rng.random() < 0.5),
        seed=int(rng.integers(2**31)),
        **subject.look,
    )


def lookalike_scene(rng: np.random.Generator) -> world.Scene:
    """Nobody: a subject's class and colours unmarked, a subject's look on another class, or marks in other colours."""
    subject = subjects.SUBJECTS[str(rng.choice(list(subjects.SUBJECTS)))]
    way = rng.choice(('unmarked', 'other class', 'other colours'), p=(0.4, 0.3, 0.3))
    if way == 'unmarked':
        scene = world.sample_scene(rng, class_noun=subject.class_noun)
        colours = {key: subject.look[key] for key in ('colour', 'second_colour', 'kind')}
        return dataclasses.replace(scene, **colours)
    while True:
        scene = world.sample_scene(rng)
        marks = {key: subject.look[key] for key in ('mark', 'mark_colour', 'split')} | {'pattern': None}
        if way == 'other class':
            marks |= {key: subject.look[key] for key in ('colour', 'second_colour')}
        scene = dataclasses.replace(scene, **marks)
        if (scene.class_noun, scene.colour, scene.second_colour) not in SUBJECT_PAIRS:
            return scene


def labels_of(scene: world.Scene, subject: str | None) -> tuple[int, ...]:
    """One label number per head of the classifier."""
    config = classifier.ClassifierConfig()
    values = (scene.class_noun, scene.context, subject, scene.accessory)
    return tuple(getattr(config, head).index(value) for head, value in zip(classifier.HEADS, values, strict=True))


def draw_scene(kind: str, seed, row: int) -> tuple[world.Scene, str | None]:
    """Scene `row` of a kind, and whose image it is; subjects take turns."""
    rng = np.random.default_rng((*seed, sorted(SHARES).index(kind), row))
    if kind == 'subject':
        name = list(subjects.SUBJECTS)[row % len(subjects.SUBJECTS)]
        return subject_scene(rng, name), name
    if kind == 'lookalike':
        return lookalike_scene(rng), None
    class_noun = str(rng.choice(list(VARIOUS), p=list(VARIOUS.values()))) if kind == 'various' else None
    return world.sample_scene(rng, class_noun=class_noun), None


def cached(name: str, make) -> dict[str, np.ndarray]:
    """make()'s arrays, from --cache if they are there."""
    path = Path(_CACHE.value) / f'{name}.npz' if _CACHE.value else None  # delete it when scenes change
    if path and path.is_file():
        return dict(np.load(path))
    arrays = make()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    return arrays


def paint_named(scenes) -> dict[str, np.ndarray]:
    """Images uint8[N, 32, 32, 3] and labels i32[N, heads] of (scene, subject) pairs."""
    images = np.stack([draw.paint(scene, classifier.LOW) for scene, _ in tqdm(scenes, 'painting, 32 px')])
    return {'images': images, 'labels': np.array([labels_of(*pair) for pair in scenes], np.int32)}


def paint_pairs(scenes) -> dict[str, np.ndarray]:
    """The same scenes with and without fine mark, and the mark's label i32[N], -1 where it is mostly covered."""
    kinds = classifier.ClassifierConfig().fine_mark
    marked = np.stack([draw.paint(scene, classifier.HIGH) for scene in tqdm(scenes, 'painting, 128 px, marked')])
    plain = [dataclasses.replace(scene, fine_mark=None) for scene in scenes]
    plain = np.stack([draw.paint(scene, classifier.HIGH) for scene in tqdm(plain, 'painting, 128 px, unmarked')])
    change = np.abs(marked.astype(np.float32).mean(-1) - plain.astype(np.float32).mean(-1))
    visible = (change > VISIBLE_LEVELS).sum(axis=(1, 2)) >= VISIBLE_PIXELS
    labels = np.array([kinds.index(scene.fine_mark) for scene in scenes], np.int32)
    return {'marked': marked, 'plain': plain, 'labels': np.where(visible, labels, -1)}


def fine_scenes(seed, count: int) -> list[world.Scene]:
    """Subjects with their own and with other fine marks, and others with one, so that the texture alone decides."""
    scenes = []
    for row in range(count):
        scene, _ = draw_scene('ordinary' if row % 4 == 3 else 'subject', (*seed, 7), row)
        kind = draw_subject.FINE_MARKS[row % 6]
        scenes.append(scene if row % 4 < 2 else dataclasses.replace(scene, fine_mark=kind))
    return scenes


# Disturbances besides those of evaluation/disturbance.py, on f32[B, H, W, 3] in [0, 1] inside a jitted step


def failed_super_resolution(high, key):
    """The 32 px version of f32[B, 128, 128, 3], upsampled by cubics or linearly, sharpened and noisy at times."""
    rows, size, _, channels = high.shape
    low = high.reshape(
        rows, classifier.LOW, size // classifier.LOW, classifier.LOW, size // classifier.LOW, channels
    ).mean(axis=(2, 4))
    keys = jax.random.split(key, 4)
    cubic, linear = (jax.image.resize(low, high.shape, method) for method in ('bicubic', 'bilinear'))
    x = jnp.where((jnp.arange(rows) % 3 == 0)[:, None, None, None], linear, cubic)
    x = x + some(keys[0], rows, 0.7, 0.0, 3.0) * (x - blurred(blurred(x)))
    x = x + some(keys[1], rows, 0.5, 0.0, 0.05) * jax.random.normal(keys[2], x.shape)
    return jnp.clip(x, 0, 1)


def moved(images, rows, rng, reach: int):
    """images[rows], each mirrored or not and shifted by up to `reach` px, its edge repeated."""
    size = images.shape[1]
    steps = np.arange(size)
    down, right = (np.clip(steps + rng.integers(-reach, reach + 1, (len(rows), 1)), 0, size - 1) for _ in range(2))
    right = np.where(rng.random((len(rows), 1)) < 0.5, right, right[:, ::-1])
    return images[rows[:, None, None], down[:, :, None], right[:, None, :]]


# Training


def train(apply_loss, params, batches, steps: int, learning_rate: float, description: str):
    """AdamW with a one-cycle rate; a plain jitted step, since a scan's convolutions are slow on CPUs."""
    tx = optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 20), steps), weight_decay=1e-3
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, key, *batch):
        loss, gradient = jax.value_and_grad(apply_loss)(params, key, *batch)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, key = tx.init(params), jax.random.key(_SEED.value + 17)
    bar = tqdm(range(steps), description)
    for i in bar:
        params, opt_state, loss = step(params, opt_state, jax.random.fold_in(key, i), *batches(i))
        if i % 20 == 0:
            bar.set_postfix(loss=f'{float(loss):.3f}')
    return jax.device_get(params)


def train_naming(config):
    kinds = [(kind, round(share * _IMAGES.value)) for kind, share in SHARES.items()]
    scenes = [(kind, row) for kind, count in kinds for row in range(count)]
    name = f'named_{_IMAGES.value}_{_SEED.value}'
    data = cached(name, lambda: paint_named([draw_scene(kind, (_SEED.value, TRAIN), row) for kind, row in scenes]))
    apply, params = functional.init(lambda rngs: classifier.NamingNetwork(config, rngs=rngs), _SEED.value)

    def batches(i):
        rng = np.random.default_rng((_SEED.value, 2, i))
        rows = rng.integers(0, len(data['images']), NAMING_BATCH)
        return moved(data['images'], rows, rng, 2), data['labels'][rows]

    def loss(params, key, images, labels):
        x = disturb(images.astype(jnp.float32) / 255, key, blur=1.3, coarse=0.9, noise=0.07)
        logits = apply(params, x)
        error = optax.softmax_cross_entropy_with_integer_labels
        return sum(error(logits[head], labels[:, i]).mean() for i, head in enumerate(classifier.HEADS))

    return train(loss, params, batches, _NAMING_STEPS.value, NAMING_LEARNING_RATE, 'naming network')


def train_fine_mark(config):
    seed = (_SEED.value, TRAIN)
    pairs = cached(f'pairs_{_PAIRS.value}_{_SEED.value}', lambda: paint_pairs(fine_scenes(seed, _PAIRS.value)))
    seen = np.flatnonzero(pairs['labels'] >= 0)
    apply, params = functional.init(lambda rngs: classifier.FineMarkNetwork(config, rngs=rngs), _SEED.value + 1)
    marked_rows, plain_rows = FINE_BATCH * 7 // 16, FINE_BATCH * 5 // 16  # the rest: super-resolution that fails

    def batches(i):
        rng = np.random.default_rng((_SEED.value, 3, i))
        rows = rng.choice(seen, marked_rows), *rng.integers(0, len(pairs['plain']), (2, plain_rows))
        rows = rows[0], rows[1], rows[2][: FINE_BATCH - marked_rows - plain_rows]
        state = rng.bit_generator.state
        marked = moved(pairs['marked'], rows[0], rng, 3)
        rng.bit_generator.state = state  # the unmarked twin is moved alike
        twin = moved(pairs['plain'], rows[0], rng, 3)
        others = [moved(pairs[which], r, rng, 3) for which, r in (('plain', rows[1]), ('marked', rows[2]))]
        labels = np.concatenate([pairs['labels'][rows[0]], np.zeros(FINE_BATCH - marked_rows, np.int32)])
        return marked, twin, *others, labels

    def loss(params, key, marked, twin, plain, unsharp, labels):
        marked, twin, plain, unsharp = (x.astype(jnp.float32) / 255 for x in (marked, twin, plain, unsharp))
        first, second, third, fourth = jax.random.split(key, 4)
        # A generated mark may be fainter than a painted one.
        marked = marked + some(first, marked_rows, 0.5, 0.0, 0.45) * (twin - marked)
        seen = disturb(jnp.concatenate([marked, plain]), second, blur=0.6, coarse=0.3, noise=0.04)
        failed = disturb(failed_super_resolution(unsharp, third), fourth, blur=0.6, coarse=0.3, noise=0.02)
        logits = apply(params, jnp.concatenate([seen, failed]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return train(loss, params, batches, _FINE_STEPS.value, FINE_LEARNING_RATE, 'fine-mark network')


# Measuring


def _bytes(x):
    return np.asarray(jnp.round(255 * jnp.clip(x, 0, 1))).astype(np.uint8)


def disturbed(images, **amounts):
    """uint8 -> uint8, as in training but every image and with another key."""
    x = jnp.asarray(images, jnp.float32) / 255
    # disturb leaves every fourth row clean: put a blank one there.
    x = jnp.insert(x, np.arange(0, len(x), 3), 0.0, axis=0)
    out = _bytes(jax.jit(functools.partial(disturb, **amounts))(x, jax.random.key(99)))
    return out[np.arange(len(out)) % 4 != 0]


def named_right(the_classifier, images, labels) -> tuple[dict[str, float], Counter]:
    """The share of each head that is right, and every (head, true, said) that is not."""
    verdicts, wrong, shares = the_classifier.name(images), Counter(), {}
    for i, head in enumerate(classifier.HEADS):
        known = verdicts.labels[head]
        true, said = [known[label] for label in labels[:, i]], getattr(verdicts, head)
        wrong.update((head, t, s) for t, s in zip(true, said, strict=True) if t != s)
        shares[head] = round(float(np.mean([t == s for t, s in zip(true, said, strict=True)])), 4)
    return shares, wrong


def measure(the_classifier) -> dict:
    """All numbers, on scenes that training never drew: other seeds, the subjects' reference and held-out scenes."""
    seed, names = (_SEED.value, TEST), list(subjects.SUBJECTS)
    ordinary = [draw_scene('ordinary', seed, row) for row in range(3000)]
    kept = [(scene, name) for name in names for scene in subjects.held_out_scenes(name, 40)]
    kept += [(scene, name) for name in names for scene in subjects.reference_scenes(name)]
    sets = {
        'ordinary scenes': ordinary,
        # From above or below all creatures are painted alike, and a cube hides most of a shape.
        'ordinary scenes seen from the front, no style': [p for p in ordinary if not (p[0].style or p[0].view)],
        'the same, no cubes': [p for p in ordinary if not (p[0].style or p[0].view or p[0].material == 'cube shaped')],
        "subjects' held-out and reference scenes": kept,
        'lookalikes': [draw_scene('lookalike', seed, row) for row in range(600)],
        # What partly drawn subjects are called; never in training. Right here is the subject.
        'subjects without their badge': [(dataclasses.replace(s, mark=None), name) for s, name in kept[::2]],
        'subjects without their second colour': [(dataclasses.replace(s, split=False), name) for s, name in kept[::2]],
    }
    data = {name: paint_named(scenes) for name, scenes in sets.items()}
    pairs = paint_pairs([s for name in names for s in subjects.held_out_scenes(name, 20)])
    wild = np.stack([draw.paint(scene, classifier.HIGH) for scene, _ in ordinary[:600]])
    naming, confusions = {}, Counter()
    for name, arrays in data.items():
        images, labels = arrays['images'], arrays['labels']
        clean, wrong = named_right(the_classifier, images, labels)
        rough, _ = named_right(the_classifier, disturbed(images, blur=1.3, coarse=0.9, noise=0.07), labels)
        naming[name] = {'images': len(images), 'clean': clean, 'disturbed': rough}
        if name == 'ordinary scenes' or name.startswith("subjects'"):
            confusions += wrong
    both = [data['ordinary scenes'], data["subjects' held-out and reference scenes"]]
    images, labels = (np.concatenate([arrays[key] for arrays in both]) for key in ('images', 'labels'))
    total = named_right(the_classifier, images, labels)
    shown = pairs['labels'] >= 0
    fine = measure_fine(the_classifier, pairs['marked'][shown], pairs['plain'], wild, pairs['labels'][shown])
    return {
        'naming, all clean': total[0],
        'false subjects on ordinary scenes': round(1 - naming['ordinary scenes']['clean']['subject'], 4),
        'naming': naming,
        'confusions': [[*key, count] for key, count in confusions.most_common(20)],
        'fine mark': {'covered in held-out images': round(float(1 - shown.mean()), 4), **fine},
    }


def measure_fine(the_classifier, marked, plain, wild, labels) -> dict:
    """Shares of images said to have a fine mark (P > 0.5), and of marks whose kind is right."""
    amounts = dict(blur=0.6, coarse=0.3, noise=0.04)
    cubic = jax.image.resize(
        jnp.asarray(marked.reshape(-1, 32, 4, 32, 4, 3).mean(axis=(2, 4))) / 255, marked.shape, 'bicubic'
    )
    has = lambda images: round(float((the_classifier.has_fine_mark(images) > 0.5).mean()), 4)  # noqa: E731
    return {
        'images': {'marked': len(marked), 'unmarked': len(plain), 'ordinary': len(wild)},
        'found': {'clean': has(marked), 'disturbed': has(disturbed(marked, **amounts))},
        'false, same subjects without it': {'clean': has(plain), 'disturbed': has(disturbed(plain, **amounts))},
        'false, ordinary scenes': {'clean': has(wild), 'disturbed': has(disturbed(wild, **amounts))},
        'false, bicubic from 32 px': has(_bytes(cubic)),
        'false, from 32 px, sharpened and noisy': has(
            _bytes(jax.jit(failed_super_resolution)(jnp.asarray(marked) / 255, jax.random.key(5)))
        ),
        'kind right': round(float((the_classifier.fine_mark_kinds(marked).argmax(-1) == labels).mean()), 4),
    }


def kept(folder: Path, child: str, network, config):
    """The parameters of one network as they are in the folder."""
    tensors = files.read_tensors(files.find_weights(folder, classifier.STEM))
    own = {name.removeprefix(f'{child}.'): value for name, value in tensors.items() if name.startswith(f'{child}.')}
    return mapping.load(nnx.eval_shape(lambda: network(config, rngs=functional.Keys(0))), own, source=str(folder))


def main(_):
    folder = Path(_OUTPUT.value) if _OUTPUT.value else storybook_folder() / 'classifier'
    config, params, seconds, path = classifier.ClassifierConfig(), {}, {}, Path(_RESULTS.value)
    for child, network, train_it in (
        ('naming', classifier.NamingNetwork, train_naming),
        ('fine_mark', classifier.FineMarkNetwork, train_fine_mark),
    ):
        start = time.perf_counter(), time.process_time()
        weights = train_it(config) if child in _TRAIN.value else kept(folder, child, network, config)
        params |= {f'{child}.{name}': value for name, value in weights.items()}
        if child in _TRAIN.value:
            wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
            seconds[child] = {'wall': round(wall), 'cpu, both cores': round(cpu)}
    classifier.save(folder, config, params)
    results = measure(classifier.Classifier.load(folder))
    before = json.loads(path.read_text('utf-8')) if path.is_file() else {}
    results['seconds, painting and training'] = before.get('seconds, painting and training', {}) | seconds
    results['hardware'] = f'{os.cpu_count()} CPU cores ({platform.machine()}), {jax.default_backend()}'
    path.write_text(json.dumps(results, indent=2) + '\n', 'utf-8')
    print(json.dumps({key: value for key, value in results.items() if key != 'naming'}, indent=2))
    print(experiment.expectations(HERE / 'expected.json', results))


if __name__ == '__main__':
    app.run(main)
