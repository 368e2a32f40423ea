"""Downloads from a local server, which may lack ranges and may break the connection."""

import gzip
import hashlib
import http.client
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flora_hpc.data import datasets, fetch
from flora_hpc.data.datasets import _torchvision
from flora_hpc.data.datasets._catalog import CATALOG, Archive
from flora_hpc.errors import UserError
from tests.data import miniatures

CONTENT = bytes(range(256)) * 20  # 5,120 bytes
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves `files`, with or without ranges; closes each connection after `cut` bytes if set."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"file": CONTENT}
        self.ranges, self.cut, self.length = True, None, True
        self.asked: list[str | None] = []  # the range of every request

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805 -- the library's name; self is the server here
                self.answer(handler)

            def log_message(handler, *some: object) -> None:  # noqa: N805
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        span = request.headers.get("Range")
        self.asked.append(span)
        content = self.files.get(request.path.lstrip("/"))
        if content is None:
            request.send_error(404)
            return
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.ranges else 0
        if span and start >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.end_headers()
            return
        request.send_response(206 if span and self.ranges else 200)
        if self.length:
            request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start:] if self.cut is None else content[start : start + self.cut])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "file.bin"


def part(path: Path) -> Path:
    return path.with_name("file.bin.part")


def test_a_file_arrives_whole_and_progress_is_told(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 2048)
    steps: list[tuple[int, int | None]] = []
    fetch.download(f"{server.url}/file", path, MD5, lambda done, total: steps.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert steps == [(0, 5120), (2048, 5120), (4096, 5120), (5120, 5120)]
    assert not part(path).exists()


def test_what_is_there_and_right_is_not_downloaded_again(server: Server, path: Path) -> None:
    fetch.download(f"{server.url}/file", path, MD5)
    fetch.download(f"{server.url}/file", path, MD5)
    assert server.asked == [None]


def test_what_is_there_but_wrong_is_downloaded_again(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"wrong")
    fetch.download(f"{server.url}/file", path, MD5)
    assert path.read_bytes() == CONTENT


def test_a_broken_connection_is_told_and_the_next_call_goes_on_there(server: Server, path: Path) -> None:
    server.cut = 3000
    with pytest.raises(UserError) as error:
        fetch.download(f"{server.url}/file", path, MD5)
    assert "the connection broke after 3,000 of 5,120 bytes; run the same command again, and it goes on" in str(error.value)
    assert not path.exists()
    steps: list[tuple[int, int | None]] = []
    fetch.download(f"{server.url}/file", path, MD5, lambda done, total: steps.append((done, total)))
    assert server.asked == [None, "bytes=3000-"]
    assert (steps[0], steps[-1]) == ((3000, 5120), (5120, 5120))
    assert path.read_bytes() == CONTENT
    assert not part(path).exists()


def test_a_server_without_ranges_starts_over(server: Server, path: Path) -> None:
    server.ranges = False
    path.parent.mkdir()
    part(path).write_bytes(b"x" * 100)
    fetch.download(f"{server.url}/file", path, MD5)
    assert server.asked == ["bytes=100-"]
    assert path.read_bytes() == CONTENT


def test_a_server_that_does_not_tell_the_length(server: Server, path: Path) -> None:
    server.length = False
    steps: list[tuple[int, int | None]] = []
    fetch.download(f"{server.url}/file", path, MD5, lambda done, total: steps.append((done, total)))
    assert steps == [(0, None), (5120, None)]
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_the_whole_file_is_taken_as_it_is(server: Server, path: Path) -> None:
    path.parent.mkdir()
    part(path).write_bytes(CONTENT)
    fetch.download(f"{server.url}/file", path, MD5)
    assert path.read_bytes() == CONTENT
    assert not part(path).exists()


@pytest.mark.parametrize("md5", [MD5, None])
def test_a_part_that_is_longer_than_the_file_is_removed(server: Server, path: Path, md5: str | None) -> None:
    path.parent.mkdir()
    part(path).write_bytes(CONTENT + b"more")
    with pytest.raises(UserError, match="does not go on after 5,124 bytes, which are of another file; it is removed"):
        fetch.download(f"{server.url}/file", path, md5)
    assert list(path.parent.iterdir()) == []


def test_a_wrong_checksum_removes_what_came(server: Server, path: Path) -> None:
    with pytest.raises(UserError) as error:
        fetch.download(f"{server.url}/file", path, "0" * 32)
    assert f"has the MD5 sum {MD5}, it must have {'0' * 32}; it is removed" in str(error.value)
    assert list(path.parent.iterdir()) == []


def test_a_file_without_a_published_checksum_is_taken(server: Server, path: Path) -> None:
    fetch.download(f"{server.url}/file", path, None)
    assert path.read_bytes() == CONTENT


def test_the_servers_refusal_is_told(server: Server, path: Path) -> None:
    with pytest.raises(UserError, match="the server answers 404 Not Found; try later, or get the file elsewhere"):
        fetch.download(f"{server.url}/nothing", path, MD5)


def test_no_network_is_told_in_one_sentence(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]  # and when it is closed, nobody listens there
    with pytest.raises(UserError, match=r"cannot be reached \(Connection refused\); fetch on a machine with a network"):
        fetch.download(f"http://127.0.0.1:{port}/file", path, MD5)


def test_a_connection_that_breaks_is_told_in_the_systems_words(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(http.client.HTTPResponse, "read", broken)
    with pytest.raises(UserError, match=r"the connection broke \(Connection reset by peer\); run the same command again"):
        fetch.download(f"{server.url}/file", path, MD5)


def test_a_folder_that_cannot_be_made_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.*\); choose another folder with data.root"):
        fetch.download(f"{server.url}/file", tmp_path / "file" / "below", MD5)


# whole sets: archives of miniatures, served under other addresses and with their own checksums


def packed(folder: Path, kind: str) -> bytes:
    """An archive of all files in a folder."""
    path = folder.parent / f"archive.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for each in sorted(folder.rglob("*")):
                file.write(each, each.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz") as file:
            for each in sorted(folder.iterdir()):
                file.add(each, each.name)
    return path.read_bytes()


@pytest.fixture
def offer(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the server offer a miniature: archive name -> content. The catalog gets the numbers of the miniature."""

    def make(name: str, contents: dict[str, bytes], **numbers: int) -> None:
        facts = CATALOG[name]
        server.files = contents
        archives = tuple(
            Archive(
                f"{server.url}/{Path(archive.path).name}", archive.path, hashlib.md5(contents[Path(archive.path).name]).hexdigest()
            )
            for archive in facts.archives
        )
        train, test = miniatures.expected(name)
        sizes = {"train": {next(iter(facts.train)): len(train)}, "test": {part: len(test) for part in facts.test}}
        if len(facts.train) == 2:
            sizes["train"] = dict.fromkeys(facts.train, len(train) // 2)
        facts = replace(facts, archives=archives, **sizes)
        monkeypatch.setitem(CATALOG, name, facts)
        if name in datasets.TABLE:
            monkeypatch.setitem(datasets.TABLE, name, _torchvision.member(facts))

    return make


def laid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    miniatures.write(name, tmp_path / "laid", monkeypatch)
    return tmp_path / "laid"


def offer_archive(
    name: str, kind: str, below: str, tmp_path: Path, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> str:
    """Offer a dataset of one archive with the folder `below` the root; torchvision checks the same MD5 sum."""
    content = packed(laid(name, tmp_path, monkeypatch) / below, kind)
    offer(name, {Path(archive.path).name: content for archive in CATALOG[name].archives})
    return hashlib.md5(content).hexdigest()


def test_cifar10_is_fetched_and_unpacked(
    server: Server, offer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    md5 = offer_archive("cifar10", "tar.gz", "", tmp_path, offer, monkeypatch)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5)
    root = tmp_path / "root"
    sentence = fetch.missing("cifar10", root)
    assert sentence is not None
    assert sentence.startswith("cifar10: there is no ")
    steps: list[tuple[int, int | None]] = []
    dataset = fetch.fetch("cifar10", root, lambda done, total: steps.append((done, total)))
    assert (len(dataset.train), len(dataset.test)) == (3, 4)
    assert steps[-1][0] == steps[-1][1]
    assert fetch.missing("cifar10", root) is None
    fetch.fetch("cifar10", root)
    assert server.asked == [None]  # nothing was downloaded twice, and torchvision asked for nothing


def test_fashion_mnist_is_fetched_and_unpacked(
    server: Server, offer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import FashionMNIST

    raw = laid("fmnist", tmp_path, monkeypatch) / "FashionMNIST" / "raw"
    contents = {f"{file.name}.gz": gzip.compress(file.read_bytes()) for file in raw.iterdir()}
    offer("fmnist", contents)
    monkeypatch.setattr(FashionMNIST, "resources", [(name, hashlib.md5(data).hexdigest()) for name, data in contents.items()])
    dataset = fetch.fetch("fmnist", tmp_path / "root")
    assert (len(dataset.train), len(dataset.test)) == (3, 4)
    assert server.asked == [None] * 4


def test_tiny_imagenet_is_fetched_and_unpacked(
    server: Server, offer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_archive("tiny_imagenet", "zip", "", tmp_path, offer, monkeypatch)
    root = tmp_path / "root"
    (root / "tiny_imagenet.unpacking" / "left").mkdir(parents=True)  # by a command that was killed
    dataset = fetch.fetch("tiny_imagenet", root)
    assert (len(dataset.train), len(dataset.test)) == (3, 4)
    assert sorted(path.name for path in root.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]


def test_dtd_is_unpacked_below_its_own_folder(
    server: Server, offer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import DTD

    md5 = offer_archive("dtd", "tar.gz", "dtd", tmp_path, offer, monkeypatch)
    monkeypatch.setattr(DTD, "_MD5", md5)
    dataset = fetch.fetch("dtd", tmp_path / "root")
    assert (len(dataset.train), len(dataset.test)) == (6, 4)
    assert server.asked == [None]


def test_pets_come_in_two_archives(
    server: Server, offer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import OxfordIIITPet

    base, contents = laid("pets", tmp_path, monkeypatch) / "oxford-iiit-pet", {}
    for folder in ("images", "annotations"):
        only = tmp_path / f"only_{folder}"
        only.mkdir()
        (base / folder).rename(only / folder)
        contents[f"{folder}.tar.gz"] = packed(only, "tar.gz")
    offer("pets", contents)
    sums = tuple((f"https://nowhere.invalid/{name}", hashlib.md5(data).hexdigest()) for name, data in contents.items())
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", sums)
    assert len(fetch.fetch("pets", tmp_path / "root").images) == 7
    assert server.asked == [None, None]


def test_images_too_few_are_told(offer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = laid("eurosat", tmp_path, monkeypatch)
    facts = CATALOG["eurosat"]
    with pytest.raises(UserError) as error:
        fetch.fetch("eurosat", root)
    assert f"the data in {root / 'eurosat'} cannot be used: it has 10 images, it must have 27,000" in str(error.value)
    monkeypatch.setitem(CATALOG, "eurosat", replace(facts, train={"all": 10}))
    assert len(fetch.fetch("eurosat", root).images) == 10


def test_an_archive_that_cannot_be_unpacked_is_told(offer: Callable[..., None], tmp_path: Path) -> None:
    offer("tiny_imagenet", {"tiny-imagenet-200.zip": b"no archive"})
    with pytest.raises(UserError, match=r"cannot be used: unpacking failed \(File is not a zip file\)"):
        fetch.fetch("tiny_imagenet", tmp_path / "root")


def test_what_was_unpacked_in_part_before_is_told(
    offer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision takes an existing folder for the whole dataset and unpacks nothing."""
    from torchvision.datasets import Food101

    md5 = offer_archive("food101", "tar.gz", "", tmp_path, offer, monkeypatch)
    monkeypatch.setattr(Food101, "_MD5", md5)
    root = tmp_path / "root"
    (root / "food-101" / "images").mkdir(parents=True)
    (root / "food-101" / "meta").mkdir()
    (root / "food-101" / "meta" / "train.json").write_text('{"apple_pie": []}')
    with pytest.raises(UserError, match="it was unpacked before, but not all of it is there; remove that folder"):
        fetch.fetch("food101", root)


@pytest.mark.parametrize("name", ["cars", "fer2013"])
def test_what_nobody_can_download_is_told_with_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{name}: there is no .*/(stanford_cars|fer2013)"):
        fetch.fetch(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset 'cifar11' that can be fetched; did you mean 'cifar10'\? \(aircraft, "):
        fetch.fetch("cifar11", tmp_path)
    with pytest.raises(UserError, match="did you mean 'pets'"):
        fetch.missing("pet", tmp_path)
