"""Every setting of train is described by the comment above it."""

import dataclasses

from dreambooth_jax.config import Config, DreamBoothConfig, resolve, setting, to_config_dict
from dreambooth_jax.config.described import described as describe
from dreambooth_jax.config.described import unshown


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inner(Config):
    """A group."""

    # How much of it. It may
    # take a second line.
    share: float = setting(0.5, 'in [0, 1]')
    limit: int | None = setting(None, '> 0')

    bare: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Outer(Config):
    """A group with a group."""

    inner: _Inner = _Inner()
    # On or off.
    on: bool = True


def test_comments_are_the_docs():
    found = {one.name: one for one in describe(_Outer)}
    assert list(found) == ['inner.share', 'inner.limit', 'inner.bare', 'on']
    share = found['inner.share']
    assert (share.group, share.doc, share.kind) == ('inner', 'How much of it. It may take a second line.', 'a number')
    assert (share.allowed, share.default, share.choices) == ('in [0, 1]', 0.5, ())
    assert (found['inner.limit'].doc, found['inner.limit'].kind) == (share.doc, 'an int or None')
    assert found['inner.bare'].doc == '' and found['on'].group == ''


def test_every_setting_of_train_has_docs_a_default_and_its_choices():
    found = {one.name: one for one in describe(DreamBoothConfig)}
    assert [name for name, one in found.items() if not one.doc] == []
    assert found['prior.kind'].choices == ('images', 'distillation')
    assert found['lora.frozen_dtype'].choices == (None, 'int8', 'nf4')
    assert 'data.subjects' not in found and found['data.instance_prompt'].doc.startswith('"a [identifier]')
    config = to_config_dict(DreamBoothConfig(data={'subject': 'dog', 'instance_prompt': 'a', 'class_prompt': 'b'}))
    for name, one in found.items():
        if not name.startswith('data.'):
            config.update_from_flattened_dict({name: one.default})
    resolve(DreamBoothConfig, config)


def test_what_no_form_can_hold_is_named():
    names = unshown(DreamBoothConfig)
    assert names == ('data.subjects',) and not {*names} & {one.name for one in describe(DreamBoothConfig)}
