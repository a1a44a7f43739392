"""What came from elsewhere is shown without secrets, and without anything that a terminal obeys."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import BeamcamError, ConfigError, ImageError, RunError, as_config_errors
from pipeline.wording import SafeFormatter, printable, show_traceback, shown, without_secrets

SECRET = "sEcReT/0123+abc=="
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nsEcReT\n-----END RSA PRIVATE KEY-----\n"

QUOTED = SECRET.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D")

TEXTS = {  # what it looks like, and what stays of it
    f"GET https://user:{SECRET.replace('/', '')}@host/a.jpg failed": "GET https://***@host/a.jpg failed",
    f"https://b.s3.amazonaws.com/a.jpg?X-Amz-Signature={QUOTED}&X-Amz-Expires=60": (
        "https://b.s3.amazonaws.com/a.jpg?X-Amz-Signature=***&X-Amz-Expires=60"
    ),
    f"https://h/a?X-Amz-Security-Token={QUOTED}&X-Amz-Credential={QUOTED}&X-Amz-Date=1": (
        "https://h/a?X-Amz-Security-Token=***&X-Amz-Credential=***&X-Amz-Date=1"
    ),
    f"https://storage.googleapis.com/b/a?GoogleAccessId={QUOTED}&Expires=1&Signature={QUOTED}": (
        "https://storage.googleapis.com/b/a?GoogleAccessId=***&Expires=1&Signature=***"
    ),
    f"https://h/a?X-Goog-Signature={QUOTED}": "https://h/a?X-Goog-Signature=***",
    f"https://a.blob.core.windows.net/b/a?sv=2024&sig={QUOTED}&se=1": (
        "https://a.blob.core.windows.net/b/a?sv=2024&sig=***&se=1"
    ),
    f"https://proxy/?u=https%3A%2F%2Fh%2Fa%3Fsig%3D{QUOTED}": "https://proxy/?u=https%3A%2F%2Fh%2Fa%3Fsig%3D***",
    f"Authorization: Bearer {SECRET}, then": "Authorization: Bearer ***, then",
    f"{{'Authorization': 'Basic {SECRET}', 'a': 1}}": "{'Authorization': '***', 'a': 1}",
    f"Authorization: AWS4-HMAC-SHA256 Credential={SECRET}, Signature={SECRET}": (
        "Authorization: *** Credential=***, Signature=***"
    ),
    f"sent as bearer {SECRET}": "sent as bearer ***",
    f"<CIMultiDictProxy('x-amz-security-token': '{SECRET}', 'Date': 'now')>": (
        "<CIMultiDictProxy('x-amz-security-token': '***', 'Date': 'now')>"
    ),
    f"aws_secret_access_key = {SECRET}\nregion = eu": "aws_secret_access_key = ***\nregion = eu",
    f"AWS_SESSION_TOKEN={SECRET} was sent": "AWS_SESSION_TOKEN=*** was sent",
    f"DefaultEndpointsProtocol=https;AccountKey={SECRET};EndpointSuffix=x": (
        "DefaultEndpointsProtocol=https;AccountKey=***;EndpointSuffix=x"
    ),
    f'{{"client_secret": "{SECRET}", "refresh_token": "{SECRET}", "type": "user"}}': (
        '{"client_secret": "***", "refresh_token": "***", "type": "user"}'
    ),
    f"connect(password='{SECRET} and more', host='h')": "connect(password=***, host='h')",
    f"--storage-option s3.secret={SECRET} --verbose": "--storage-option s3.secret=*** --verbose",
    f"<Error><AWSAccessKeyId>{SECRET}</AWSAccessKeyId><Code>403</Code></Error>": (
        "<Error><AWSAccessKeyId>***</AWSAccessKeyId><Code>403</Code></Error>"
    ),
    "the key AKIAIOSFODNN7EXAMPLE is not known": "the key *** is not known",
    "token ya29.a0AfB_sEcReT-0123 has expired": "token *** has expired",
    "git: ghp_sEcReT0123456789abcdefghijklmnop": "git: ***",
    "jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzRWNSZVQifQ.sEcReT-0": "jwt ***",
    f"the file holds {PEM}and more": "the file holds ***\nand more",
    f"cut off: {PEM[:60]}": "cut off: ***",
}


@pytest.mark.parametrize("text", TEXTS)
def test_secrets_are_hidden_and_the_rest_stays(text: str) -> None:
    assert without_secrets(text) == TEXTS[text]
    assert "sEcReT" not in TEXTS[text]
    assert without_secrets(without_secrets(text)) == without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/a@b:c/d@e.jpg: there is no file of that name (any more)",
        "NoSuchKey: the specified key does not exist (Key=photos/a.jpg, Bucket=b)",
        "unexpected token: '}' at line 3",
        "s3://bucket/secret/password.jpg and /home/me/token/keys.png",
        "the design=4 of assig=5, key=photo, keyboard=us, monkeys=3",
        "2026-11-22T10:00:00+01:00 basic authentication is off",
        "abfs://container@account.dfs.core.windows.net/a.jpg",
        "http://localhost:9000/bucket",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@given(text=st.text())
def test_any_text_keeps_its_words_or_loses_only_secrets(text: str) -> None:
    hidden = without_secrets(text)
    assert hidden == text or "***" in hidden


# Errors as libraries make them


def _client_response_error() -> Exception:
    from aiohttp import ClientResponseError, RequestInfo
    from multidict import CIMultiDict, CIMultiDictProxy
    from yarl import URL

    url = URL(f"https://user:sEcReT@host/a.jpg?X-Amz-Signature={QUOTED}", encoded=True)
    headers = CIMultiDictProxy(CIMultiDict({"Authorization": f"Bearer {SECRET}"}))
    return ClientResponseError(RequestInfo(url, "GET", headers, url), (), status=403, message="Forbidden")


def _botocore(name: str, **fields: str) -> Exception:
    import botocore.exceptions

    return getattr(botocore.exceptions, name)(**fields)


def _client_error() -> Exception:
    message = (
        f"The request signature we calculated does not match: AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature={QUOTED}"
    )
    return _botocore("ClientError", error_response={"Error": {"Code": "403", "Message": message}}, operation_name="Get")  # type: ignore[arg-type]


ERRORS: dict[str, Callable[[], Exception]] = {
    "aiohttp": _client_response_error,
    "botocore, a refusal": _client_error,
    "botocore, no answer": lambda: _botocore(
        "EndpointConnectionError", endpoint_url=f"https://b.s3.amazonaws.com/a?X-Amz-Signature={QUOTED}", error="x"
    ),
    "botocore, a proxy": lambda: _botocore("ProxyConnectionError", proxy_url="http://me:sEcReT@proxy:3128", error="x"),
    "a missing file": lambda: FileNotFoundError(2, "No such file", f"https://h/a?sig={QUOTED}"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_no_secret_of_a_librarys_error_reaches_a_message(name: str) -> None:
    error = ERRORS[name]()
    assert "sEcReT" in f"{error!s} {error!r}", "the error was to hold a secret"
    for message in (
        str(ImageError("read", type(error).__name__, str(error))),
        str(RunError(f"the job broke off: {error!r}")),
        str(ConfigError(f"cannot be read: {error}")),
        str(BeamcamError(str(error))),
    ):
        assert "sEcReT" not in message
    assert "***" in str(ImageError("read", type(error).__name__, str(error)))
    with pytest.raises(ConfigError) as caught, as_config_errors("it cannot be reached"):
        raise error
    assert "sEcReT" not in str(caught.value)


def test_image_errors_keep_their_kind() -> None:
    error = ImageError("read", "Forbidden", f"token={SECRET}")
    assert (error.stage, error.error_type, str(error)) == ("read", "Forbidden", "token=***")


@pytest.fixture
def forbidding_server() -> Iterator[str]:
    """A web server on this machine that refuses all that it is asked for."""

    class Forbidding(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forbidding)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_signed_uri_that_is_refused_does_not_show_its_signature(forbidding_server: str) -> None:
    pytest.importorskip("aiohttp")
    uri = f"http://{forbidding_server}/a.jpg?X-Amz-Signature={QUOTED}"
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever fsspec makes of it
        storage.read_bytes(uri)
    assert "sEcReT" in str(caught.value), "the error was to hold the signature"
    assert "sEcReT" not in str(ImageError("read", "x", str(caught.value)))


# Terminals

HARMFUL = "\x1b[2J\x1b]0;title\x07\r\n\t\x08\x7f\x9b31m\u202e\u2066\u200b\u2028\ud800"


def test_nothing_that_a_terminal_obeys_is_shown() -> None:
    line = printable(f"a{HARMFUL}b")
    assert line.startswith("a\\x1b[2J\\x1b]0;title\\x07\\r\\n\\t\\x08\\x7f\\x9b31m\\u202e\\u2066\\u200b\\u2028\\ud800")
    assert line.isprintable()
    line.encode()  # halves of characters would be an error of the terminal's encoding


@pytest.mark.parametrize("text", ["naïve café", "日本語.jpg", "می‌خواهم", "👨‍👩‍👧 photo", "e\u0301", "a\\x1b"])
def test_all_scripts_stay_as_they_are(text: str) -> None:
    assert printable(text) == text


@given(text=st.text(st.characters(codec=None)))
def test_what_is_shown_is_one_line_whatever_came(text: str) -> None:
    line = shown(text)
    assert len(line.splitlines()) <= 1
    assert not {"\x1b", "\x9b", "\u202e"} & set(line)
    line.encode()


def test_logs_hide_secrets_and_escape_what_a_terminal_obeys(caplog: pytest.LogCaptureFixture) -> None:
    formatter = SafeFormatter("%(levelname)s %(message)s")
    logger = logging.getLogger("pipeline.test")
    error = OSError(f"https://me:sEcReT@h\x1b[2J\nfaked line token={SECRET}")
    try:
        raise error
    except OSError:
        logger.exception("of %s\nERROR all is well", f"a\x1b[31m?sig={QUOTED}", stack_info=True)
    text = formatter.format(caplog.records[0])
    assert "sEcReT" not in text
    assert "\x1b" not in text
    lines = text.split("\n")
    assert lines[0] == "ERROR of a\\x1b[31m?sig=***\\nERROR all is well"
    assert lines[1] == "Traceback (most recent call last):"
    assert "OSError: https://***@h\\x1b[2J" in lines
    assert "faked line token=***" in lines


def test_an_unexpected_error_is_shown_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError("\x1b[2J")
    error.__cause__ = OSError(f"https://me:sEcReT@h/a?sig={QUOTED}")
    show_traceback(ValueError, error, None)
    text = capsys.readouterr().err
    assert text.startswith("OSError: https://***@h/a?sig=***\n\nThe above exception was the direct cause")
    assert text.endswith("ValueError: \\x1b[2J\n")
