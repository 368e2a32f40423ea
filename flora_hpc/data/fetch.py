"""Bring datasets to this machine: archives are downloaded in pieces that survive an interruption, checked, and unpacked."""

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
TIMEOUT_SECONDS = 60  # without a single byte

Progress = Callable[[int, int | None], None]  # bytes of the present archive that are here, and of all of it where that is known


def _quiet(done: int, total: int | None) -> None: ...


def missing(name: str, root: Path | None = None) -> str | None:
    """What of a set is not there and how to get it, in one sentence; None when it is. Quick: it does not read the set."""
    return _stored.missing(_facts(name), _stored.folder(root))


def fetch(
    name: str, root: Path | None = None, progress: Progress = _quiet, say: Callable[[str], None] = lambda text: None
) -> Dataset:
    """The set, downloaded and unpacked unless it is there already, with as many images as it must have.

    `say` is told what takes long and has no progress.
    """
    facts, folder = _facts(name), _stored.folder(root)
    extras.need(name, *facts.packages)
    sentence = _stored.missing(facts, folder)
    if sentence is not None:
        if not facts.archives:
            raise UserError(sentence)
        for archive in facts.archives:
            download(archive.url, folder / archive.path, archive.md5, progress)
        say(f"{name}: unpacking")
        unpack(facts, folder)
        if _stored.missing(facts, folder) is not None:
            raise _stored.unusable(facts, folder, "it was unpacked before, but not all of it is there")
    say(f"{name}: counting its images")
    member = plugins.member("datasets", name)
    dataset: Dataset = member.build(member.Options(name=name, root=folder))
    if len(dataset.images) != facts.num_images:
        raise _stored.unusable(facts, folder, f"it has {len(dataset.images):,} images, it must have {facts.num_images:,}")
    return dataset


def _facts(name: str) -> DatasetCard:
    if name not in CATALOG and name in plugins.members("datasets"):
        raise UserError(f"{name} is not fetched: it is part of a library, or your own; fetch one of {', '.join(sorted(CATALOG))}")
    if name not in CATALOG:
        raise UserError(f"no dataset '{name}' that can be fetched{did_you_mean(name, CATALOG)} ({', '.join(sorted(CATALOG))})")
    return CATALOG[name]


def unpack(facts: DatasetCard, root: Path) -> None:
    """Archives that lie where torchvision looks for them become what it reads; it downloads none that is whole."""
    try:
        if facts.torchvision:
            _torchvision.load(facts, root, next(iter(facts.train)), download=True)
            return
        for archive in facts.archives:  # beside their place first, so that what is half unpacked is never taken for the set
            beside = root / f"{facts.name}.unpacking"
            shutil.rmtree(beside, ignore_errors=True)
            with zipfile.ZipFile(root / archive.path) as file:
                file.extractall(beside)
            for found in list(beside.iterdir()):
                found.rename(root / found.name)
            beside.rmdir()
    except Exception as error:  # of tar, zip, gzip, scipy, the file system ...
        raise _stored.unusable(facts, root, f"unpacking failed ({reason(error)})") from error


def download(url: str, path: Path, md5: str | None = None, progress: Progress = _quiet) -> None:
    """The file of this address at `path`, whole and checked, or UserError. What a cut download has left is continued."""
    if path.is_file() and (md5 is None or _md5(path) == md5):
        return
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, part, progress)
        found = _md5(part) if md5 is not None else None
        if found != md5:
            raise _useless(url, part, f"has the MD5 sum {found}, it must have {md5}")
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({reason(error)}); choose another folder with data.root, or make room"
        ) from None


def _receive(url: str, part: Path, progress: Progress) -> None:
    """All bytes of the address in `part`, after those that are there already if the server can go on there."""
    here = part.stat().st_size if part.exists() else 0
    with _open(url, here) as response:
        if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if response.headers.get("Content-Range") != f"bytes */{here}":
                raise _useless(url, part, f"does not go on after {here:,} bytes, which are of another file")
            return  # all of it is here
        here = here if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length")
        total = here + int(length) if length else None
        with part.open("ab" if here else "wb") as file:
            progress(here, total)
            for chunk in _chunks(url, response):
                here += file.write(chunk)
                progress(here, total)
    if total is not None and here < total:
        raise _cut(url, f"after {here:,} of {total:,} bytes")


def _open(url: str, here: int) -> Any:
    """The server's answer to a request for everything after the first `here` bytes."""
    headers = {"User-Agent": "flora-hpc"} | ({"Range": f"bytes={here}-"} if here else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return error
        error.close()
        raise UserError(f"{url}: the server answers {error.code} {error.reason}; try later, or get the file elsewhere") from None
    except (OSError, http.client.HTTPException) as error:
        within = getattr(error, "reason", None)  # of URLError, which wraps what the system said
        why = reason(within if isinstance(within, BaseException) else error)
        raise UserError(
            f"{url} cannot be reached ({why}); fetch on a machine with a network, such as a login node, and share data.root"
        ) from None


def _chunks(url: str, response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk: bytes = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _cut(url, f"({reason(error)})") from None
        if not chunk:
            return
        yield chunk


def _useless(url: str, part: Path, why: str) -> UserError:
    part.unlink()
    return UserError(f"{url}: what came {why}; it is removed, so run the same command again, or get the file elsewhere")


def _cut(url: str, where: str) -> UserError:
    return UserError(f"{url}: the connection broke {where}; run the same command again, and it goes on from there")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
