"""The file of a library's weights: found where torch keeps such files, or downloaded to there; and whether it is that
file."""

from __future__ import annotations

import errno
import hashlib
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch

from toolkit.core.errors import FailureError
from toolkit.core.progress import Progress, silent
from toolkit.models.pretrained import HubFile, PretrainedTeacher

_HASH = re.compile(r"-([a-f0-9]{8,})\.")  # in a file's name: how its SHA-256 begins
_READ_BYTES = 1 << 20
_TOLD = 200  # characters of someone else's error message
_PATIENCE_S = 60.0
# what a disk says; all other errors of a download are the network's
_OF_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.EEXIST),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP, errno.EMFILE, errno.ENFILE),
}


def weights_path(teacher: PretrainedTeacher) -> Path:
    """Where the file lies, or may be put: in `checkpoints` under TORCH_HOME, unless Hugging Face's cache has it."""
    if teacher.elsewhere is not None:
        return teacher.elsewhere
    return Path(torch.hub.get_dir()) / "checkpoints" / teacher.file_name


def weights_file(teacher: PretrainedTeacher, download: bool = True, progress: Progress = silent) -> Path:
    """The file, downloaded where it is missing unless told not to: whole, or not at all.

    Raises FailureError, saying which file to put where, when it is not there and can't be had.
    """
    path = weights_path(teacher)
    if path.is_file():
        return path
    if not download:
        raise FailureError(
            f"{path}: not there, and a dry run downloads nothing. Put {teacher.url} there, or run the same command "
            "without --dry-run"
        )
    with progress(f"downloading {teacher.url}", 1, "file"):
        if teacher.hub is not None:
            return _download_from_hub(teacher, teacher.hub, path)
        _download(teacher, path)
    return path


def _download(teacher: PretrainedTeacher, path: Path) -> None:
    begins = _HASH.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _patience():
            # it writes under another name, and gives the file its own when all of it is there
            torch.hub.download_url_to_file(teacher.url, str(path), begins and begins.group(1), progress=False)
    except (OSError, HTTPException) as error:
        raise _unreachable(teacher, path, error, f"{path}", "TORCH_HOME") from error
    except RuntimeError as error:  # the hash
        raise FailureError(
            f"{path}: what {teacher.url} sent is not this file ({error}), so it was not kept. Run the same command "
            "again, or put the file there yourself"
        ) from error


def _download_from_hub(teacher: PretrainedTeacher, hub: HubFile, path: Path) -> Path:
    """Into Hugging Face's own cache, where HF_HOME says, by its own client: it compares lengths, and goes by
    HF_HUB_OFFLINE. Where that fails, `path` is where the file may be put by hand."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # of each try that fails it would tell
    try:
        return Path(hf_hub_download(hub.repository, hub.file, revision=hub.revision))
    except Exception as error:  # requests', httpx's or xet's own, and which of them is the release's to choose
        raise _unreachable(teacher, path, error, HF_HUB_CACHE, "HF_HOME") from error
    finally:
        logging.set_verbosity(verbosity)


def _unreachable(teacher: PretrainedTeacher, path: Path, error: Exception, written: str, setting: str) -> FailureError:
    """What to tell of a download that failed: that `written` could not be, or else which file to put where."""
    if _is_of_disk(error):
        reason = getattr(error, "strerror", None) or error
        return FailureError(
            f"{written}: could not be written ({reason}). Set {setting} to a folder with space, then run the same "
            "command again"
        )
    said = error.__cause__ if isinstance(error.__cause__, Exception) else error
    reason = " ".join(str(getattr(said, "reason", "") or said or type(said).__name__).split())[:_TOLD]
    return FailureError(
        f"{path}: not there, and it could not be downloaded ({reason}). Get {teacher.url} on another machine and "
        "put it there, then run the same command again"
    )


def _is_of_disk(error: Exception) -> bool:
    """Not an SSL library's, whose numbers are others."""
    of_network = isinstance(error, (URLError, ssl.SSLError, HTTPException))
    return isinstance(error, OSError) and not of_network and error.errno in _OF_DISK


@contextmanager
def _patience() -> Iterator[None]:
    """A server that says nothing for a minute is given up: torch's function would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def checked_sha256(path: Path, url: str) -> str:
    """The file's SHA-256, 64 hexadecimal digits. Raises FailureError where the file can't be read, or its name says
    another."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(_READ_BYTES):
                digest.update(part)
    except OSError as error:
        raise FailureError(f"{path}: not readable ({error.strerror or error}). Put {url} there") from error
    found, begins = digest.hexdigest(), _HASH.search(path.name)
    if begins and not found.startswith(begins.group(1)):
        raise FailureError(
            f"{path}: damaged, or another file: by its name its SHA-256 begins with {begins.group(1)}, but it is "
            f"{found[:16]}…. Delete it, then run the same command again, or put {url} there"
        )
    return found
