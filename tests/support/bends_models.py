"""Bends of a model for the fuzz tests: each changes one thing in its JSON files or in its weights."""

import json
import re
import struct

import ml_dtypes
import numpy as np

from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.weights import lora_files
from tests.support.fuzz_world import Expected, Seen, World, change_json

VALUES = (
    None,
    'x',
    '',
    -1,
    0,
    1,
    2,
    3,
    1.5,
    1e-3,
    float('nan'),
    float('inf'),
    True,
    False,
    [],
    [1],
    [8, 12],
    [[1], [2]],
    {},
    {'a': 1},
    'gone',
    'renamed',
    ['x'],
)
SIZES = {'F64': 8, 'I64': 8, 'F32': 4, 'I32': 4, 'F16': 2, 'BF16': 2, 'I8': 1, 'U8': 1, 'F8_E4M3': 1, 'BOOL': 1}


def anything(world: World, seen: Seen) -> None:
    """Checks that the network was built; more cannot be said about a legal value."""
    assert seen.params is not None


def json_value(world, rng):
    paths = sorted(
        path
        for path in world.own_model().rglob('*.json')
        if not path.is_relative_to(world.model / 'super_resolution') and 'tokenizer' not in path.parent.name
    )
    return bent_value(paths[rng.integers(len(paths))], rng)


def scheduler_value(world, rng):
    return bent_value(world.own_model() / 'scheduler' / 'scheduler_config.json', rng)


def unet_value(world, rng):
    return bent_value(world.own_model() / 'unet' / 'config.json', rng)


def bent_value(path, rng):
    value = VALUES[rng.integers(len(VALUES))]
    keys = sorted(json.loads(path.read_text()))
    key = keys[rng.integers(len(keys))]

    def change(content):
        if value == 'gone':
            del content[key]
        elif value == 'renamed':
            content[f'{key}_'] = content.pop(key)
        else:
            content[key] = value

    change_json(path, change)
    return Expected(None, ('model', path.name, key), anything)


def other_scheduler(world, rng):
    names = [
        'LCMScheduler',
        'TCDScheduler',
        'UniPCMultistepScheduler',
        'FlowMatchEulerDiscreteScheduler',
        'EDMEulerScheduler',
        'DDPMParallelScheduler',
        'NoSuchScheduler',
        'DPMSolverSDEScheduler',
        'SASolverScheduler',
    ]
    path = world.own_model() / 'scheduler' / 'scheduler_config.json'
    change_json(path, lambda content: content.update(_class_name=names[rng.integers(len(names))]))
    return Expected(None, ('scheduler', '_class_name'), anything)


def other_pipeline(world, rng):
    names = [
        'StableDiffusionImg2ImgPipeline',
        'StableDiffusionInpaintPipeline',
        'IFImg2ImgPipeline',
        'FluxKontextPipeline',
        'DiffusionPipeline',
        'StableDiffusionXLPipeline',
        'LatentConsistencyModelPipeline',
        'StableDiffusionPAGPipeline',
        '',
        None,
        7,
    ]
    path = world.own_model() / 'model_index.json'
    change_json(path, lambda content: content.update(_class_name=names[rng.integers(len(names))]))
    return Expected(None, ('_class_name', 'model'), anything)


def broken_json(world, rng):
    paths = sorted(world.own_model().rglob('*.json'))
    paths = [path for path in paths if 'super_resolution' not in path.parts]
    path = paths[rng.integers(len(paths))]
    content = [b'', b'{', b'[]', b'null', b'\xff\xfe', b'"x"', path.read_bytes()[:-3]][rng.integers(7)]
    path.write_bytes(content)
    # A tokenizer can do without some of its files.
    return Expected(None if 'tokenizer' in path.parent.name else 1, (path.name, 'tokenizer'), anything)


def lost_file(world, rng):
    paths = sorted(
        path for path in world.own_model().rglob('*') if path.is_file() and 'super_resolution' not in path.parts
    )
    path = paths[rng.integers(len(paths))]
    path.unlink()
    return Expected(None if 'tokenizer' in path.parent.name else 1, (path.name, path.parent.name), anything)


def weights_file(world, rng):
    paths = sorted(path for path in world.own_model().rglob('*.safetensors') if 'super_resolution' not in path.parts)
    return paths[rng.integers(len(paths))]


def parts(path):
    data = path.read_bytes()
    length = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body, length=None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + body


def broken_file(world, rng):
    path = weights_file(world, rng)
    header, body = parts(path)
    data = path.read_bytes()
    path.write_bytes(
        [
            b'',
            data[:4],
            data[: len(data) // 2],
            joined(header, body, 2**40),
            joined(header, body, 3),
            joined(header, body[:-8]),
            joined([], body),
            b'{' * 100,
            joined({'a': 1}, b''),
            joined({}, b''),
            data[8:],
        ][rng.integers(11)]
    )
    return Expected(1, (path.name,))


def header_bit(world, rng):
    path = weights_file(world, rng)
    data = bytearray(path.read_bytes())
    length = struct.unpack('<Q', data[:8])[0]
    data[rng.integers(0, 8 + length)] ^= 1 << rng.integers(7)
    path.write_bytes(data)
    return Expected(None, (path.name,), anything)


def header_entry(world, rng):
    """Removes or renames a tensor, or gives it a shape or dtype that does not belong to its bytes."""
    path = weights_file(world, rng)
    header, body = parts(path)
    names = sorted(name for name in header if name != '__metadata__')
    name = names[rng.integers(len(names))]
    kind = rng.integers(4)
    if kind == 0:
        header['another'] = header.pop(name)
    elif kind == 1:
        header[name]['shape'] = [1, *header[name]['shape'], 1]
    elif kind == 2:
        header[name]['shape'] = header[name]['shape'][::-1] + [2]
    else:
        header[name]['dtype'] = ['I32', 'F99', None, 7, 'U32'][rng.integers(5)]
    path.write_bytes(joined(header, body))
    return Expected(1, (path.name, name))


def other_type(world, rng):
    """Stores all tensors of a file in another dtype, with their values rounded to it."""
    path = weights_file(world, rng)
    types = {
        'F16': np.float16,
        'BF16': ml_dtypes.bfloat16,
        'F64': np.float64,
        'F8_E4M3': ml_dtypes.float8_e4m3fn,
        'F8_E5M2': ml_dtypes.float8_e5m2,
        'I8': np.int8,
        'U8': np.uint8,
        'BOOL': np.bool_,
    }
    label = sorted(types)[rng.integers(len(types))]
    header, body = parts(path)
    bent, chunks, at = {}, [], 0
    for name, entry in header.items():
        if name == '__metadata__':
            continue
        begin, end = entry['data_offsets']
        chunks.append(np.frombuffer(body[begin:end], np.float32).astype(types[label]).tobytes())
        bent[name] = {'dtype': label, 'shape': entry['shape'], 'data_offsets': [at, at + len(chunks[-1])]}
        at += len(chunks[-1])
    path.write_bytes(joined(bent, b''.join(chunks)))
    if label in ('I8', 'U8', 'BOOL'):
        return Expected(1, (path.name,))
    wanted = values_of(np.frombuffer(one, types[label]).astype(np.float32) for one in chunks)

    def check(world, seen):
        assert path.parent.name != 'unet' or np.array_equal(values_of(seen.params.values()), wanted)

    return Expected(0, check=check)


def values_of(arrays) -> np.ndarray:
    """All numbers of a network, sorted, because checkpoints and networks have different names and axes."""
    return np.sort(np.concatenate([np.asarray(value).reshape(-1) for value in arrays]))


def lora_file(world, rng):
    """Gives `sample` a LoRA file of the UNet, which may itself be bent."""
    random = np.random.default_rng(0)
    unet = read_pipeline(world.model, components=('unet',)).denoiser
    layers = [
        name.removesuffix('.kernel')
        for name in unet.params
        if re.fullmatch(r'.*attn.*to_q\.kernel|.*\.to_q\.kernel', name)
    ]
    params = {}
    for layer in layers:
        inputs, outputs = unet.params[f'{layer}.kernel'].shape
        params[f'{layer}.lora_a'] = random.normal(size=(inputs, 2)).astype(np.float32)
        params[f'{layer}.lora_b'] = random.normal(size=(2, outputs)).astype(np.float32)
    path = world.here / 'adapter.safetensors'
    lora_files.write_lora(path, lora_files.Adapter({'unet': params}, 2, 2.0), lora_files.PEFT)
    world.program = 'sample'
    world.arguments = ['--model=model', '--prompt=a dog', '--output=run', '--lora=adapter.safetensors']
    header, body = parts(path)
    name = sorted(set(header) - {'__metadata__'})[0]
    kind = rng.integers(7)
    if kind == 0:
        return Expected(0)
    if kind == 1:
        path.write_bytes(path.read_bytes()[: int(rng.integers(0, 300))])
    elif kind == 2:
        header[name.replace('lora_A', 'hada_w1_a')] = header.pop(name)
        path.write_bytes(joined(header, body))
    elif kind == 3:
        header['another.model.layer.lora_A.weight'] = header.pop(name)
        path.write_bytes(joined(header, body))
    elif kind == 4:
        header['__metadata__'] = {
            'lora_adapter_metadata': ['{', '[]', '{"unet.lora_alpha": "x"}', '3'][rng.integers(4)]
        }
        path.write_bytes(joined(header, body))
        return Expected(None, (path.name,))
    elif kind == 5:
        path.unlink()
    else:
        header[name]['dtype'] = 'I32'
        path.write_bytes(joined(header, body))
    return Expected(1, (path.name,))


BENDS = [
    json_value,
    unet_value,
    scheduler_value,
    other_scheduler,
    other_pipeline,
    broken_json,
    lost_file,
    broken_file,
    header_bit,
    header_entry,
    other_type,
    unet_value,
    lora_file,
    json_value,
]
