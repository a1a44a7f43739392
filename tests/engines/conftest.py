"""What the tests of engines share."""

from collections.abc import Callable, Iterator

import pytest

from tests.faults.jobs import Running


@pytest.fixture
def watched() -> Iterator[Callable[[Running], Running]]:
    """Takes jobs that were started, and kills what is left of them when the test ends, in whatever way."""
    jobs: list[Running] = []

    def watch(running: Running) -> Running:
        jobs.append(running)
        return running

    yield watch
    for running in jobs:
        running.kill()
