"""A second run over a finished one, in the short form: without the clock, and with a look at every request."""

import random

import pytest

from tests.faults.again import again_rounds, seconds_to_list, stamps, writing_requests
from tests.faults.jobs import Workplace
from tests.faults.places import Place
from tests.proxy import running_proxy


@pytest.mark.slow
def test_the_same_command_once_more_writes_nothing(work: Workplace, place: Place) -> None:
    for done in again_rounds(work, place, 1, False, random.Random(0)):
        assert done.problems == (), done
        assert place.store == "local" or done.notes["requests"] > 3, "the job was seen through the proxy"


def test_listing_is_timed_by_itself(work: Workplace, tmp_path) -> None:
    assert 0 < seconds_to_list(Place("local", str(tmp_path), {}), work) < 5


def test_a_write_is_seen(tmp_path, place: Place) -> None:
    if place.store == "local":
        before = stamps(tmp_path)
        (tmp_path / "new").write_text("")
        assert set(stamps(tmp_path)) == {*before, "new"}
        assert stamps(tmp_path)["."] != before["."]
        return
    with running_proxy(place.endpoint) as proxy:
        through = place.through(proxy.url)
        through.names()
        assert writing_requests(proxy) == []
        through.write("file", b"content")
        assert len(writing_requests(proxy)) == 1
