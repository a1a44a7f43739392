"""Google's and Amazon's stores behind a proxy that spoils requests: nothing is lost, and nothing waits for ever."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import patience, storage, stores
from tests.emulators import BUCKET
from tests.proxy import Faults, Proxy, running_proxy

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Place:
    """A store, and how to reach it with and without a proxy."""

    scheme: str
    base: str
    upstream: str

    @contextlib.contextmanager
    def spoilt(self, *script: str, timeout: float = 30.0, **faults: float) -> Iterator[Proxy]:
        """The store's first requests end as the script says."""
        with running_proxy(self.upstream, Faults(script=",".join(script), **faults)) as proxy:
            storage.configure([f"{self.scheme}.endpoint_url={proxy.url}"], timeout)
            try:
                yield proxy
            finally:
                storage.configure([])


@pytest.fixture(params=["gcs", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    variables = request.getfixturevalue(f"{request.param}_environment")
    upstream = variables.get("STORAGE_EMULATOR_HOST") or variables["AWS_ENDPOINT_URL"]
    return Place({"gcs": "gs"}.get(request.param, request.param), request.getfixturevalue(request.param), upstream)


@pytest.fixture(autouse=True)
def fresh_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Patience that knows of no request yet."""
    monkeypatch.setattr(patience, "_paces", {})
    monkeypatch.setattr(patience, "_reached", {"gs", "s3"})
    monkeypatch.setattr(patience, "troubles", dict.fromkeys(patience.troubles, 0))
    yield
    storage.configure([])


def outcomes(proxy: Proxy) -> list[str]:
    return [request["outcome"] for request in proxy.requests()]


# Tried again


FAULTS = ("503", "429", "reset", "lost", "half")


def test_a_read_that_fails_is_made_again(place: Place) -> None:
    uri, content = f"{place.base}/a.jpg", os.urandom(30_000)
    storage.write_bytes(uri, content)
    script = [word for fault in FAULTS for word in (fault, "ok")]
    with place.spoilt(*script) as proxy:
        for i in range(len(FAULTS)):
            assert storage.read_bytes(uri, limit=100_000) == content
            assert outcomes(proxy) == script[: 2 * i + 2]
    assert 3 <= patience.troubles["retries"] <= 5, "aiohttp may have mended a broken connection by itself"


def test_a_write_that_fails_is_made_again_and_leaves_one_whole_object(place: Place) -> None:
    script = [word for fault in FAULTS for word in (fault, fault, "ok")]
    contents = {f"{place.base}/{i}.bin": os.urandom(30_000) for i in range(len(FAULTS))}
    with place.spoilt(*script) as proxy:
        for i, (uri, content) in enumerate(contents.items()):
            storage.write_bytes(uri, content)
            assert outcomes(proxy) == script[: 3 * i + 3]
    assert storage.list_files(place.base) == sorted(contents)
    assert {uri: storage.read_bytes(uri) for uri in contents} == contents


def test_a_large_upload_is_made_again_in_its_parts(place: Place, tmp_path: Path) -> None:
    source, content = tmp_path / "source", os.urandom(6_000_000)
    source.write_bytes(content)
    with place.spoilt("503", "ok", "503"):
        storage.write_file(f"{place.base}/large.bin", str(source))
    assert storage.read_bytes(f"{place.base}/large.bin") == content


def test_a_file_is_read_to_its_end_though_ranges_of_it_fail(place: Place) -> None:
    uri, content = f"{place.base}/large.bin", os.urandom(20_000_000)
    storage.write_bytes(uri, content)
    with (
        place.spoilt("503", "ok", "ok", "half", "429", "ok", "reset", fail=0.1, seed=3),
        storage.open_file(uri) as file,
    ):
        assert file.read(100) == content[:100]
        assert file.read() == content[100:]


def test_a_listing_with_faults_misses_nothing(place: Place) -> None:
    uris = sorted(f"{place.base}/{i}/{i}.bin" for i in range(30))
    for uri in uris:
        storage.write_bytes(uri, b"x")
    with place.spoilt("503", "half", "lost"):
        assert storage.list_files(place.base, recursive=True) == uris
        assert storage.is_folder(place.base)
    with place.spoilt(fail=0.2):
        storage.remove_folder(place.base)
    assert storage.list_files(place.base, recursive=True) == []


def test_a_folder_is_downloaded_though_requests_fail(place: Place, tmp_path: Path) -> None:
    contents = {f"model/{i}/w[{i}].bin": os.urandom(1000 * i) for i in range(8)}
    for name, content in contents.items():
        storage.write_bytes(f"{place.base}/{name}", content)
    with place.spoilt(fail=0.2, seed=1):
        path = Path(storage.download(f"{place.base}/model", str(tmp_path)))
        single = Path(storage.download(f"{place.base}/model/3/w[3].bin", str(tmp_path)))
    assert path == tmp_path / "model"
    copied = {f"model/{copy.relative_to(path)}": copy.read_bytes() for copy in path.rglob("*") if copy.is_file()}
    assert copied == contents
    assert single.read_bytes() == contents["model/3/w[3].bin"]


def test_what_is_not_permitted_is_asked_for_once(place: Place) -> None:
    uri = f"{place.base}/a.bin"
    with place.spoilt("403", "401", "403", "401") as proxy:
        for act in (lambda: storage.read_bytes(uri), lambda: storage.write_bytes(uri, b"x")) * 2:
            with pytest.raises(PermissionError, match="does not permit") as caught:
                act()
            assert caught.value.filename == uri
        assert outcomes(proxy) == ["403", "401", "403", "401"]
    assert patience.troubles["retries"] == 0


def test_what_is_not_there_is_asked_for_once(place: Place) -> None:
    uri = f"{place.base}/nowhere.bin"
    with place.spoilt() as proxy:
        with pytest.raises(FileNotFoundError, match=r"nowhere\.bin"):
            storage.read_bytes(uri)
        assert outcomes(proxy) == ["ok"]
    assert patience.troubles["retries"] == 0


def test_a_store_that_stays_away_is_given_up_at_the_deadline(place: Place) -> None:
    begin = time.monotonic()
    with (
        place.spoilt(fail=1.0, timeout=1.5),
        pytest.raises(patience.UnavailableError, match=r"given up after \d+ attempts"),
    ):
        storage.read_bytes(f"{place.base}/a.bin")
    assert time.monotonic() - begin < 20
    assert patience.troubles["retries"] >= 1


def test_a_store_that_was_never_reached_is_given_up_early(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_reached", set())
    monkeypatch.setattr(patience, "FIRST_CONTACT", 0.5)
    storage.configure([f"{place.scheme}.endpoint_url=http://127.0.0.1:9"], timeout=300)
    begin = time.monotonic()
    with pytest.raises(patience.UnavailableError, match=f"{place.base}/a.bin"):
        storage.read_bytes(f"{place.base}/a.bin")
    assert time.monotonic() - begin < 20


# Few requests


def test_an_object_costs_one_request_to_write_and_one_to_read(place: Place) -> None:
    uri, content = f"{place.base}/a.png", os.urandom(3_000_000)
    with place.spoilt() as proxy:
        storage.write_bytes(uri, content)
        assert len(proxy.requests()) == 1
        assert storage.read_bytes(uri) == content
        assert len(proxy.requests()) == 2
        assert storage.read_bytes(uri, limit=3_000_000) == content
        assert len(proxy.requests()) == 3


def test_no_more_than_the_limit_comes_over_the_line(place: Place) -> None:
    uri = f"{place.base}/large.bin"
    storage.write_bytes(uri, os.urandom(2_000_000))
    with place.spoilt() as proxy:
        with pytest.raises(OSError, match=r"larger than 1,000 bytes: .*large\.bin"):
            storage.read_bytes(uri, limit=1000)
        assert len(proxy.requests()) == 1
    assert len(stores.call(*_store(uri, "cat_file"), start=0, end=1001)) == 1001


def _store(uri: str, verb: str) -> tuple[object, str, str]:
    store, path = storage.open_store(uri)
    return store, verb, path


# Slow ones


def test_a_read_that_never_ends_is_overtaken_by_a_second_one(place: Place) -> None:
    uri, content = f"{place.base}/a.jpg", os.urandom(10_000)
    storage.write_bytes(uri, content)
    begin = time.monotonic()
    with place.spoilt(*["ok"] * 20, "stall", "ok", "stall-done") as proxy:
        for _ in range(22):
            assert storage.read_bytes(uri, limit=100_000) == content
        assert outcomes(proxy) == ["ok"] * 20 + ["stall", "ok", "stall-done", "ok"]
    assert patience.troubles == {"retries": 0, "hedges": 2, "timeouts": 0}
    assert time.monotonic() - begin < 30


def test_a_write_that_never_ends_is_overtaken_by_a_second_one(place: Place) -> None:
    with place.spoilt(*["ok"] * 20, "stall", "ok", "stall-done"):
        for i in range(22):
            storage.write_bytes(f"{place.base}/{i:02d}.bin", b"%d" % i)
    assert patience.troubles == {"retries": 0, "hedges": 2, "timeouts": 0}
    uris = storage.list_files(place.base)
    assert [storage.read_bytes(uri) for uri in uris] == [b"%d" % i for i in range(22)]


def test_requests_that_never_end_are_given_up_and_made_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "ATTEMPT", 0.4)
    monkeypatch.setattr(stores, "READ_BYTES", 0)
    uri = f"{place.base}/a.bin"
    with place.spoilt("stall", "stall-done", "ok", "stall"):
        storage.write_bytes(uri, b"content")
        assert storage.read_bytes(uri) == b"content"
    assert patience.troubles["timeouts"] >= 3


def test_an_object_is_ours_though_the_answer_to_its_creation_was_lost(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "ATTEMPT", 0.5)
    monkeypatch.setattr(stores, "READ_BYTES", 0)
    source = tmp_path / "source"
    source.write_bytes(b"of the file")
    with place.spoilt("lost", "ok", "ok", "lost", "ok", "ok", "stall-done", "ok", "ok") as proxy:
        assert storage.create_bytes(f"{place.base}/a.bin", b"ours") is True
        assert outcomes(proxy)[0] == "lost"
        assert storage.create_file(f"{place.base}/b.bin", str(source)) is True
        assert storage.create_bytes(f"{place.base}/c.bin", b"ours") is True
    assert storage.read_bytes(f"{place.base}/a.bin") == b"ours"
    assert storage.read_bytes(f"{place.base}/b.bin") == b"of the file"


def test_an_object_of_somebody_else_is_not_ours_though_its_content_is_and_the_creation_was_tried_again(
    place: Place,
) -> None:
    uri = f"{place.base}/a.bin"
    storage.write_bytes(uri, b"the same")
    assert storage.create_bytes(uri, b"the same") is False
    with place.spoilt("503", "reset", "ok", "ok", "lost"):
        assert storage.create_bytes(uri, b"the same") is False
        assert storage.create_bytes(uri, b"ours") is False
    assert storage.read_bytes(uri) == b"the same"


def test_nothing_is_lost_or_mixed_up_by_many_threads_on_a_store_with_faults(place: Place) -> None:
    contents = {f"{place.base}/{i % 7}/{i:03d}.bin": os.urandom(2000 + i) for i in range(150)}
    with place.spoilt(fail=0.05, stall=0.02, latency=0.005, seed=5) as proxy, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda uri: storage.write_bytes(uri, contents[uri]), contents))
        read = dict(zip(contents, pool.map(lambda uri: storage.read_bytes(uri, 10_000), contents), strict=True))
        spoilt = [outcome for outcome in outcomes(proxy) if outcome != "ok"]
    assert read == contents
    assert storage.list_files(place.base, recursive=True) == sorted(contents)
    assert len(spoilt) > 5, "the proxy was to spoil some requests"


# Answers in words


def test_a_bucket_that_is_not_there_is_told(place: Place) -> None:
    uri = f"{place.scheme}://no-such-bucket/a/b.bin"
    for act in (
        lambda: storage.read_bytes(uri),
        lambda: storage.write_bytes(uri, b"x"),
        lambda: storage.create_bytes(uri, b"x"),
        lambda: storage.open_file(uri),
    ):
        with pytest.raises(FileNotFoundError, match=r"no such file, folder or bucket.*no-such-bucket/a/b\.bin"):
            act()
    assert not storage.exists(uri)
    assert storage.list_files(f"{place.scheme}://no-such-bucket/a") == []
    assert storage.list_files(f"{place.scheme}://no-such-bucket/a", recursive=True) == []


def test_errors_are_one_line_that_names_the_object_and_not_the_server(place: Place) -> None:
    with place.spoilt("503", fail=1.0, timeout=0.2), pytest.raises(OSError, match="given up") as caught:
        storage.write_bytes(f"{place.base}/a b.bin", b"x")
    assert "\n" not in str(caught.value)
    assert f"{place.base}/a b.bin" in str(caught.value)


def test_credentials_that_are_missing_are_told_at_once(place: Place) -> None:
    hidden = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": "/nonexistent", "NO_GCE_CHECK": "true", "PYTHONPATH": str(ROOT)}
    if place.scheme == "gs":  # a server that refuses whoever does not say who he is
        environment.pop("STORAGE_EMULATOR_HOST")
    with running_proxy(place.upstream, Faults(script="401,401,401")) as proxy:
        endpoint = proxy.url.replace("http://127.0.0.1", "http://localhost")
        program = (
            "from pipeline import storage\n"
            f"storage.configure(['{place.scheme}.endpoint_url={endpoint}'])\n"
            f"try: storage.read_bytes('{place.scheme}://{BUCKET}/a.bin')\n"
            "except PermissionError as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert "does not permit" in done.stdout, done.stderr
    assert done.stderr == ""
    if place.scheme == "s3":
        assert "no AWS credentials were found here" in done.stdout


def test_requester_pays_reaches_the_store(place: Place) -> None:
    value = "audits" if place.scheme == "gs" else "true"
    uri = f"{place.base}/a.bin"
    storage.write_bytes(uri, b"x")
    with running_proxy(place.upstream) as proxy:
        storage.configure([f"{place.scheme}.endpoint_url={proxy.url}", f"{place.scheme}.requester_pays={value}"])
        assert storage.read_bytes(uri) == b"x"
        if place.scheme == "gs":
            assert all("userProject=audits" in request["path"] for request in proxy.requests())
        else:
            assert storage.open_store(uri)[0].req_kw == {"RequestPayer": "requester"}
