"""Sums add up exactly, in any order, to the same bytes; and what is in them is what counting by hand gives."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import pickle
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import npz
from pipeline.observations import SCALARS, Observations
from pipeline.sums import BINS, EDGES, EXCEEDS, SAMPLE, UNIT, Sums, find_bins, join_ranges, resample


def make(n: int, *, seed: int = 0, grid: tuple[int, int] = (3, 4), n_classes: int = 4, **changes: Any) -> Observations:
    """Images of whatever kind: without labels or predictions, with empty maps, with scalars that nobody knows."""
    rng = np.random.default_rng(seed)
    maps = rng.random((n, *grid)).astype(np.float32) ** 3
    maps[rng.random(n) < 0.2] = 0
    total = maps.sum(axis=(1, 2), keepdims=True)
    maps = (maps / np.where(total > 0, total, 1)).astype(np.float32)
    peak = np.where(total[:, 0, 0] > 0, maps.reshape(n, -1).argmax(axis=1), -1)
    low = np.array([EDGES[name][0] for name in SCALARS])[:, None]
    high = np.array([EDGES[name][-1] for name in SCALARS])[:, None]
    values = (low + (high - low) * (1.2 * rng.random((len(SCALARS), n)) - 0.1)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    scalars = dict(zip(SCALARS, values, strict=True)) | {"confidence": rng.random(n).astype(np.float32)}
    found = Observations(
        ids=np.array([f"{seed:08x}{i:024x}" for i in rng.permutation(n)], "S32"),
        uris=[f"/{i}" for i in range(n)],
        label=rng.integers(-1, n_classes, n).astype(np.int32),
        predicted=rng.integers(-1, n_classes, n).astype(np.int32),
        runner_up=rng.integers(-1, n_classes, n).astype(np.int32),
        confidence=scalars["confidence"],
        margin=scalars["margin"],
        mistakenness=rng.random(n).astype(np.float32),
        peak=peak.astype(np.int32),
        maps=maps,
        scalars=scalars,
        method="gradcam",
    )
    return dataclasses.replace(found, **changes)


def take(whole: Observations, rows: np.ndarray) -> Observations:
    changes: dict[str, Any] = {}
    for name, value in vars(whole).items():
        if isinstance(value, np.ndarray):
            changes[name] = value[rows]
        elif isinstance(value, list):
            changes[name] = [value[i] for i in rows]
        elif isinstance(value, dict):
            changes[name] = {key: values[rows] for key, values in value.items()}
    return dataclasses.replace(whole, **changes)


def without_shards(sums: Sums) -> bytes:
    return dataclasses.replace(sums, shards=(), parts_digest=0).to_bytes()


# What is in them


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_what_counting_image_by_image_gives(seed: int) -> None:
    seen = make(90, seed=seed)
    sums = Sums.of(seen, failures_by_type={"read:Gone": 2, "decode:Broken": 1, "none": 0}, shard=7)
    assert (sums.n_images, sums.n_failed, sums.shards) == (90, 3, ((7, 8),))
    assert sums.failures_by_type == {"decode:Broken": 1, "read:Gone": 2}
    assert sums.n_empty == sum(not values.any() for values in seen.maps)
    assert sums.n_unlabelled == sum(label < 0 for label in seen.label)
    for space, keys in ((sums.by_label, seen.label), (sums.by_predicted, seen.predicted)):
        assert space.classes.tolist() == sorted({int(key) for key in keys if key >= 0})
        for row, index in enumerate(space.classes.tolist()):
            members = [i for i in range(90) if keys[i] == index]
            both = [i for i in members if seen.label[i] >= 0 and seen.predicted[i] >= 0]
            correct = [i for i in both if seen.label[i] == seen.predicted[i]]
            assert (space.n[row], space.n_labelled[row], space.n_correct[row]) == (
                len(members), len(both), len(correct))  # fmt: skip
            assert space.n_empty[row] == sum(not seen.maps[i].any() for i in members)
            mass = [[round(float(value) * UNIT) for value in seen.maps[i].ravel()] for i in members]
            assert space.mass[row].ravel().tolist() == np.sum(mass, axis=0).tolist()
            squared = [[round(float(value) ** 2 * UNIT) for value in seen.maps[i].ravel()] for i in members]
            assert space.mass_squared[row].ravel().tolist() == np.sum(squared, axis=0).tolist()
            for cell in range(12):
                place = row, *divmod(cell, 4)
                assert space.peaks[place] == sum(seen.peak[i] == cell for i in members)
                assert space.peaks_correct[place] == sum(seen.peak[i] == cell for i in correct)
                assert space.exceeding[place] == sum(seen.maps[i].ravel()[cell] >= EXCEEDS for i in members)
            assert space.confidence[row] == sum(round(float(seen.confidence[i]) * UNIT) for i in members)
            assert space.self_confidence[row] == sum(round(float(seen.confidence[i]) * UNIT) for i in correct)
            assert space.sample_ids[row].tolist() == sorted(seen.ids[members].tolist())[:SAMPLE] + [b""] * (
                SAMPLE - min(SAMPLE, len(members)))  # fmt: skip
            for name, edges in EDGES.items():
                inside = np.clip(seen.scalars[name][members].astype(np.float64), edges[0], edges[-1])
                wanted = np.histogram(inside[~np.isnan(inside)], edges)[0]
                # Values that lie on an edge by a rounding may count on either side of it.
                assert np.abs(space.histograms[name][row] - wanted).sum() <= 2
                assert space.histograms[name][row].sum() == wanted.sum()
    pairs = [(a, b) for a, b in zip(seen.label.tolist(), seen.predicted.tolist(), strict=True) if min(a, b) >= 0]
    assert sums.count_pairs() == {pair: pairs.count(pair) for pair in set(pairs)}
    bins = find_bins("top2_cc", seen.scalars["top2_cc"])
    top2 = [(a, b, c) for a, b, c in zip(seen.predicted.tolist(), seen.runner_up.tolist(), bins.tolist(), strict=True)
            if min(a, b) >= 0]  # fmt: skip
    assert {(a, b, k): n for (a, b), counts in sums.count_top2().items() for k, n in enumerate(counts) if n} == {
        triple: top2.count(triple) for triple in set(top2)
    }


def test_of_a_large_class_the_smallest_ids_are_kept_wherever_they_come_from() -> None:
    seen = make(500, n_classes=1, label=np.zeros(500, np.int32))
    sums = Sums.merge(Sums.of(take(seen, rows)) for rows in np.array_split(np.arange(500), 9))
    assert sums.by_label.sample_ids[0].tolist() == sorted(seen.ids.tolist())[:SAMPLE]


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [("gini", 0.0, 0), ("gini", 1.0, 31), ("gini", 0.999, 31), ("gini", 0.5, 16), ("gini", 1.7, 31), ("gini", -3.0, 0),
     ("components50", 0.0, 0), ("components50", 3.0, 3), ("components50", 99.0, 31), ("top2_cc", -1.0, 0),
     ("top2_cc", 0.9, 30), ("top2_cc", 0.0, 16), ("spread", 0.75, 31), ("gini", np.nan, BINS)],
)  # fmt: skip
def test_a_value_counts_in_its_bin(name: str, value: float, place: int) -> None:
    assert find_bins(name, np.array([value], np.float32)).tolist() == [place]
    if not np.isnan(value) and EDGES[name][0] <= value < EDGES[name][-1]:
        assert EDGES[name][place] <= value + 1e-6
        assert value < EDGES[name][place + 1]


def test_a_mean_map_leaves_empty_maps_out() -> None:
    maps = np.zeros((3, 1, 2), np.float32)
    maps[0] = [[1, 0]]
    maps[1] = [[0.5, 0.5]]
    seen = make(3, grid=(1, 2), maps=maps, peak=np.array([0, 0, -1], np.int32), label=np.full(3, 5, np.int32))
    sums = Sums.of(seen).by_label
    np.testing.assert_allclose(sums.mean_map(5), [[0.75, 0.25]], atol=1e-7)
    assert sums.mean_map(4).tolist() == [[0, 0]]
    assert (sums.row(5), sums.row(4), sums.row(6)) == (0, None, None)


def test_a_dense_table_has_a_row_for_every_class() -> None:
    sums = Sums.of(make(60, label=np.array([2, 5] * 30, np.int32))).by_label
    dense = sums.dense(7)
    assert dense.classes.tolist() == list(range(7))
    assert dense.n.tolist() == [0, 0, 30, 0, 0, 30, 0]
    np.testing.assert_array_equal(dense.mass[[2, 5]], sums.mass)
    np.testing.assert_array_equal(dense.histograms["gini"][5], sums.histograms["gini"][1])
    assert (dense.sample_ids[[2, 5]] == sums.sample_ids).all()
    with pytest.raises(ValueError, match="class 5 was seen, and there are to be 5 classes"):
        sums.dense(5)


# Adding up


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_parts_add_up_to_the_whole_in_any_order_and_nesting(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    seen = make(n, seed=data.draw(st.integers(0, 5)))
    owners = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), int)
    parts = [Sums.of(take(seen, np.flatnonzero(owners == k)), failures_by_type={f"read:{k % 2}": k}, shard=k)
             for k in range(6)]  # fmt: skip
    wanted = Sums.of(seen, failures_by_type={"read:0": 6, "read:1": 9})
    waiting = list(data.draw(st.permutations(parts)))
    while len(waiting) > 1:
        count = data.draw(st.integers(2, len(waiting)))
        waiting = [*waiting[count:], Sums.merge(waiting[:count])]
    assert waiting[0].shards == ((0, 6),)
    assert without_shards(waiting[0]) == without_shards(wanted)


def test_more_parts_than_are_merged_at_a_time_add_up() -> None:
    seen = make(200)
    parts = (Sums.of(take(seen, np.array([i])), shard=i) for i in range(200))
    assert without_shards(Sums.merge(parts)) == without_shards(Sums.of(seen))


def test_nothing_changes_nothing() -> None:
    sums = Sums.of(make(30), shard=3)
    empty = Sums.empty("gradcam")
    assert (sums + empty).to_bytes() == (empty + sums).to_bytes() == sums.to_bytes()
    with pytest.raises(ValueError, match="sums of no part at all"):
        Sums.merge([])


def test_images_without_any_map_count_beside_others() -> None:
    blind = make(10, seed=1, maps=np.zeros((10, 0, 0), np.float32), peak=np.full(10, -1, np.int32))
    seen = make(20, seed=2)
    both = Sums.of(blind) + Sums.of(seen)
    assert (both.grid, both.n_images) == ((3, 4), 30)
    assert both.n_empty == 10 + Sums.of(seen).n_empty
    assert both.by_label.n.sum() == (blind.label >= 0).sum() + (seen.label >= 0).sum()
    assert both.by_label.mass.sum() == Sums.of(seen).by_label.mass.sum()
    assert Sums.from_bytes(both.to_bytes()).to_bytes() == both.to_bytes()


def test_what_does_not_belong_together_does_not_add_up() -> None:
    sums = Sums.of(make(5), shard=0)
    with pytest.raises(ValueError, match=r"different methods \(cam, gradcam\)"):
        _ = sums + dataclasses.replace(sums, method="cam", shards=())
    with pytest.raises(ValueError, match=r"grids \(\[\(2, 2\), \(3, 4\)\]\)"):
        _ = sums + Sums.of(make(5, grid=(2, 2)), shard=1)
    with pytest.raises(ValueError, match="sums of shard 0 are to be added twice"):
        _ = sums + sums


@given(st.lists(st.booleans(), max_size=30))
def test_shards_that_are_covered_are_told_as_ranges(covered: list[bool]) -> None:
    numbers = [i for i, there in enumerate(covered) if there]
    ranges = join_ranges((i, i + 1) for i in reversed(numbers))
    assert [i for first, end in ranges for i in range(first, end)] == numbers
    assert all(end < first for (_, end), (first, _) in itertools.pairwise(ranges))


# Files


def test_a_file_gives_the_same_sums_back_and_has_the_same_bytes_each_time() -> None:
    sums = dataclasses.replace(Sums.of(make(80), failures_by_type={"read:x": 1}, shard=4), parts_digest=3 << 200)
    data = sums.to_bytes()
    again = Sums.from_bytes(data)
    assert data == sums.to_bytes() == again.to_bytes()
    assert (again.parts_digest, again.shards, again.failures_by_type) == (3 << 200, ((4, 5),), {"read:x": 1})
    for space in ("by_label", "by_predicted"):
        for name, values in vars(getattr(sums, space)).items():
            found = getattr(getattr(again, space), name)
            for one, other in zip(
                *((v.values() if isinstance(v, dict) else [v]) for v in (values, found)), strict=True
            ):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
    assert set(np.load(io.BytesIO(data))) >= {"about", "by_label.mass", "by_predicted.histograms"}


def test_sums_travel_as_their_file_does() -> None:
    sums = dataclasses.replace(Sums.of(make(80), failures_by_type={"read:x": 1}, shard=4), parts_digest=3 << 200)
    data, empty = pickle.dumps(sums), Sums.empty("cam")
    assert len(data) < len(sums.to_bytes()) + 200
    assert pickle.loads(data).to_bytes() == sums.to_bytes()
    assert pickle.loads(data).by_label.mass.dtype == np.int64
    assert pickle.loads(pickle.dumps(empty)).to_bytes() == empty.to_bytes()


def changed(data: bytes, change: Any) -> bytes:
    arrays = {name: np.array(values) for name, values in npz.read_arrays(data, 1 << 24).items()}
    change(arrays)
    return npz.write_arrays(arrays)


def about(**changes: Any) -> Any:
    def change(arrays: dict[str, np.ndarray]) -> None:
        found = json.loads(arrays["about"].tobytes()) | changes
        arrays["about"] = np.frombuffer(json.dumps(found).encode(), np.uint8)

    return change


def put(name: str, values: Any) -> Any:
    return lambda arrays: arrays.update({name: values(arrays[name]) if callable(values) else values})


def add_one(name: str) -> Any:
    def change(arrays: dict[str, np.ndarray]) -> None:
        wide = arrays[name].astype(np.uint64)
        wide.flat[0] += np.uint64(1 << 40)
        arrays[name] = wide

    return change


CHANGES = {
    "another version": (about(version=2), "of version 2"),
    "another unit": (about(unit=1), "version"),
    "other scalars": (about(scalars=["a"]), "version"),
    "no method": (about(method=None), "method"),
    "a negative count": (about(n_images=-1), "no whole numbers"),
    "a count that is a word": (about(n_images="9"), "no whole numbers"),
    "another count of images": (about(n_images=5), "do not add up"),
    "more empty maps than images": (about(n_empty=500), "do not add up"),
    "other failures": (about(failures_by_type={"x": 2}), "do not add up"),
    "overlapping shards": (about(shards=[[0, 3], [2, 4]]), "twice"),
    "a range of no shard": (about(shards=[[3, 3]]), "ranges in order"),
    "shards that are words": (about(shards="ab"), "unpack"),
    "a grid that is a number": (about(grid=3), "holds no sums"),
    "a huge grid": (about(grid=[1 << 40, 1 << 40]), "on a grid of"),
    "nothing about it": (lambda arrays: arrays.pop("about"), "holds no sums"),
    "no JSON": (put("about", np.frombuffer(b"{", np.uint8)), "."),
    "no masses": (lambda arrays: arrays.pop("by_label.mass"), "holds no sums"),
    "signed masses": (put("by_label.mass", lambda v: v.astype(np.int64)), "stored as int64"),
    "masses as floats": (put("by_label.mass", lambda v: v.astype(np.float32)), "stored as float32"),
    "masses of another grid": (put("by_label.mass", lambda v: v[:, :2]), "has the shape"),
    "a larger mass": (add_one("by_label.mass"), "contradict each other"),
    "a larger square": (add_one("by_label.mass_squared"), "contradict each other"),
    "more peaks": (add_one("by_predicted.peaks"), "contradict each other"),
    "more peaks of right ones": (add_one("by_predicted.peaks_correct"), "contradict each other"),
    "more cells that exceed": (add_one("by_label.exceeding"), "contradict each other"),
    "more images": (add_one("by_label.n"), "contradict each other"),
    "more empty ones": (add_one("by_label.n_empty"), "contradict each other"),
    "more correct ones": (add_one("by_label.n_correct"), "contradict each other"),
    "more labelled ones": (add_one("by_label.n_labelled"), "contradict each other"),
    "a larger bin": (add_one("by_label.histograms"), "contradict each other"),
    "a number beyond int64": (put("by_label.mass", lambda v: v.astype(np.uint64) + np.uint64(1 << 63)), "too large"),
    "classes in disorder": (put("by_label.classes", lambda v: v[::-1]), "contradict each other"),
    "a class too large": (put("by_label.classes", lambda v: v.astype(np.uint32) + np.uint32(1 << 21)), "contradict"),
    "ids in disorder": (put("by_label.sample_ids", lambda v: v[::-1]), "not in order"),
    "other ids": (put("by_label.sample_ids", lambda v: v.astype("S8")), "are |S8"),
    "ids too few": (put("by_label.sample_ids", lambda v: v[1:]), "the ids of a sample"),
    "pairs in disorder": (put("pairs", lambda v: v[::-1]), "not in order"),
    "pairs of three": (put("pairs", lambda v: np.zeros((len(v), 3), np.uint8)), "have the shape"),
    "a bin that is none": (put("top2", lambda v: v + np.array([0, 0, 40], np.uint8)), "not in order"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_whose_numbers_contradict_each_other_is_refused(name: str) -> None:
    change, words = CHANGES[name]
    data = Sums.of(make(80), failures_by_type={"x": 1}, shard=0).to_bytes()
    with pytest.raises(ValueError, match=words):
        Sums.from_bytes(changed(data, change))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 255))
def test_a_file_with_a_flipped_byte_is_read_or_refused(place: int, value: int) -> None:
    data = bytearray(Sums.of(make(10), shard=0).to_bytes())
    data[place % len(data)] = value
    with contextlib.suppress(ValueError):
        Sums.from_bytes(bytes(data))


@pytest.mark.parametrize("data", [b"", b"PK", b"\x93NUMPY", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_file_of_sums_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no \.npz file|holds no sums"):
        Sums.from_bytes(data)


def test_a_file_that_unpacks_to_more_than_allowed_is_not_unpacked() -> None:
    data = npz.write_arrays({"a": np.zeros(1 << 20, np.uint8)})
    assert len(data) < 5000
    with pytest.raises(ValueError, match="1048704 bytes in 1 arrays, and 1000000 may be unpacked"):
        npz.read_arrays(data, 1_000_000)


def test_few_bytes_that_would_be_many_in_memory_are_refused() -> None:
    n = 1 << 20
    zeros = dict.fromkeys(("n", "n_empty", "n_labelled", "n_correct", "confidence", "self_confidence"), 1)
    arrays = {f"by_label.{name}": np.zeros(n, np.uint8) for name in zeros}
    for name in ("mass", "mass_squared", "peaks", "peaks_correct", "exceeding"):
        arrays[f"by_label.{name}"] = np.zeros((n, 1, 1), np.uint8)
    arrays["by_label.histograms"] = np.zeros((n, len(SCALARS), BINS), np.uint8)
    arrays["by_label.classes"] = np.zeros(n, np.uint8)

    def change(found: dict[str, np.ndarray]) -> None:
        found.update(arrays)
        about(grid=[1, 1])(found)

    with pytest.raises(ValueError, match="1048576 classes on a grid of"):
        Sums.from_bytes(changed(Sums.of(make(3, grid=(1, 1))).to_bytes(), change))


@pytest.mark.parametrize(
    "name", ["pairs", "pair_counts", "top2", "top2_counts", "by_label.classes", "by_label.sample_counts"]
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_an_array_of_another_length_is_refused_before_it_takes_more_memory(name: str, is_nested: bool) -> None:
    values = np.zeros((1 << 22, 1) if is_nested else 1 << 22, np.uint8)
    data = changed(Sums.of(make(20), shard=0).to_bytes(), put(name, values))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"have the shape|has the shape|the ids of a sample"):
            Sums.from_bytes(data)
        assert tracemalloc.get_traced_memory()[1] < 14 << 20  # four bytes a number would be 16 MiB more, eight 32
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "columns"), [("pairs", 2), ("top2", 3)])
def test_tables_that_would_be_large_in_memory_are_refused(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 1 << 16
    data = Sums.of(make(20), shard=0).to_bytes()
    data = changed(data, put(name, np.zeros((n, columns), np.uint8)))
    data = changed(data, put(f"{name.removesuffix('s')}_counts", np.zeros(n, np.uint8)))
    with pytest.raises(ValueError, match=f"its {name} are not in order"):
        Sums.from_bytes(data)
    monkeypatch.setattr("pipeline.sums.MAX_BYTES", 1 << 19)
    with pytest.raises(ValueError, match=r"its pairs and top2 take .* bytes in memory, and may take 524288"):
        Sums.from_bytes(data)


HEADERS = {
    "more than is there": "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "columns": "{'descr': '|u1', 'fortran_order': True, 'shape': (1,), }",
    "code": "__import__('os').getcwd()",
}


@pytest.mark.parametrize("name", HEADERS)
def test_an_array_whose_header_lies_is_refused(name: str) -> None:
    header = HEADERS[name].encode().ljust(117) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\x00")
    with pytest.raises(ValueError, match=r"an array (of|is)|no \.npz file|malformed"):
        npz.read_arrays(buffer.getvalue(), 1 << 20)


# Coarser grids


def test_on_a_grid_that_divides_the_old_one_all_but_two_sums_are_exact() -> None:
    fine = make(60, grid=(4, 6), seed=3)
    maps = fine.maps.reshape(60, 2, 2, 3, 2).sum(axis=(2, 4))
    peak = np.where(fine.peak < 0, -1, fine.peak // 6 // 2 * 3 + fine.peak % 6 // 2).astype(np.int32)
    wanted = Sums.of(dataclasses.replace(fine, maps=maps, peak=peak)).by_label
    found = resample(Sums.of(fine), (2, 3)).by_label
    assert np.abs(found.mass - wanted.mass).max() <= 60  # a unit for each image at the most, by rounding
    for name in ("peaks", "peaks_correct", "n", "sample_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert (found.mass_squared >= wanted.mass_squared - 240).all()
    assert (found.exceeding <= wanted.exceeding).all()


def test_on_any_coarser_grid_nothing_is_lost_and_areas_keep_their_place() -> None:
    maps = np.zeros((1, 1, 3), np.float32)
    maps[0, 0] = [0.6, 0.3, 0.1]
    sums = Sums.of(make(1, grid=(1, 3), maps=maps, peak=np.array([0], np.int32), label=np.zeros(1, np.int32)))
    found = resample(sums, (1, 2)).by_label
    np.testing.assert_allclose(found.mass[0, 0] / UNIT, [0.75, 0.25], atol=1e-7)  # half of the middle to either side
    assert found.peaks.tolist() == [[[1, 0]]]


def test_a_finer_grid_is_refused_and_the_same_one_changes_nothing() -> None:
    sums = Sums.of(make(10))
    assert resample(sums, (3, 4)) is sums
    with pytest.raises(ValueError, match=r"grid of \(3, 4\) cells cannot be told on one of \(4, 3\)"):
        resample(sums, (4, 3))
