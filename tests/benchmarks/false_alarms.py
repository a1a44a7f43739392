"""How often two runs differ where nothing has changed, and what changes are found: the comparison's own test.

python -m tests.benchmarks.false_alarms                # 200 seeds of every population: minutes
python -m tests.benchmarks.false_alarms --seeds 1000 --of small
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.audit.comparability import Facts
from pipeline.audit.comparison import Context, compare
from pipeline.audit.findings import Finding
from pipeline.observations import SCALARS, Observations
from pipeline.sums import Sums

GRID = (7, 7)


@dataclass(frozen=True)
class Population:
    """What images of some classes are like; nights draw from it."""

    n_classes: int
    n_images: int  # of a night
    seed: int = 0
    uneven: bool = False  # whether classes are as unequal as 1, 1/2, 1/3, ...
    failing: float = 0.0005  # a tenth of what BC301 allows, which looks at one night alone
    empty: float = 0.02
    marked: float = 0.0  # share of class 0's images whose attention lies in the bottom-right cell
    less_accurate: float = 0.0  # what class 0's accuracy is lower by
    more_frequent: float = 1.0  # times that class 0 comes as often

    def draw(self, rng: np.random.Generator) -> Sums:
        """A night."""
        classes = np.random.default_rng(self.seed)
        weights = 1 / np.arange(1, self.n_classes + 1) if self.uneven else np.ones(self.n_classes)
        weights[0] *= self.more_frequent
        centres = np.clip(classes.normal(0.5, 0.12, (self.n_classes, 2)), 0.1, 0.9)
        scatter = classes.uniform(0.08, 0.25, self.n_classes)
        accuracy = classes.uniform(0.55, 0.98, self.n_classes)
        accuracy[0] -= self.less_accurate
        likes = classes.integers(0, self.n_classes, self.n_classes)  # what its images are taken for
        shape = classes.uniform(1.5, 8, (self.n_classes, len(SCALARS), 2))  # of each scalar's beta distribution

        n_failed = int(rng.binomial(self.n_images, self.failing))
        n = self.n_images - n_failed
        label = rng.choice(self.n_classes, n, p=weights / weights.sum())
        right = rng.random(n) < accuracy[label]
        predicted = np.where(
            right, label, np.where(rng.random(n) < 0.5, likes[label], rng.integers(0, self.n_classes, n))
        )
        place = np.clip(rng.normal(centres[label], scatter[label, None]), 0, 0.999)
        rows, columns = (place[:, 1] * GRID[0]).astype(int), (place[:, 0] * GRID[1]).astype(int)
        marked = (label == 0) & (rng.random(n) < self.marked)
        rows[marked], columns[marked] = GRID[0] - 1, GRID[1] - 1
        maps = _draw_maps(rows, columns, rng)
        empty = rng.random(n) < self.empty
        maps[empty] = 0
        scalars = {name: rng.beta(*shape[predicted, i].T).astype(np.float32) for i, name in enumerate(SCALARS)}
        ids = np.frombuffer(rng.bytes(16 * n).hex().encode(), "S32")
        return Sums.of(
            Observations(
                ids=ids, uris=[""] * n, label=label.astype(np.int32), predicted=predicted.astype(np.int32),
                runner_up=likes[predicted].astype(np.int32), confidence=scalars["confidence"], margin=scalars["margin"],
                mistakenness=np.full(n, 0.5, np.float32),
                peak=np.where(empty, -1, maps.reshape(n, -1).argmax(1)).astype(np.int32), maps=maps, scalars=scalars,
                method="gradcam",
            ),
            failures_by_type={"decode:BrokenImage": n_failed},
        )  # fmt: skip


POPULATIONS = {
    "small": Population(10, 1_000),
    "few large classes": Population(10, 20_000),
    "many classes": Population(100, 8_000),
    "uneven": Population(100, 20_000, uneven=True),
    "a thousand classes": Population(1_000, 80_000),
}


def _draw_maps(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A blob of some width round each peak, and noise: (n, h, w) float32 of sum 1."""
    i, j = np.mgrid[: GRID[0], : GRID[1]].astype(np.float32)
    distance = (i - rows[:, None, None].astype(np.float32)) ** 2 + (j - columns[:, None, None].astype(np.float32)) ** 2
    width = rng.uniform(0.7, 2.5, (len(rows), 1, 1)).astype(np.float32)
    maps = np.exp(-distance / (2 * width**2)) + 0.1 * rng.random(distance.shape, np.float32)
    return maps / maps.sum((1, 2), keepdims=True)


def compare_nights(before: Population, now: Population, seed: int, same_model: bool = True) -> list[Finding]:
    """What is found between two nights, each with images of its own.

    Without the note on classes that are too small to be compared, which is true of every night.
    """
    rng = np.random.default_rng([seed, 7])
    old, new = before.draw(rng), now.draw(rng)
    facts = Facts("run", new.n_images + new.n_failed, 1, "a", method="gradcam")
    earlier = dataclasses.replace(facts, model_digest="a" if same_model else "b")
    results = compare(new, old, Context(facts=facts, baseline=earlier))
    found = [finding for result in results for finding in result.findings]
    return [f for f in found if not (f.rule == "BC303" and f.scope.index is None)]


def count_alarms(population: Population, seeds: Iterable[int], same_model: bool = True) -> collections.Counter[str]:
    """By rule the seeds with a finding of it where nothing has changed; "any" for those with a finding at all."""
    alarms: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        rules = {finding.rule for finding in compare_nights(population, population, seed, same_model)}
        alarms.update([*rules, *(["any"] if rules else [])])
    return alarms


def find_share(before: Population, now: Population, rule: str, seeds: range) -> float:
    """The share of seeds in which a rule finds that class 0 has changed."""
    hits = 0
    for seed in seeds:
        found = compare_nights(before, now, seed)
        hits += any(f.rule == rule and f.scope.index in (0, None) for f in found)
    return hits / len(seeds)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--of", choices=POPULATIONS, nargs="*", default=list(POPULATIONS))
    arguments = parser.parse_args()
    print(f"seeds with a finding though nothing has changed, of {arguments.seeds}")
    for name in arguments.of:
        for same_model in (True, False):
            start = time.perf_counter()
            alarms = count_alarms(POPULATIONS[name], range(arguments.seeds), same_model)
            rules = ", ".join(f"{rule} {count}" for rule, count in sorted(alarms.items()) if rule != "any") or "-"
            seconds = (time.perf_counter() - start) / arguments.seeds
            model = "same model" if same_model else "other model"
            print(f"  {name:20} {model:12} any {alarms['any']:3}   {rules}   ({seconds:.2f} s a seed)", flush=True)
    print("share of 40 seeds in which a change of one class of ten is found")
    for n in (100, 200, 1_000):
        base = Population(10, 10 * n, empty=0.0)
        for words, rule, change in (
            *((f"{f:.0%} of its images look at a corner", "BC201", {"marked": f}) for f in (0.05, 0.1, 0.2, 0.4)),
            *((f"{f:.0%} of its images look at a corner", "BC202", {"marked": f}) for f in (0.05, 0.1, 0.2, 0.4)),
            *((f"{f:.0%} less accurate", "BC204", {"less_accurate": f}) for f in (0.05, 0.1, 0.2)),
            *((f"{f} times as frequent", "BC205", {"more_frequent": f}) for f in (1.5, 2.0)),
        ):
            share = find_share(base, dataclasses.replace(base, **change), rule, range(40))
            print(f"  {n:5} images of a class, {words:36} {rule} {share:.0%}", flush=True)


if __name__ == "__main__":
    main()
