"""Resolves the name of a model: the built-in model, a folder, a run's folder, a single file or a hub id."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dreambooth_jax.storybook import FOLDERS, storybook_folder
from dreambooth_jax.weights import files
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import SUPER_RESOLUTION

BUILT_IN = tuple(FOLDERS)
RUN_MODEL = 'model'  # the exported pipeline inside the folder of a training run
TOKENIZER_SUFFIXES = ('.json', '.model', '.txt', '.jinja')
_COMMIT = re.compile('[0-9a-f]{40}')
HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
ALLOWED = (
    f'{", ".join(map(repr, BUILT_IN))}, a pipeline folder (with model_index.json), a {files.SUFFIX} file of a whole '
    f"model, a run's folder, or a hub id 'owner/model'"
)


def find(
    name: str | os.PathLike,
    *,
    folders: Sequence[str],
    revision: str | None = None,
    without_weights: Sequence[str] = (),
) -> Path:
    """Finds the pipeline folder or the single file for the name of a model.

    Args:
      name: one of ALLOWED. It is never taken for a hub id if it starts with '.' or '/', if its first folder exists
        here, or if it ends like a file of weights; so a mistyped path is not looked up on the network.
      folders: the folders of a hub repository to download.
      revision: branch, tag or commit of a hub repository; None means its main branch.
      without_weights: those of the folders of which only the JSON files are downloaded.

    Raises:
      WeightsError: one sentence: what was found, what is allowed and what to do.
    """
    check_revision(name, revision)
    if str(name) in BUILT_IN:
        folder = storybook_folder(str(name))
        if not (folder / 'model_index.json').is_file():
            raise WeightsError(
                f"{folder}, the built-in model {name}, is missing from this installation; install the package's data "
                f'files or give a pipeline folder.'
            )
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        if path.name.endswith(files.PICKLED_SUFFIXES):
            files.refuse_pickled(path)
        if path.name.endswith(files.SUFFIX):
            return path
        raise WeightsError(f'model {str(name)!r} is a file; it must be {ALLOWED}.')
    # Only now may it be a hub id: everything that looks like a path has been looked up on this machine.
    if may_be_on_hub(name):
        return _download_pipeline(str(name), folders, revision, without_weights)
    raise WeightsError(f'model {str(name)!r} is not there; it must be {ALLOWED}.')


def check_revision(name: str | os.PathLike, revision: str | None) -> None:
    """Checks that a revision is given only for a model of the hub; ignoring it elsewhere would hide a mistake.

    Raises:
      WeightsError: one sentence.
    """
    if revision is not None and (_is_here(name) or not HUB_ID.fullmatch(str(name))):
        raise WeightsError(
            f'revision {revision!r} is given for the model {str(name)!r}, which is none of the hub; leave the revision '
            f'(setting and flag model_revision) out.'
        )
    if revision is not None and not revision.strip():
        raise WeightsError(f'the revision of the model {str(name)!r} is empty; give a branch, tag or commit, or none.')


def may_be_on_hub(name: str | os.PathLike) -> bool:
    """Whether a name that is no file or folder here has the form of a hub id and not of a mistyped path."""
    is_file_name = str(name).endswith((files.SUFFIX, *files.PICKLED_SUFFIXES))
    return bool(HUB_ID.fullmatch(str(name))) and not is_file_name and not Path(str(name).split('/')[0]).exists()


def _is_here(name: str | os.PathLike) -> bool:
    return str(name) in BUILT_IN or Path(name).expanduser().exists()


def commit_of(folder: Path | None) -> str | None:
    """The commit hash of a hub repository whose snapshot in the cache is `folder`; None for any other folder."""
    is_snapshot = folder is not None and folder.parent.name == 'snapshots' and _COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None


def name_of(folder: Path | None) -> str | None:
    """Returns what a model is called, without saying where it lies on this machine.

    Args:
      folder: the folder or single file that it was read from (Pipeline.folder).

    Returns:
      The name of a built-in model, the hub id of a snapshot in the cache, the name of a run or folder, or that of a
      file without its ending; None if it was not read.
    """
    if folder is None:
        return None
    folder = folder.absolute()
    for built_in in BUILT_IN:
        if folder == storybook_folder(built_in).absolute():
            return built_in
    if commit_of(folder):  # models--OWNER--MODEL/snapshots/COMMIT
        return folder.parents[1].name.removeprefix('models--').replace('--', '/', 1)
    if folder.name in (RUN_MODEL, SUPER_RESOLUTION):
        return name_of(folder.parent)
    return folder.stem if folder.suffix == files.SUFFIX else folder.name


def _in_folder(path: Path) -> Path:
    for folder in (path, path / RUN_MODEL):
        if (folder / 'model_index.json').is_file():
            return folder
    found = sorted(entry.name for entry in path.iterdir())
    holds = ', '.join(found[:6]) + (' ...' if len(found) > 6 else '') if found else 'nothing'
    raise WeightsError(
        f'{path} holds {holds} but neither model_index.json nor {RUN_MODEL}/model_index.json; the model must be '
        f'{ALLOWED} (a run writes its {RUN_MODEL}/ at the end of a stage).'
    )


def _patterns(
    folders: Sequence[str], variants: bool, without_weights: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    suffixes = {folder: ('.json', '.safetensors') for folder in folders}
    suffixes |= {folder: TOKENIZER_SUFFIXES for folder in folders if folder.startswith('tokenizer')}
    suffixes |= dict.fromkeys(without_weights, ('.json',))
    allowed = ['model_index.json'] + [f'{folder}/*{s}' for folder, ends in suffixes.items() for s in ends]
    allowed += [f'{SUPER_RESOLUTION}/{pattern}' for pattern in allowed]
    # Repositories hold every network again as fp16 and in other variants, which would double the download for nothing.
    ignored = [] if variants else [f'*.{v}{end}' for v in (*files.VARIANTS, 'non_ema') for end in ('.*', '-*')]
    return allowed, ignored


def _download_pipeline(name: str, folders: Sequence[str], revision: str | None, without_weights: Sequence[str]) -> Path:
    folder = download(name, *_patterns(folders, False, without_weights), revision=revision)
    if not all(_has_weights(folder / part) for part in folders if part not in without_weights):
        folder = download(name, *_patterns(folders, True, without_weights), revision=revision)
    if not (folder / 'model_index.json').is_file():
        raise WeightsError(f'model {name!r} on the hub has no model_index.json; it must be a diffusers pipeline.')
    return folder


def download(
    name: str,
    allowed: Sequence[str],
    ignored: Sequence[str] = (),
    *,
    revision: str | None = None,
    must_be: str = ALLOWED,
) -> Path:
    """Downloads files of a hub repository into the cache.

    Files that the cache already holds are not downloaded again, and are enough if the hub cannot be reached.

    Args:
      name: hub id 'owner/model'.
      allowed: patterns of the files to download.
      ignored: patterns of files that are left out even if `allowed` matches them.
      revision: branch, tag or commit; None means the main branch.
      must_be: what the name may be, for an error.

    Returns:
      The folder of the repository in the cache.

    Raises:
      WeightsError: one sentence, if huggingface_hub is not installed or the download fails.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise WeightsError(
            f'model {name!r} would be downloaded by huggingface_hub, which is not installed; install it, or give a '
            f'folder.'
        ) from None

    page = f'https://huggingface.co/{name}'
    try:
        options = {'allow_patterns': allowed, 'ignore_patterns': ignored, 'revision': revision}
        return Path(huggingface_hub.snapshot_download(name, **options))
    except errors.GatedRepoError:
        reason = f'is behind a licence; accept it on {page} and log in with `hf auth login`'
    except errors.RevisionNotFoundError:
        reason = f'has no revision {revision!r} on the hub; give a branch, tag or commit that {page} lists'
    except errors.RepositoryNotFoundError:
        reason = f'is neither a folder here nor a model on the hub that you may see; it must be {must_be}'
    except errors.LocalEntryNotFoundError:
        wanted = 'it' if revision is None else f'its revision {revision!r}'
        reason = (
            f'is no folder here, and the hub cannot be reached and its cache does not hold {wanted}; download it first'
        )
    except errors.HFValidationError:
        reason = f'is no valid hub id; it must be {must_be}'
    except (OSError, errors.HfHubHTTPError) as error:
        reason = f'could not be downloaded: {" ".join(str(error).split())[:200]}; try again'
    raise WeightsError(f'model {name!r} {reason}.')


def _has_weights(folder: Path) -> bool:
    """Whether a network's folder has weights; also true for a folder without config.json, which is no network."""
    return not (folder / 'config.json').is_file() or any(folder.glob('*.safetensors'))
