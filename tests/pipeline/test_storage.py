"""Bytes in and out, the same on local folders and on an object store; files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import tracemalloc
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from pipeline import storage

ODD_NAMES = (
    "plain.bin",
    "two words.bin",
    "grün-漢字.bin",
    "50%.bin",
    "%20.bin",
    "a#b.bin",
    "a&b=c.bin",
    "-x.bin",
    "dots..bin",
)


@pytest.fixture(params=["local", "memory", "gcs", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder on a store; Google's and Amazon's are emulators in processes of their own."""
    if request.param != "memory":
        yield str(tmp_path / "base") if request.param == "local" else request.getfixturevalue(request.param)
        return
    uri = f"memory:///{uuid.uuid4().hex}"
    yield uri
    storage.remove_folder(uri)


def _leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if storage.TEMPORARY in path.name]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_of_any_name_is_written_listed_and_read(base: str, name: str) -> None:
    uri = storage.join(base, "sub", name)
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"\0\1content")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"\0\1content"
    assert storage.list_files(storage.join(base, "sub")) == [uri]
    assert storage.list_files(base, recursive=True) == [uri]
    storage.remove_file(uri)
    assert not storage.exists(uri)


def test_a_file_with_brackets_in_its_name_is_read_as_itself(tmp_path: Path) -> None:
    uri = str(tmp_path / "[1].bin")
    storage.write_bytes(uri, b"x")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"x"
    assert storage.list_files(str(tmp_path)) == [uri]


def test_writing_again_replaces_the_content(base: str) -> None:
    uri = storage.join(base, "a.bin")
    storage.write_bytes(uri, b"a longer first content")
    storage.write_bytes(uri, b"short")
    assert storage.read_bytes(uri) == b"short"


def test_a_local_file_is_copied_whole_and_replaces_what_was_there(base: str, tmp_path: Path) -> None:
    source, uri = tmp_path / "source", storage.join(base, "sub", "[1] copy.bin")
    storage.write_bytes(uri, b"before")
    for content in (os.urandom(3_000_000), b""):
        source.write_bytes(content)
        storage.write_file(uri, str(source))
        assert storage.read_bytes(uri) == content
        assert source.read_bytes() == content
    assert storage.list_files(storage.join(base, "sub")) == [uri]


def test_a_copy_that_fails_keeps_the_old_content(tmp_path: Path) -> None:
    uri = str(tmp_path / "kept.bin")
    storage.write_bytes(uri, b"before")
    with pytest.raises(FileNotFoundError):
        storage.write_file(uri, str(tmp_path / "nowhere"))
    assert storage.read_bytes(uri) == b"before"
    assert _leftovers(tmp_path) == []


def test_a_file_is_read_bit_by_bit(base: str) -> None:
    uri = storage.join(base, "lines.txt")
    storage.write_bytes(uri, b"one\ntwo\nthree")
    with storage.open_file(uri) as file:
        assert (file.read(3), file.readline(), list(file)) == (b"one", b"\n", [b"two\n", b"three"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        storage.open_file(storage.join(base, "nowhere"))


def test_a_file_is_read_from_any_place_in_it(base: str) -> None:
    uri, content = storage.join(base, "large.bin"), os.urandom(9_000_001)
    storage.write_bytes(uri, content)
    with storage.open_file(uri) as file:
        assert file.seek(-5, os.SEEK_END) == 8_999_996
        assert file.read() == content[-5:]
        assert file.seek(3_000_000) == 3_000_000
        assert file.read(10) == content[3_000_000:3_000_010]
        assert file.seek(-20, os.SEEK_CUR) == 2_999_990
        assert file.read(5_500_000) == content[2_999_990:8_499_990]
        file.seek(0)
        assert file.read() == content
        assert file.read(1) == b""


def test_an_empty_file_is_a_file(base: str) -> None:
    uri = storage.join(base, "empty")
    storage.write_bytes(uri, b"")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b""
    assert storage.read_bytes(uri, limit=10) == b""
    assert storage.read_bytes(uri, limit=0) == b""
    with storage.open_file(uri) as file:
        assert file.read() == b""


def test_a_generous_limit_costs_no_memory(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"abc")
    tracemalloc.start()
    try:
        assert storage.read_bytes(str(tmp_path / "small"), 1 << 30) == b"abc"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_file_that_grows_while_it_is_read_is_read_up_to_the_limit(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    told = os.fstat

    def smaller(number: int) -> os.stat_result:
        fields = list(told(number))
        fields[stat.ST_SIZE] = 3
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", smaller)
    assert storage.read_bytes(str(tmp_path / "file"), 6) == b"abcdef"
    with pytest.raises(OSError, match="larger than 5 bytes"):
        storage.read_bytes(str(tmp_path / "file"), 5)


def test_no_more_is_read_than_the_limit_allows(base: str) -> None:
    uri = storage.join(base, "ten.bin")
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_bytes(uri, limit=11) == b"0123456789"
    assert storage.read_bytes(uri, limit=10) == b"0123456789"
    for limit in (9, 1, 0):
        with pytest.raises(OSError, match="larger than") as caught:
            storage.read_bytes(uri, limit=limit)
        assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("of_file", [False, True])
def test_a_file_is_created_once_and_never_replaced(base: str, tmp_path: Path, of_file: bool) -> None:
    uri = storage.join(base, "sub", "manifest.bin")

    def create(content: bytes) -> bool:
        if not of_file:
            return storage.create_bytes(uri, content)
        source = tmp_path / "source"
        source.write_bytes(content)
        return storage.create_file(uri, str(source))

    assert create(b"first") is True
    assert create(b"second") is False
    assert create(b"first") is False
    assert storage.read_bytes(uri) == b"first"
    storage.remove_file(uri)
    large = os.urandom(6_000_000)  # more than one request on Google's store
    assert create(large) is True
    assert create(b"") is False
    assert storage.read_bytes(uri) == large
    assert storage.list_files(storage.join(base, "sub")) == [uri]


def test_of_many_creators_at_once_one_succeeds(base: str) -> None:
    for turn in range(3):
        uri = storage.join(base, f"{turn}.bin")
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda i: storage.create_bytes(uri, b"%d" % i), range(8)))  # noqa: B023
        assert made.count(True) == 1
        assert storage.read_bytes(uri) == b"%d" % made.index(True)
    assert len(storage.list_files(base)) == 3


def test_a_file_is_created_where_a_file_has_but_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    uri = str(tmp_path / "a.bin")
    assert storage.create_bytes(uri, b"first") is True
    assert storage.create_bytes(uri, b"second") is False
    with pytest.raises(FileNotFoundError):
        storage.create_file(str(tmp_path / "b.bin"), str(tmp_path / "nowhere"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"first"


def test_a_missing_file_is_a_file_not_found_error(base: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin"):
        storage.read_bytes(storage.join(base, "nowhere.bin"))


def test_reading_a_folder_is_an_os_error(base: str) -> None:
    storage.write_bytes(storage.join(base, "sub", "a"), b"x")
    with pytest.raises(OSError, match="sub"):
        storage.read_bytes(storage.join(base, "sub"))


def test_files_are_listed_sorted_as_uris_that_can_be_read(base: str) -> None:
    names = ["b.txt", "a.txt", "sub/c.txt", "sub/deep/d.txt", "B.txt", "10.txt", "9.txt"]
    for name in names:
        storage.write_bytes(storage.join(base, name), name.encode())
    flat = storage.list_files(base)
    assert flat == [storage.join(base, name) for name in ("10.txt", "9.txt", "B.txt", "a.txt", "b.txt")]
    deep = storage.list_files(base, recursive=True)
    assert deep == sorted(storage.join(base, name) for name in names)
    assert [storage.read_bytes(uri) for uri in deep] == [uri.removeprefix(base + "/").encode() for uri in deep]


def test_a_folder_that_is_not_there_has_no_files(base: str) -> None:
    assert storage.list_files(storage.join(base, "nowhere")) == []
    assert storage.list_files(storage.join(base, "nowhere"), recursive=True) == []


def test_a_listing_sees_what_was_written_since_the_last_one(base: str) -> None:
    storage.write_bytes(storage.join(base, "a"), b"")
    assert len(storage.list_files(base)) == 1
    storage.write_bytes(storage.join(base, "b"), b"")
    assert len(storage.list_files(base)) == 2


def test_folders_are_told_from_files(base: str) -> None:
    storage.write_bytes(storage.join(base, "sub", "a"), b"x")
    assert storage.is_folder(storage.join(base, "sub"))
    assert storage.exists(storage.join(base, "sub"))
    assert not storage.is_folder(storage.join(base, "sub", "a"))
    assert not storage.is_folder(storage.join(base, "other"))
    assert not storage.exists(storage.join(base, "other"))


def test_removing_a_file_twice_is_no_error_and_spares_its_neighbours(base: str) -> None:
    for name in ("a", "ab"):
        storage.write_bytes(storage.join(base, name), b"x")
    storage.remove_file(storage.join(base, "a"))
    storage.remove_file(storage.join(base, "a"))
    assert storage.list_files(base) == [storage.join(base, "ab")]


def test_removing_a_folder_twice_is_no_error_and_spares_its_neighbours(base: str) -> None:
    for name in ("run/a", "run/deep/b", "run2/c"):
        storage.write_bytes(storage.join(base, name), b"x")
    storage.remove_folder(storage.join(base, "run"))
    storage.remove_folder(storage.join(base, "run"))
    assert storage.list_files(base, recursive=True) == [storage.join(base, "run2/c")]


# Atomic writing


def test_a_write_onto_a_folder_fails_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="target"):
        storage.write_bytes(str(target), b"data")
    assert _leftovers(tmp_path) == []
    assert (target / "inner").is_dir()


def test_a_write_below_a_file_fails_and_leaves_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="file"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"data")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert _leftovers(tmp_path) == []


def test_a_write_that_fails_halfway_keeps_the_old_content_and_can_be_repeated(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    # The operating system itself stops the write after 1,000 bytes, as a full disk would.
    program = (
        "import resource, signal, sys; from pipeline import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: storage.write_bytes(sys.argv[1], b'x' * 100_000)\n"
        "except OSError as error: sys.exit(7)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", program, str(target)], env=environment, check=False)
    assert done.returncode == 7
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"new"


def test_readers_never_see_a_file_half_written(tmp_path: Path) -> None:
    uri = str(tmp_path / "shared.bin")
    size, stop = 300_000, threading.Event()
    storage.write_bytes(uri, bytes(size))

    def write(value: int) -> None:
        while not stop.is_set():
            storage.write_bytes(uri, bytes([value]) * size)

    writers = [threading.Thread(target=write, args=(value,)) for value in (1, 2, 3)]
    for writer in writers:
        writer.start()
    try:
        seen = [storage.read_bytes(uri) for _ in range(200)]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert all(len(data) == size and len(set(data)) == 1 for data in seen)
    assert len({data[0] for data in seen}) > 1, "no write happened between the reads"
    assert _leftovers(tmp_path) == []


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())
    left = [f".tmp-{host}-{dead.pid}-{'a' * 32}", f"deep/.tmp-{host}-{dead.pid}-{'b' * 32}"]
    alive, elsewhere = f".tmp-{host}-{os.getpid()}-{'c' * 32}", f".tmp-another.machine-{dead.pid}-{'d' * 32}"
    kept = sorted(tmp_path / name for name in (alive, elsewhere, ".tmp-1", "a.bin", "deep/b.tmp", "deep/c.tmp-1"))
    for path in (*kept, *(tmp_path / name for name in left)):
        path.write_bytes(b"x")
    storage.remove_temporaries(str(tmp_path))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == kept
    storage.remove_temporaries(str(tmp_path / "nowhere"))
    storage.remove_temporaries("memory://nowhere")


def test_a_killed_writer_leaves_a_name_that_the_clean_up_knows(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, resource; from pipeline import storage\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"  # SIGXFSZ, not ignored, kills at once
        "storage.write_bytes(sys.argv[1], b'x' * 100_000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    # Python itself ignores the signal, so its default is restored first.
    program = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n" + program
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.bin")], env=environment, check=False, cwd=tmp_path
    )
    assert done.returncode < 0, "the writer was to be killed by a signal"
    assert not (tmp_path / "a.bin").exists()
    assert len(_leftovers(tmp_path)) == 1
    storage.remove_temporaries(str(tmp_path))
    assert _leftovers(tmp_path) == []


# Names


def test_local_paths_and_uris_are_told_apart() -> None:
    assert all(map(storage.is_local, ("a/b", "/a/b", "file:///a/b", "local:///a", "a:b", "C:/x")))
    assert not any(map(storage.is_local, ("gs://b/x", "s3://b/x", "memory://x", "https://h/x")))
    assert all(map(storage.is_absolute, ("/a", "file:///a", "gs://b/x")))
    assert not any(map(storage.is_absolute, ("a", "a/b", "./a", "../a", "a:b")))


def test_a_local_path_becomes_absolute_and_loses_its_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a b/ü.jpg") == f"{tmp_path}/a b/ü.jpg"
    assert storage.absolute("./x.jpg") == f"{tmp_path}/x.jpg"
    assert storage.absolute("sub/") == f"{tmp_path}/sub"
    assert storage.absolute("file:///data/50%25.jpg") == "/data/50%25.jpg"
    assert storage.absolute("gs://bucket/x.jpg") == "gs://bucket/x.jpg"


def test_a_relative_path_reads_and_writes_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("sub/a.bin", b"x")
    assert (tmp_path / "sub" / "a.bin").read_bytes() == b"x"
    assert storage.list_files("sub") == [str(tmp_path / "sub" / "a.bin")]
    assert storage.read_bytes("file://" + str(tmp_path / "sub" / "a.bin")) == b"x"


def test_paths_are_joined_with_one_slash() -> None:
    assert storage.join("a", "b", "c.d") == "a/b/c.d"
    assert storage.join("gs://bucket/run/", "records/x") == "gs://bucket/run/records/x"


# Downloading


def test_a_local_file_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(b"m")
    (tmp_path / "elsewhere").mkdir()
    assert storage.download(str(tmp_path / "model.keras"), str(tmp_path / "elsewhere")) == str(tmp_path / "model.keras")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_object_is_copied_under_its_own_name(tmp_path: Path) -> None:
    base = f"memory:///{uuid.uuid4().hex}"
    storage.write_bytes(f"{base}/models/my model.keras", b"weights")
    path = storage.download(f"{base}/models/my model.keras", str(tmp_path))
    assert path == str(tmp_path / "my model.keras")
    assert Path(path).read_bytes() == b"weights"
    storage.remove_folder(base)


def test_a_folder_of_objects_is_copied_whole(tmp_path: Path) -> None:
    base = f"memory:///{uuid.uuid4().hex}"
    for name in ("config.json", "deep/weights.h5"):
        storage.write_bytes(f"{base}/model/{name}", name.encode())
    path = Path(storage.download(f"{base}/model", str(tmp_path)))
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert found == {"config.json": b"config.json", "deep/weights.h5": b"deep/weights.h5"}
    storage.remove_folder(base)


def test_bytes_written_here_are_what_fsspec_itself_reads() -> None:
    uri = f"memory:///{uuid.uuid4().hex}/a.bin"
    storage.write_bytes(uri, b"abc")
    with fsspec.open(uri, "rb") as file:
        assert file.read() == b"abc"
    storage.remove_file(uri)
