"""Options of stores, what they must not hold, and how errors are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline import storage, stores

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def no_options() -> Iterator[None]:
    yield
    storage.configure([])


def options(*words: str) -> dict[str, dict[str, Any]]:
    storage.configure(words)
    return {scheme: dict(found) for scheme, found in stores._options.items()}


def test_options_are_numbers_truths_nothing_json_or_text() -> None:
    assert options(
        "gs.project=audits",
        "gs.requester_pays=TRUE",
        "gs.timeout=2.5",
        "gs.default_location=",
        "s3.endpoint_url=http://host:9000/a=b",
        "s3.anon=false",
        "s3.max_concurrency=3",
        "s3.region=null",
        "s3.name='quoted'",
        's3.text="123"',
        's3.client_kwargs={"region_name": "eu-central-1", "verify": false}',
        "s3.account=0123",
        "s3.size=NaN",
        "s3.empty=None",
    ) == {
        "gs": {"project": "audits", "requester_pays": True, "timeout": 2.5, "default_location": ""},
        "s3": {
            "endpoint_url": "http://host:9000/a=b",
            "anon": False,
            "max_concurrency": 3,
            "region": None,
            "name": "'quoted'",
            "text": "123",
            "client_kwargs": {"region_name": "eu-central-1", "verify": False},
            "account": "0123",
            "size": "NaN",
            "empty": None,
        },
    }


def test_schemes_of_one_store_share_their_options_and_later_ones_win() -> None:
    assert options("gcs.project=a", "s3a.anon=true", "gs.project=b") == {"gs": {"project": "b"}, "s3": {"anon": True}}


def test_configuring_replaces_what_was_set_before() -> None:
    options("gs.project=a", "s3.anon=true")
    assert options("s3.anon=false") == {"s3": {"anon": False}}
    assert options() == {}


@pytest.mark.parametrize("word", ["project=a", "gs.project", "gs.=a", ".a=b", "gs.a b=c", "", "gs:project=a", "GS.a=b"])
def test_an_option_of_another_form_is_refused_with_the_form(word: str) -> None:
    with pytest.raises(ValueError, match=r"SCHEME\.NAME=VALUE, such as gs\.project=audits"):
        storage.configure([word])


SECRETS = (
    "s3.key",
    "s3.secret",
    "s3.token",
    "s3.password",
    "s3.aws_secret_access_key",
    "s3.aws_access_key_id",
    "s3.aws_session_token",
    "gs.token",
    "gs.credentials",
    "abfs.account_key",
    "abfs.sas_token",
    "abfs.connection_string",
    "abfs.client_secret",
    "abfs.credential",
    "sftp.passwd",
    "http.Authorization",
)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_among_the_options_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(ValueError, match="is a secret, and options are stored and travel with the job") as caught:
        storage.configure(["gs.project=a", f"{name}=hunter2/7x"])
    assert name in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert stores._options == {}, "nothing of a refused list is kept"


@pytest.mark.parametrize(
    "word",
    [
        's3.client_kwargs={"aws_secret_access_key": "hunter2"}',
        's3.s3_additional_kwargs={"SSECustomerKey": "hunter2"}',
        'http.client_kwargs={"headers": {"Authorization": "Bearer hunter2"}}',
        "s3.endpoint_url=https://me:hunter2@host:9000",
        "http.base=https://host/a?sig=hunter2",
    ],
)
def test_a_secret_within_an_option_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is a secret") as caught:
        storage.configure([word])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        "gs.token=anon",
        "gs.token=google_default",
        "gs.token=cloud",
        "gs.token=/etc/keys/job.json",
        "gs.token=~/key.json",
        "gs.token=key.json",
        "s3.profile=audits",
        's3.s3_additional_kwargs={"SSEKMSKeyId": "arn:aws:kms:eu:1:key/2"}',
        "sftp.key_filename=/home/me/.ssh/id",
        "s3.key=null",
        "gs.requester_pays=audits",
    ],
)
def test_what_only_sounds_like_a_secret_passes(word: str) -> None:
    storage.configure([word])


def test_uris_with_secrets_are_known() -> None:
    with_secrets = (
        "https://me:hunter2@host/a.jpg",
        "sftp://me:hunter2@host/a.jpg",
        "https://b.s3.amazonaws.com/a.jpg?X-Amz-Algorithm=x&X-Amz-Signature=abc",
        "https://storage.googleapis.com/b/a.jpg?X-Goog-Signature=abc&x=1",
        "https://x.blob.core.windows.net/c/a.jpg?sv=2024&sig=abc",
        "https://host/a.jpg?access_token=abc",
    )
    without = (
        "gs://bucket/a:b@c.jpg",
        "s3://bucket/sig=1/a.jpg",
        "/data/me:you@home/a.jpg",
        "a.jpg",
        "https://host/a.jpg?width=3&design=blue",
        "https://host:8080/me@home.jpg",
        "sftp://me@host/a.jpg",
    )
    assert [uri for uri in with_secrets if not storage.holds_secret(uri)] == []
    assert [uri for uri in without if storage.holds_secret(uri)] == []


def test_defaults_of_stores_can_be_overridden() -> None:
    storage.configure(["gs.token=anon"])
    gcs = storage.open_store("gs://b/a")[0]
    assert gcs.dircache.use_listings_cache is False
    assert gcs.requests_timeout.sock_read == 30
    s3 = storage.open_store("s3://b/a")[0]
    assert s3.dircache.use_listings_cache is False
    assert s3.config_kwargs["max_pool_connections"] == 64
    storage.configure(["gs.token=anon", "gs.requests_timeout=7", 's3.config_kwargs={"max_pool_connections": 5}'])
    assert storage.open_store("gs://b/a")[0].requests_timeout == 7
    assert storage.open_store("gcs://b/a")[0] is storage.open_store("gs://b/a")[0]
    assert storage.open_store("s3://b/a")[0].config_kwargs["max_pool_connections"] == 5
    assert storage.open_store("s3://b/a")[0].config_kwargs["read_timeout"] == 30


def test_google_credentials_are_those_of_the_environment_whatever_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    (tmp_path / "key.json").write_text(json.dumps(key))
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(fsspec.config, "conf", {})
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "of-the-machine")
    storage.configure(["gs.project=audits", "gs.endpoint_url=https://private.example"])
    store = storage.open_store("gs://b/a")[0]
    assert store.credentials.credentials.refresh_token == "r"
    assert store.project == "audits"
    storage.configure(["gs.endpoint_url=https://private.example"])
    assert storage.open_store("gs://b/a")[0].project == "of-the-machine"
    storage.configure(["gs.endpoint_url=http://private.example"])
    assert storage.open_store("gs://b/a")[0].credentials.credentials is None, "no token goes over an open line"


def test_a_token_of_fsspecs_own_configuration_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(fsspec.config, "conf", {"gs": {"token": "anon", "project": "mine"}})
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    storage.configure(["gs.access=read_only"])
    store = storage.open_store("gs://b/a")[0]
    assert (store.credentials.credentials, store.project) == (None, "mine")


def test_a_name_that_leads_out_of_the_folder_is_not_downloaded(tmp_path: Path) -> None:
    base = f"memory:///{uuid.uuid4().hex}"
    storage.write_bytes(f"{base}/model/config.json", b"{}")
    storage.write_bytes(f"{base}/model/../../escaped.txt", b"x")
    with pytest.raises(OSError, match=r"a name with '\.\.' is not copied"):
        storage.download(f"{base}/model", str(tmp_path / "here"))
    assert [path.name for path in tmp_path.rglob("*")] == []


def test_a_folder_whose_name_is_a_pattern_is_removed_alone(gcs: str) -> None:
    for name in ("run[1]/a", "run1/a", "run*/a"):
        storage.write_bytes(f"{gcs}/{name}", b"x")
    storage.remove_folder(f"{gcs}/run[1]")
    storage.remove_folder(f"{gcs}/run*")
    assert storage.list_files(gcs, recursive=True) == [f"{gcs}/run1/a"]


def test_pictures_are_stored_as_pictures(gcs: str, s3: str) -> None:
    for base, name in ((gcs, "contentType"), (s3, "ContentType")):
        for file, kind in (
            ("a.png", "image/png"),
            ("run.json", "application/json"),
            ("a.unheard", "application/octet-stream"),
        ):
            storage.write_bytes(f"{base}/{file}", b"x")
            store, path = storage.open_store(f"{base}/{file}")
            assert store.info(path)[name] == kind


def test_a_store_that_is_not_known_is_told() -> None:
    with pytest.raises(OSError, match="there is no store for nonsense:// here"):
        storage.read_bytes("nonsense://a/b")


def test_without_s3fs_everything_else_works_and_its_absence_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    program = (
        "import sys\nfor name in ('s3fs', 'botocore', 'aiobotocore'): sys.modules[name] = None\n"
        "from pipeline import storage\n"
        f"print(storage.read_bytes({str(tmp_path / 'a')!r}))\n"
        "try: storage.read_bytes('s3://b/a')\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.startswith("b'x'\n"), done.stderr
    assert "there is no store for s3:// here: import of s3fs" in done.stdout
    assert "(install beamcam[s3]): 's3://b/a'" in done.stdout


def test_importing_storage_loads_no_store() -> None:
    program = "import sys, pipeline.storage\nprint(sorted({'gcsfs', 's3fs', 'aiohttp', 'botocore'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_whoever_imports_gcsfs_first_changes_nothing() -> None:
    program = "import gcsfs\nfrom pipeline import stores\nprint(stores._gcs_class().__mro__[1].__module__)"
    variables = {name: value for name, value in os.environ.items() if name != "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"}
    for chosen, module in (({}, "gcsfs.core"), (LAYOUTS, "gcsfs.extended_gcsfs")):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**variables, **chosen},
            check=True,
        )
        assert done.stdout.strip() == module


LAYOUTS = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "true"}


def test_errors_of_stores_are_told_without_their_secrets() -> None:
    error = RuntimeError("GET https://b.s3.amazonaws.com/a?X-Amz-Signature=abcdef failed")
    with (
        pytest.raises(OSError, match=r"^s3://b/a: RuntimeError: GET .*X-Amz-Signature=\*\*\* failed$") as caught,
        stores.told("s3://b/a"),
    ):
        raise error
    assert caught.value.__cause__ is error


def test_errors_of_local_files_stay_as_they_are() -> None:
    error = FileNotFoundError(2, "No such file or directory", "/a")
    with pytest.raises(FileNotFoundError) as caught, stores.told("/a"):
        raise error
    assert caught.value is error
