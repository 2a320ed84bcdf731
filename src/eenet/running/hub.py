"""The Hugging Face Hub: fetching the files of a bundle, and nothing else; putting a folder there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eenet.errors import EenetError, InputError, RunError
from eenet.libraries import first_line, library

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REASON = "it speaks to the Hugging Face Hub"


def fetched(
    repository: str, files: Sequence[str], *, revision: str | None, token: str | None, endpoint: str | None
) -> Path:
    """Return the folder on this machine with some files of a repository, downloaded where they are not there yet.

    Args:
        repository: Its name, ``owner/name``.
        files: Which ones, as patterns; no others are fetched.
        revision: A branch, tag or commit; default: the main branch.
        token: Of the user; default: what ``hf auth login`` stored.
        endpoint: Address of the Hub; default: the public one, or that of ``HF_ENDPOINT``.

    Raises:
        InputError: There is no such repository, or it is no name of one.
        MissingExtraError: huggingface_hub is not installed.
        RunError: The Hub does not answer, or refuses.
    """
    hub = _hub(repository)
    with _speaking(hub, repository):
        found = hub.snapshot_download(
            repository, revision=revision, token=token, endpoint=endpoint, allow_patterns=list(files)
        )
    return Path(found)


def pushed(
    folder: Path,
    repository: str,
    *,
    replaces: Sequence[str],
    message: str,
    private: bool | None,
    token: str | None,
    endpoint: str | None,
) -> str:
    """Put the files of a folder into a repository, which is made where there is none; return the commit's address.

    Args:
        folder: The files.
        repository: Its name, ``owner/name``.
        replaces: Patterns of older files that are deleted in the same commit.
        message: Of the commit.
        private: Whether a repository that is made is private; default: as the account is set.
        token: Of the user; default: what ``hf auth login`` stored.
        endpoint: Address of the Hub; default: the public one, or that of ``HF_ENDPOINT``.

    Raises:
        InputError: It is no name of a repository, or the account has none of that name.
        MissingExtraError: huggingface_hub is not installed.
        RunError: The Hub does not answer, or refuses.
    """
    hub = _hub(repository)
    api = hub.HfApi(endpoint=endpoint, token=token)
    with _speaking(hub, repository):
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, delete_patterns=list(replaces)
        )
    return str(commit.commit_url)


def _hub(repository: str) -> Any:  # noqa: ANN401
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(
            f"repository {repository!r} is neither a folder on this machine nor a name of the Hub: such names are "
            "owner/name, of letters, digits, '-', '_' and '.'. Check it."
        )
    return library("huggingface_hub", _REASON)


@contextmanager
def _speaking(hub: Any, repository: str) -> Iterator[None]:  # noqa: ANN401
    """Turn what the client raises into one sentence."""
    errors = hub.errors
    try:
        yield
    except EenetError:
        raise
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"repository {repository!r} is not found: {first_line(error)}. Check its name and revision, and that you "
            "are logged in where it is private."
        ) from error
    except Exception as error:  # of the client, and of the libraries that it uses
        raise RunError(
            f"repository {repository!r} cannot be reached: {first_line(error)}. Check the connection and your rights, "
            "and try again."
        ) from error
