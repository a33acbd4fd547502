"""Uploads files to the Hugging Face hub, by its own library, which is imported when something is uploaded, not before.

The token is the one that the library finds: HF_TOKEN, or what `hf auth login` has kept. Nothing here keeps it, and no
message shows it.

All files go into one commit, so that a repository has all of them or none. The hub keeps what an upload that broke off
has sent of large files (whole files, or pieces of them where hf_xet is installed), and the next one sends the rest.

Source: huggingface.co/docs/huggingface_hub/guides/upload.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.hub import HUB_ID

CARD = 'README.md'
_TOKENS = 'https://huggingface.co/settings/tokens'
_LONGEST = 200  # letters of the library's own words that a sentence repeats


class Repository(NamedTuple):
    """A model's repository on the hub.

    Attributes:
      name: 'owner/name'.
      is_there: whether it exists; if not, the rest is unknown.
      is_private: whether only its owner sees it.
      card: the text of its model card; None: it has none.
      base_models: the hub ids that the card's head names as what the model was made from.
    """

    name: str
    is_there: bool
    is_private: bool = True
    card: str | None = None
    base_models: tuple[str, ...] = ()


def look(name: str) -> Repository:
    """Looks at a repository with the token that is here, before anything is uploaded.

    Raises:
      WeightsError: one sentence: there is no token, it may not write, or the hub cannot be reached.
    """
    if not HUB_ID.fullmatch(name):
        raise WeightsError(f"'{name}' is no place on the Hugging Face hub; it must be OWNER/NAME, such as ana/my-dog")
    import huggingface_hub
    from huggingface_hub import errors

    if huggingface_hub.get_token() is None:
        raise WeightsError(
            f'to upload to {name} on the Hugging Face hub takes a token that may write, and there is none here; log in '
            f'with `hf auth login`, or set HF_TOKEN'
        )
    api = huggingface_hub.HfApi()
    with _explained(name):
        access = (api.whoami().get('auth') or {}).get('accessToken') or {}
        if access.get('role') == 'read':
            raise WeightsError(
                f'the token of the Hugging Face hub that is here may only read, so nothing can be uploaded to {name}; '
                f'make one that may write on {_TOKENS}'
            )
        try:
            info = api.model_info(name)
        except errors.RepositoryNotFoundError:
            return Repository(name, False)
        card = None
        if any(file.rfilename == CARD for file in info.siblings or ()):
            card = Path(api.hf_hub_download(name, CARD, revision=info.sha)).read_text('utf-8', errors='replace')
        base = (info.card_data and info.card_data.base_model) or ()
        return Repository(name, True, bool(info.private), card, (base,) if isinstance(base, str) else tuple(base))


def push(name: str, files: Mapping[str, Path | str], *, private: bool, message: str) -> str:
    """Uploads files in one commit, makes the repository if it is missing, and compares what is there then.

    Args:
      name: 'owner/name'.
      files: the path in the repository -> a file, or a text. Other files that are there already stay.
      private: whether a new repository is private; one that is there stays as it is.
      message: of the commit.

    Returns:
      The address of the repository.

    Raises:
      WeightsError: one sentence, if the token may not write there, the hub cannot be reached, or it does not hold then
        what was sent.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    contents = {path: given.encode() if isinstance(given, str) else given for path, given in files.items()}
    with _explained(name):
        url = api.create_repo(name, private=private, exist_ok=True)
        additions = [huggingface_hub.CommitOperationAdd(path, given) for path, given in contents.items()]
        commit = api.create_commit(name, additions, commit_message=message)
        there = {one.path: one for one in api.get_paths_info(name, list(contents), revision=commit.oid)}
    for path, given in contents.items():
        found = there.get(path)
        large = bool(found and found.lfs)
        if found is None or (found.lfs.sha256 if large else found.blob_id) != _hash(given, large):
            raise WeightsError(f'{name} on the hub does not hold {path} as it was sent; start the same command again')
    return str(url)


def _hash(given: Path | bytes, large: bool) -> str:
    """Returns how the hub names a file's content: the sha256 of a large one, and git's hash of another."""
    if isinstance(given, Path) and large:
        with given.open('rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    data = given.read_bytes() if isinstance(given, Path) else given
    return hashlib.sha256(data).hexdigest() if large else hashlib.sha1(b'blob %d\0%b' % (len(data), data)).hexdigest()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns the library's errors into one sentence about what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except WeightsError:
        raise
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise WeightsError(_sentence(name, error, constants.ENDPOINT)) from None


def _sentence(name: str, error: BaseException, endpoint: str) -> str:
    import huggingface_hub
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # what went wrong with one of several files
        error = error.__cause__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status == 401:
        return (
            f'the Hugging Face hub does not know the token that is here, so nothing can be uploaded to {name}; log in '
            f'again with `hf auth login`, or set HF_TOKEN to one of {_TOKENS}'
        )
    if status == 403:
        return (
            f'the token that is here may not write to {name} on the Hugging Face hub; give a name of your own, or a '
            f'token that may, from {_TOKENS}'
        )
    if isinstance(error, errors.OfflineModeIsEnabled) or (status is None and isinstance(error, errors.HTTPError)):
        return (
            f'{name} cannot be uploaded, because the Hugging Face hub cannot be reached at {endpoint}; look at the '
            f'network, and at HF_HUB_OFFLINE, and start the same command again'
        )
    words = ' '.join(str(error).split()).replace(huggingface_hub.get_token() or '\0', '...')[:_LONGEST]
    return f'{name} could not be uploaded: {words}; start the same command again, which sends what is missing'
