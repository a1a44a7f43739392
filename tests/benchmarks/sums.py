"""How long sums of a million images take, and how much memory: `python -m tests.benchmarks.sums`.

Observations are made up, a shard at a time, and added up as workers do it: a part's sums, its file, that file read
again, all parts merged. Seconds are of a processor; making observations up is not in them.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import time
from collections import Counter

import numpy as np

from pipeline.observations import SCALARS, Observations
from pipeline.sums import Sums
from pipeline.totals import gather


def make_observations(number: int, n: int, n_classes: int, grid: tuple[int, int]) -> Observations:
    """A shard of images whose classes are evenly spread."""
    rng = np.random.default_rng(number)
    maps = rng.random((n, *grid), np.float32) ** 4
    maps /= maps.sum(axis=(1, 2), keepdims=True)
    label = rng.integers(0, n_classes, n).astype(np.int32)
    predicted = np.where(rng.random(n) < 0.8, label, rng.integers(0, n_classes, n)).astype(np.int32)
    scalars = {name: rng.random(n, np.float32) for name in SCALARS}
    names = [hashlib.sha256(b"%d" % (number * n + i)).hexdigest()[:32] for i in range(n)]
    return Observations(
        np.array(names, "S32"), [""] * n, label, predicted, (predicted + 1) % n_classes, scalars["confidence"],
        scalars["margin"], rng.random(n, np.float32), maps.reshape(n, -1).argmax(axis=1).astype(np.int32), maps,
        scalars, "gradcam",
    )  # fmt: skip


def main() -> None:
    """Prints seconds, bytes and the largest resident size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--shard", type=int, default=256)
    parser.add_argument("--side", type=int, default=7)
    options = parser.parse_args()
    seconds: Counter[str] = Counter()
    sizes: list[int] = []
    start, waiting = time.perf_counter(), [Sums.empty("gradcam")]
    for number in range(-(-options.images // options.shard)):
        observations = make_observations(number, options.shard, options.classes, (options.side, options.side))
        begun = time.process_time()
        sums = Sums.of(observations, shard=number)
        seconds["sums"] += time.process_time() - begun
        begun = time.process_time()
        data = sums.to_bytes()
        seconds["to bytes"] += time.process_time() - begun
        begun = time.process_time()
        again = Sums.from_bytes(data)
        seconds["from bytes"] += time.process_time() - begun
        begun = time.process_time()
        waiting = gather(waiting, [again])
        seconds["merging"] += time.process_time() - begun
        sizes.append(len(data))
    total = Sums.merge(waiting)
    data = total.to_bytes()
    for name, passed in seconds.items():
        each = f"{1e6 * passed / options.images:6.1f} us an image, {1e3 * passed / len(sizes):6.1f} ms a shard"
        print(f"{name:12}{passed:8.1f} s  {each}")
    passed = time.perf_counter() - start
    print(f"{'in all':12}{seconds.total():8.1f} s for {total.n_images:,} images of {options.classes} classes")
    print(f"a part {np.mean(sizes) / 1e3:.0f} kB, the total {len(data) / 1e6:.2f} MB; with making up {passed:.0f} s")
    print(f"largest resident size {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
