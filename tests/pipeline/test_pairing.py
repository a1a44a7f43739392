"""The images that two runs share, one by one, against plain loops over their records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.audit.pairing import NEAR_TIE, Paired, pair_runs
from pipeline.codec import encode_map
from pipeline.errors import RunError
from pipeline.geometry import Geometry, fit_view
from pipeline.observations import observe
from pipeline.reading import Run, open_run
from pipeline.records import Entry, Failure, Record
from tests.runs import METHODS, FakeRun, change_rows, change_table

Change = Callable[[int, Record], Record]


@dataclass(frozen=True)
class Night(FakeRun):
    """A run whose images may be changed, left out or broken."""

    change: Change = lambda number, record: record
    numbers: tuple[int, ...] = tuple(range(40))
    broken: frozenset[int] = frozenset()

    def entry(self, number: int) -> Entry:
        """The image of a number in the list."""
        return super().entry(self.numbers[number])

    def outcome(self, entry: Entry, pngs: dict[str, bytes]) -> Record | Failure:
        """What became of an image: a failure if it is among the broken."""
        number = int(entry.uri[-11:-4])
        if number in self.broken:
            return Failure(entry.id, entry.uri, "read", "BrokenImage", "gone")
        found = super().outcome(Entry(f"/photos/{number + (number % 7 == 5):07d}.jpg"), pngs)
        assert isinstance(found, Record)
        label = "abcde"[number % 5]
        return self.change(number, dataclasses.replace(found, id=entry.id, uri=entry.uri, label=label))


def write(folder: Path, name: str, **options: object) -> Run:
    numbers = options.setdefault("numbers", tuple(range(40)))
    night = Night(str(folder / name), n_images=len(numbers), overlays=False, **options)  # type: ignore[arg-type]
    night.write()
    return open_run(folder / name)


def pair(new: Run, old: Run, **options: int) -> Paired:
    return pair_runs(new, old, METHODS[0], **options)


def with_logits(record: Record, logits: np.ndarray) -> Record:
    """Predicts something else, as surely as its logits say."""
    logits = logits.astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum()
    best, second = np.argsort(-p)[:2]
    return dataclasses.replace(
        record, logits=logits, confidence=float(p[best]), runner_up=int(second), runner_up_confidence=float(p[second])
    )


def with_map(record: Record, change: Callable[[np.ndarray], np.ndarray]) -> Record:
    maps = [dataclasses.replace(m, encoded=encode_map(change(m.array()), "float16")) for m in record.maps]
    return dataclasses.replace(record, maps=tuple(maps))


def with_peak(record: Record, x: float, y: float) -> Record:
    """A map of 4 x 8 cells of the whole image that is strongest in one place."""
    geometry = Geometry(64, 48, fit_view("stretch", (64, 48), (32, 32)))
    values = np.full((4, 8), 0.1, np.float32)
    values[int(y // 12), int(x // 8)] = 1
    maps = [dataclasses.replace(m, encoded=encode_map(values, "float16"), peak_x=float(x), peak_y=float(y),
                                geometry=geometry) for m in record.maps]  # fmt: skip
    return dataclasses.replace(record, maps=tuple(maps), geometry=geometry)


def test_a_run_paired_with_itself_has_not_changed(tmp_path: Path) -> None:
    run = write(tmp_path, "a")
    paired = pair(run, run)
    assert (paired.n_shared, paired.n_same, paired.n_changed, paired.n_flipped, paired.n_moved) == (40, 40, 0, 0, 0)
    assert (paired.n_worse, paired.n_better, paired.n_came, paired.n_went, paired.n_failed) == (0, 0, 0, 0, 0)
    assert paired.correlation(1) == pytest.approx(1)
    assert paired.regressions == paired.flips == paired.moved == ()
    assert paired.new_sums is not None
    assert paired.old_sums is not None
    assert paired.new_sums.n_images == 40
    assert paired.new_sums.to_bytes() == paired.old_sums.to_bytes()


def test_images_of_other_content_are_counted_and_not_compared(tmp_path: Path) -> None:
    old = write(tmp_path, "a")
    changed = write(tmp_path, "b", change=lambda n, r: dataclasses.replace(
        with_logits(r, -r.logits), content_sha256="cd" * 32) if n < 10 else r)  # fmt: skip
    paired = pair(changed, old)
    assert (paired.n_shared, paired.n_changed, paired.n_same, paired.n_flipped) == (40, 10, 30, 0)


def test_flips_regressions_and_improvements_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    old = write(tmp_path, "a")
    rng = np.random.default_rng(0)
    noise = {n: rng.normal(size=5) * (n % 3) for n in range(40)}
    new = write(tmp_path, "b", shard_size=7, change=lambda n, r: with_logits(r, r.logits + noise[n]))
    paired = pair(new, old)
    both = {record.id: [record] for record in old}
    for record in new:
        both[record.id].append(record)
    flipped = {i for i, (a, b) in both.items() if a.predicted != b.predicted}
    right = {i: tuple("abcde"[r.predicted] == r.label for r in pair) for i, pair in both.items()}
    worse = [i for i in both if right[i] == (True, False)]
    assert 5 < len(flipped) < 35
    assert (paired.n_flipped + paired.n_near_ties, paired.n_labelled) == (len(flipped), 40)
    assert (paired.n_worse, paired.n_better) == (len(worse), [*right.values()].count((False, True)))
    surest_first = sorted(worse, key=lambda i: -(both[i][1].confidence or 0))
    assert [change.example.id for change in paired.regressions] == surest_first[:20]
    for change in paired.flips:
        before, now = both[change.example.id]
        assert (change.predicted_before, change.predicted) == (before.predicted, now.predicted)
        assert (change.confidence_before, change.confidence) == pytest.approx((before.confidence, now.confidence))
        assert change.example.uri == now.uri


def test_a_near_tie_is_no_flip(tmp_path: Path) -> None:
    def tie(step: float) -> Change:
        return lambda n, r: with_logits(r, np.array([2.0, 2.0 + step, 0, 0, 0]))

    old, new, other = (
        write(tmp_path, name, change=tie(step)) for name, step in (("a", -1e-4), ("b", 1e-4), ("c", 0.1))
    )
    assert NEAR_TIE > 1e-4
    assert (pair(new, old).n_flipped, pair(new, old).n_near_ties) == (0, 40)
    assert (pair(other, old).n_flipped, pair(other, old).n_near_ties) == (0, 40), "one of both decided it by a hair"
    sure = write(tmp_path, "d", change=tie(-0.1))
    assert (pair(other, sure).n_flipped, pair(other, sure).n_near_ties) == (40, 0)


def test_maps_are_compared_by_pearsons_correlation_and_the_most_moved_come_first(tmp_path: Path) -> None:
    old = write(tmp_path, "a")
    new = write(tmp_path, "b", change=lambda n, r: with_map(r, np.fliplr) if n in (3, 4) else r)
    paired = pair(new, old)
    maps = [observe(list(run), METHODS[0], [*"abcde"]) for run in (new, old)]
    places = [{bytes(i): k for k, i in enumerate(m.ids)} for m in maps]
    expected = {}
    for number in (3, 4):
        image = Entry(f"/photos/{number:07d}.jpg").id.encode()
        a, b = (m.maps[place[image]].ravel().astype(np.float16) for m, place in zip(maps, places, strict=True))
        expected[image.decode()] = np.corrcoef(a.astype(float), b.astype(float))[0, 1]
    assert {c.example.id: pytest.approx(c.correlation, abs=1e-5) for c in paired.moved} == expected
    correlations = [change.correlation for change in paired.moved]
    assert correlations == sorted(correlations)
    assert len(paired.correlations) == 40
    assert (paired.correlations > 0.9999).sum() == 38


def test_a_peak_has_moved_if_it_is_a_quarter_of_the_image_away(tmp_path: Path) -> None:
    """On 4 x 8 cells that is one cell down or two to the side."""
    old = write(tmp_path, "a", change=lambda n, r: with_peak(r, 1, 1))
    steps = [(1, 1), (9, 1), (17, 1), (1, 13), (9, 1), (63, 47)]  # 64 x 48 pixels: 8 x 12 a cell
    new = write(tmp_path, "b", change=lambda n, r: with_peak(r, *steps[n % 6]))
    moved = sum(steps[n % 6] in ((17, 1), (1, 13), (63, 47)) for n in range(40))
    assert pair(new, old).n_moved == moved


def test_a_map_that_became_empty_has_nothing_in_common_with_what_it_was(tmp_path: Path) -> None:
    old = write(tmp_path, "a")
    new = write(tmp_path, "b", change=lambda n, r: with_map(r, lambda m: -np.abs(m)) if n == 6 else r)
    moved = pair(new, old).moved
    assert [(change.example.uri, change.correlation) for change in moved] == [("/photos/0000006.jpg", 0.0)]


def test_images_that_came_went_failed_or_recovered_are_told_apart(tmp_path: Path) -> None:
    old = write(tmp_path, "a", numbers=tuple(range(30)), broken=frozenset({1, 2, 3}))
    new = write(tmp_path, "b", numbers=(*range(10, 36), 1, 4), broken=frozenset({4, 30, 31}))
    paired = pair(new, old)
    assert {e.uri[-6:-4] for e in paired.recovered} == {"01"}
    assert {e.uri[-6:-4] for e in paired.failed} == {"04"}
    assert {e.uri[-6:-4] for e in paired.came} == {"32", "33", "34", "35"}
    assert {e.uri[-6:-4] for e in paired.went} == {f"{n:02d}" for n in (0, 5, 6, 7, 8, 9)}
    # Failures that the other run has not seen came and went as well: 30 and 31, and 2 and 3.
    assert (paired.n_recovered, paired.n_failed, paired.n_came, paired.n_went) == (1, 1, 6, 8)


def test_of_too_many_maps_those_with_the_smallest_ids_are_compared_and_all_predictions(tmp_path: Path) -> None:
    old = write(tmp_path, "a")
    new = write(tmp_path, "b", change=lambda n, r: with_map(with_logits(r, np.roll(r.logits, n % 2)), np.fliplr))
    paired = pair(new, old, most_maps=12)
    assert (paired.n_shared, paired.n_same, paired.n_maps) == (40, 40, 12)
    assert paired.n_flipped + paired.n_near_ties == sum(
        a.predicted != b.predicted for a, b in zip(old, new, strict=True)
    )
    alike = {a.id for a, b in zip(old, new, strict=True) if a.predicted == b.predicted}
    compared = alike & set(sorted(record.id for record in new)[:12])
    assert len(paired.correlations) == len(compared)
    assert {change.example.id for change in paired.moved} <= compared


def test_runs_of_before_predictions_had_columns_are_compared_by_their_logits(tmp_path: Path) -> None:
    old = write(tmp_path, "a")
    new = write(tmp_path, "b", change=lambda n, r: with_logits(r, np.roll(r.logits, n % 3)))
    expected = pair(new, old)
    for shard in range(10):
        change_table(
            tmp_path / "a", shard, lambda t: t.drop_columns(["predicted", "confidence", "runner_up_confidence"])
        )
    found = pair(new, old)
    for field in dataclasses.fields(Paired):
        if field.name not in ("correlations", "new_sums", "old_sums", "regressions", "flips", "moved"):
            assert getattr(found, field.name) == getattr(expected, field.name), field.name
    np.testing.assert_array_equal(found.correlations, expected.correlations)
    for name in ("regressions", "flips"):
        pairs = zip(getattr(found, name), getattr(expected, name), strict=True)
        assert all(
            a.example == b.example and a.confidence_before == pytest.approx(b.confidence_before) for a, b in pairs
        )
    assert pair(new, old, most_maps=12).n_same == 12


def test_the_order_and_size_of_shards_make_no_difference(tmp_path: Path) -> None:
    old = write(tmp_path, "a")
    numbers = tuple(int(n) for n in np.random.default_rng(1).permutation(40))
    change: Change = lambda n, r: with_logits(r, np.roll(r.logits, n % 3))  # noqa: E731
    first = pair(write(tmp_path, "b", change=change), old)
    second = pair(write(tmp_path, "c", change=change, numbers=numbers, shard_size=11), old)
    for field in dataclasses.fields(Paired):
        if field.name not in ("correlations", "new_sums", "old_sums"):
            assert getattr(first, field.name) == getattr(second, field.name), field.name
    np.testing.assert_array_equal(np.sort(first.correlations), np.sort(second.correlations))


def test_examples_are_regressions_first_then_flips_then_moved_attention(tmp_path: Path) -> None:
    def was(n: int, record: Record) -> Record:
        return with_logits(record, np.eye(5)[(n + (n == 9)) % 5] * 5)  # all but 9 are right

    def now(n: int, record: Record) -> Record:
        if n in (1, 9):
            return with_logits(record, np.eye(5)[(n + 2) % 5] * 5)  # 1 is wrong now, 9 wrong in another way
        return with_map(was(n, record), np.flipud) if n == 20 else was(n, record)

    paired = pair(write(tmp_path, "b", change=now), write(tmp_path, "a", change=was))
    assert [example.uri[-6:-4] for example in paired.examples().worst] == ["01", "09", "20"]
    assert paired.examples().random == ()


def test_a_damaged_run_is_told_by_its_file(tmp_path: Path) -> None:
    old, new = write(tmp_path, "a"), write(tmp_path, "b")
    (tmp_path / "a/records/part-00002.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(RunError, match=r"part-00002\.parquet cannot be read"):
        pair(new, old)
    change_rows(tmp_path / "b", 0, lambda rows: rows[0].update(id="no id"))
    with pytest.raises(RunError, match=r"part-00000\.parquet cannot be read: ValueError"):
        pair(new, new)
