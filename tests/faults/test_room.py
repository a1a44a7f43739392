"""A full disk and one that cannot be written to, in the short form."""

import random

import pytest

from tests.faults.jobs import Workplace
from tests.faults.places import Place
from tests.faults.room import no_mount, room_rounds


@pytest.mark.slow
def test_without_room_a_job_ends_in_one_line_and_goes_on_later(work: Workplace) -> None:
    if why := no_mount(work.folder):
        pytest.skip(why)
    rounds = list(room_rounds(work, Place("local", str(work.folder), {}), 1, random.Random()))
    assert [one.what for one in rounds] == ["full", "read-only"]
    for one in rounds:
        assert one.problems == (), one
