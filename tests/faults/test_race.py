"""Two jobs started into one output, in the short form."""

import random

import pytest

from tests.faults.jobs import Ended, Whole, Workplace
from tests.faults.places import Place
from tests.faults.race import OTHER, is_clear, judge, race_round

SHORT = {"local": ("same", "different", "overwrite"), "gcs": ("different",), "s3": ("different",)}


@pytest.fixture(scope="module")
def wholes(work: Workplace) -> dict[str, Whole]:
    return {"first": work.whole, "second": work.undisturbed("other", *OTHER)}


@pytest.mark.slow
def test_two_jobs_in_one_output_are_never_mixed(work: Workplace, place: Place, wholes: dict[str, Whole]) -> None:
    for kind in SHORT[place.store]:
        offset = random.uniform(0, work.whole.seconds) if kind == "overwrite" else random.uniform(0, 0.2)
        done = race_round(work, place.new(), kind, offset, wholes)
        assert done.problems == (), done


def test_the_judge_knows_who_may_win() -> None:
    good, refused = Ended(0, "done", 1), Ended(2, "note\nbeamcam: holds a run", 1)
    crashed = Ended(1, "Traceback (most recent call last):\n  ...\nValueError: x", 1)
    assert list(judge("same", {"first": good, "second": good})) == []
    assert list(judge("different", {"first": refused, "second": good})) == []
    assert list(judge("different", {"first": good, "second": good})) == ["two configurations ended well in one output"]
    assert list(judge("same", {"first": refused, "second": refused})) == ["neither job ended well"]
    assert any("not one clear line" in line for line in judge("overwrite", {"first": crashed, "second": good}))
    assert is_clear(refused)
    assert not is_clear(Ended(1, "beamcam: a\nbeamcam: b", 1))
