"""Places for the short forms: a local folder, and the emulators where they are installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.jobs import Workplace
from tests.faults.places import STORES, Place, missing, opened


@pytest.fixture(scope="module", params=STORES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Each store in turn."""
    if why := missing(request.param):
        pytest.skip(why)
    with opened(request.param, tmp_path_factory.mktemp("place")) as found:
        yield found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Photographs, three of them damaged, and a model."""
    return Workplace(tmp_path_factory.mktemp("work"), seed=11, count=120, shard_size=8)
