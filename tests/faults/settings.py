"""How much to try, and where."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.jobs import Workplace
from tests.faults.places import STORES, missing, opened
from tests.faults.reporting import Outcome, Round

Trial = Callable[..., Iterator[Round]]  # of a workplace, a place, what else it needs, and its own chances


@dataclass(frozen=True)
class Settings:
    """One call of `make faults`."""

    folder: Path  # for everything
    seed: int
    stores: tuple[str, ...] = STORES
    rounds: int | None = None  # of each row; None for what the issue asks for
    quick: bool = False  # small counts, to see that it works

    def workplace(self, name: str, **sizes: Any) -> Workplace:
        """Photographs and a model for a part."""
        return Workplace(self.folder / name, self.seed, **sizes)

    def rounds_by_store(self, local: int, others: int) -> Iterator[tuple[str, int]]:
        """The stores that were asked for, with the rounds on each."""
        for store in self.stores:
            many = self.rounds or (2 if self.quick else local if store == "local" else others)
            yield store, many

    def measure(
        self, part: str, what: str, asked: str, store: str, trial: Trial, work: Workplace, *more: Any
    ) -> Outcome:
        """Runs the rounds of a row, told as they come; the seed of their chances is this call's."""
        if why := missing(store):
            return Outcome(part, what, asked, (), left_out=why)
        begun, rounds = time.monotonic(), []
        with opened(store, work.folder) as place:
            for one in trial(work, place, *more, random.Random(f"{self.seed} {part} {store}")):
                print(f"  {part} {store} {one.what}: {'; '.join(one.problems) or 'good'} {one.notes}", flush=True)
                rounds.append(one)
        return Outcome(part, what, asked, tuple(rounds), time.monotonic() - begun)
