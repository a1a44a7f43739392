"""A tenth of the images damaged, in the short form."""

import pytest

from tests.faults.corrupt import DAMAGES, run_corrupt
from tests.faults.settings import Settings


@pytest.mark.slow
def test_every_good_image_is_recorded_and_every_bad_one_a_failure_of_its_kind(tmp_path) -> None:
    (outcome,) = run_corrupt(Settings(tmp_path, seed=3, quick=True))
    assert outcome.problems == []
    counts = {one.what: one.notes for one in outcome.rounds}
    assert counts["good images"] == {"images": 270}
    assert all(sum(counts[way].values()) >= 1 for way in DAMAGES)
