"""A store that fails and stalls, in the short form: nothing is lost or doubled; how long it takes is not asked here."""

import random
import urllib.error
import urllib.request
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.faults.flaky import flaky_rounds
from tests.faults.jobs import Workplace
from tests.faults.places import Place
from tests.proxy import KINDS, Faults, running_proxy


@pytest.mark.slow
def test_a_flaky_store_loses_and_doubles_nothing(work: Workplace, place: Place) -> None:
    if place.store == "local":
        pytest.skip("a disk does not answer 503")
    rounds = list(flaky_rounds(work, place, 1, False, random.Random(7)))
    for one in rounds:
        assert one.problems == (), one
    assert {*KINDS, "stall"} & set(rounds[1].notes), "something did go wrong"
    assert set(rounds[0].notes) == {"seconds", "ok"}


def test_the_proxy_fails_as_it_says() -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(bytes(1000))

        def log_message(self, *_: object) -> None:
            pass

    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    faults = Faults(fail=0.4, stall=0.1, stall_seconds=0.05, seed=3)
    with running_proxy(f"127.0.0.1:{server.server_port}", faults) as proxy:
        found = {f"/{number}": _ask(f"{proxy.url}/{number}") for number in range(150)}
        outcomes = {one["path"]: one["outcome"] for one in proxy.requests()}
    server.shutdown()
    server.server_close()
    assert {path: _expected(outcome) for path, outcome in outcomes.items()} == found
    assert set(outcomes.values()) == {"ok", "stall", "stall-done", *KINDS}
    assert set(seen) == {path for path, outcome in outcomes.items() if outcome in ("ok", "lost", "half", "stall-done")}


def _expected(outcome: str) -> str:
    return outcome if outcome in ("ok", "503", "429") else "cut"


def _ask(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return "ok" if len(answer.read()) == 1000 else "short"
    except urllib.error.HTTPError as error:
        error.close()
        return str(error.code)
    except (OSError, IncompleteRead):
        return "cut"
