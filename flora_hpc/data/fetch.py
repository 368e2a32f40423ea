"""Download datasets: archives are received (and resumed after an interruption), checked and unpacked."""

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flora_hpc import extras, plugins
from flora_hpc.data.datasets import _stored, _torchvision
from flora_hpc.data.datasets._catalog import CATALOG, DatasetCard
from flora_hpc.data.images import Dataset
from flora_hpc.errors import UserError, did_you_mean, reason

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60  # until the server must send a byte

Progress = Callable[[int, int | None], None]  # (bytes received of this archive, its size or None)


def _quiet(done: int, total: int | None) -> None: ...


def missing(name: str, root: Path | None = None) -> str | None:
    """A sentence that names the missing files of a dataset and how to get them; None when none is missing. Reads no file."""
    return _stored.missing(_card(name), _stored.folder(root))


def fetch(
    name: str, root: Path | None = None, progress: Progress = _quiet, say: Callable[[str], None] = lambda text: None
) -> Dataset:
    """Download and unpack a dataset unless it is there, then build it and check its number of images.

    `say` gets a line for each step that takes long and has no progress. Raises UserError.
    """
    card, folder = _card(name), _stored.folder(root)
    extras.need(name, *card.packages)
    sentence = _stored.missing(card, folder)
    if sentence is not None:
        if not card.archives:
            raise UserError(sentence)
        for archive in card.archives:
            download(archive.url, folder / archive.path, archive.md5, progress)
        say(f"{name}: unpacking")
        unpack(card, folder)
        if _stored.missing(card, folder) is not None:
            raise _stored.unusable(card, folder, "it was unpacked before, but not all of it is there")
    say(f"{name}: counting its images")
    member = plugins.member("datasets", name)
    dataset: Dataset = member.build(member.Options(name=name, root=folder))
    if len(dataset.images) != card.num_images:
        raise _stored.unusable(card, folder, f"it has {len(dataset.images):,} images, it must have {card.num_images:,}")
    return dataset


def _card(name: str) -> DatasetCard:
    """The card of a dataset. Raises UserError for a name without one."""
    if name not in CATALOG and name in plugins.members("datasets"):
        raise UserError(f"{name} is not fetched: it is part of a library, or your own; fetch one of {', '.join(sorted(CATALOG))}")
    if name not in CATALOG:
        raise UserError(f"no dataset '{name}' that can be fetched{did_you_mean(name, CATALOG)} ({', '.join(sorted(CATALOG))})")
    return CATALOG[name]


def unpack(card: DatasetCard, root: Path) -> None:
    """Unpack the archives below `root`. torchvision unpacks its own, and downloads none that is whole."""
    try:
        if card.torchvision:
            _torchvision.load(card, root, next(iter(card.train)), download=True)
            return
        for archive in card.archives:  # first into another folder, so that no half-unpacked folder is taken for the dataset
            temporary = root / f"{card.name}.unpacking"
            shutil.rmtree(temporary, ignore_errors=True)
            with zipfile.ZipFile(root / archive.path) as file:
                file.extractall(temporary)
            for path in list(temporary.iterdir()):
                path.rename(root / path.name)
            temporary.rmdir()
    except Exception as error:  # of tar, zip, gzip, scipy, the file system ...
        raise _stored.unusable(card, root, f"unpacking failed ({reason(error)})") from error


def download(url: str, path: Path, md5: str | None = None, progress: Progress = _quiet) -> None:
    """Download `url` to `path`, whole and checked. An interrupted download is resumed. Raises UserError."""
    if path.is_file() and (md5 is None or _md5(path) == md5):
        return
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, part, progress)
        actual = _md5(part) if md5 is not None else None
        if actual != md5:
            raise _useless(url, part, f"has the MD5 sum {actual}, it must have {md5}")
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({reason(error)}); choose another folder with data.root, or make room"
        ) from None


def _receive(url: str, part: Path, progress: Progress) -> None:
    """Receive all bytes of `url` into `part`. Resumes after the bytes in `part` where the server supports ranges."""
    received = part.stat().st_size if part.exists() else 0
    with _open(url, received) as response:
        if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if response.headers.get("Content-Range") != f"bytes */{received}":
                raise _useless(url, part, f"does not go on after {received:,} bytes, which are of another file")
            return  # all bytes were received before
        received = received if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length")
        total = received + int(length) if length else None
        with part.open("ab" if received else "wb") as file:
            progress(received, total)
            for chunk in _chunks(url, response):
                received += file.write(chunk)
                progress(received, total)
    if total is not None and received < total:
        raise _cut(url, f"after {received:,} of {total:,} bytes")


def _open(url: str, start: int) -> Any:
    """The server's response to a request for all bytes from byte `start` on."""
    headers = {"User-Agent": "flora-hpc"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return error
        error.close()
        raise UserError(f"{url}: the server answers {error.code} {error.reason}; try later, or get the file elsewhere") from None
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", None)  # URLError wraps the error of the system
        why = reason(cause if isinstance(cause, BaseException) else error)
        raise UserError(
            f"{url} cannot be reached ({why}); fetch on a machine with a network, such as a login node, and share data.root"
        ) from None


def _chunks(url: str, response: Any) -> Iterator[bytes]:
    """The bytes of a response, at most `CHUNK_BYTES` at a time. Raises UserError when the connection breaks."""
    while True:
        try:
            chunk: bytes = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _cut(url, f"({reason(error)})") from None
        if not chunk:
            return
        yield chunk


def _useless(url: str, part: Path, why: str) -> UserError:
    """Remove `part`, whose bytes are of no use; the error that says so."""
    part.unlink()
    return UserError(f"{url}: what came {why}; it is removed, so run the same command again, or get the file elsewhere")


def _cut(url: str, where: str) -> UserError:
    return UserError(f"{url}: the connection broke {where}; run the same command again, and it goes on from there")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
