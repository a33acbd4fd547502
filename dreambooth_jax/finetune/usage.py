"""How an export is used, in the words of its model card: diffusers, other programs, and this one."""

from dreambooth_jax.generation.cascade import SUPER_RESOLUTION, Cascade
from dreambooth_jax.weights import lora_files
from dreambooth_jax.weights.kinds import kind_of
from dreambooth_jax.weights.textual_inversion import file_name

_FOLDER = 'PATH/TO/THIS/FOLDER'
_ELSEWHERE = {
    'single_file': '`models/checkpoints` of ComfyUI, `models/Stable-diffusion` of AUTOMATIC1111 and Forge',
    lora_files.KOHYA: '`models/loras` of ComfyUI, `models/Lora` of AUTOMATIC1111 and Forge',
    'lora_comfyui': '`models/loras` of ComfyUI',
}


def paragraphs(
    cascade: Cascade, form: str, file: str | None, base: str, prompt: str, repository: str | None = None
) -> list[str]:
    """Returns how an export is used, as paragraphs of Markdown.

    Args:
      cascade: the model.
      form: one of config.ExportFormat.
      file: name of its file; None: it is a folder.
      base: hub id or name of the base model.
      prompt: an instance prompt.
      repository: the repository of the hub that it lies in; None: it lies in a folder.
    """
    name, family = cascade.base.class_name, cascade.base.family
    folder = repository or _FOLDER
    single = f'https://huggingface.co/{repository}/blob/main/{file}' if repository else file
    is_transformer = form == 'single_file' and family.original_transformer is not None  # the file holds nothing else
    lines = [f'from diffusers import {name}', '']
    if is_transformer:
        part = kind_of(family.denoiser, cascade.base.denoiser.config).class_name
        lines = [f'from diffusers import {name}, {part}', '']
        lines.append(
            f'transformer = {part}.from_single_file({single!r}, config={base!r}, subfolder={family.denoiser!r})'
        )
        lines.append(f'pipe = {name}.from_pretrained({base!r}, transformer=transformer)')
    elif form == 'diffusers':
        lines.append(f'pipe = {name}.from_pretrained({folder!r})')
    elif form == 'single_file':
        lines.append(f'pipe = {name}.from_single_file({single!r})')
    else:
        lines.append(f'pipe = {name}.from_pretrained({base!r})')
        lines.append(f'pipe.load_lora_weights({repository or "."!r}, weight_name={file!r})')
    token = cascade.base.added_tokens[0] if cascade.base.added_tokens else None
    if token and form != 'diffusers':
        word = f'{repository!r}, weight_name={file_name(token)!r}' if repository else repr(file_name(token))
        lines.append(f'pipe.load_textual_inversion({word}, token={token!r})')
    lines.append(f'image = pipe({prompt!r}).images[0]')
    told = ['With diffusers:', '\n'.join(['```python', *lines, '```'])]
    if form in _ELSEWHERE:
        where = '`models/diffusion_models` of ComfyUI' if is_transformer else _ELSEWHERE[form]
        told.append(f'In other programs, put {file} into {where}.')
    if cascade.super_resolution is not None and form == 'diffusers':
        second = cascade.super_resolution.class_name
        told.append(f'The second stage, a {second}, lies in `{SUPER_RESOLUTION}/`, where diffusers opens it as well.')
    model = f'--model={folder}' if form == 'diffusers' else f'--model={file}'
    if is_transformer:
        model = f'--model={base} --model_transformer_file={file}'
    elif form.startswith('lora'):
        model = f'--model={base} --lora={file}'
    command = f'python -m dreambooth_jax.sample {model} --prompt={_in_shell(prompt)} --output=out'
    if repository and form != 'diffusers':
        command = f'hf download {repository} {file} --local-dir .\n{command}'
    stages = '' if cascade.super_resolution is None else ', both stages'
    return [*told, f'With dreambooth-jax{stages}:', f'```bash\n{command}\n```']


def _in_shell(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
