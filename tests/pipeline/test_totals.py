"""A run's sums on disk, and what `beamcam verify` says of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pipeline import RunError, open_run, parquet, storage
from pipeline.layout import RunLayout
from pipeline.patience import UnavailableError
from pipeline.sums import Sums
from pipeline.totals import Basis, contradiction, digest_of_parts, gather, make_part, read_part, read_sums, write_total
from pipeline.transforms import SumsCombineFn
from pipeline.verify import verify_run
from tests.runs import FakeRun, change_json

BASIS = Basis("gradcam", tuple("abcde"), None)


def add_sums(run: Path, shards: range = range(3)) -> None:
    """What a job writes beside records, to a run of 20 images in 3 shards."""
    layout = RunLayout(str(run))
    for shard in shards:
        path = layout.marker(shard)
        marker = json.loads((run / path).read_text())
        records = parquet.read_records(layout.uri(layout.records(shard)))
        entries = parquet.read_manifest_shard(layout.uri(layout.MANIFEST), shard)
        data = make_part(shard, entries, records, marker["failures_by_type"], BASIS)
        storage.write_bytes(layout.uri(layout.sums(shard)), data)
        change_json(run / path, files=marker["files"] | {layout.sums(shard): told(data)})
    change_json(run / "run.json", sums={"method": "gradcam"} | write_total(layout, markers(run), BASIS))


def told(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def markers(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((run / "shards").iterdir())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    FakeRun(str(path), n_images=20, shard_size=8, overlays=False).write()
    add_sums(path)
    return path


@pytest.fixture
def run(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def put_part(run: Path, shard: int, data: bytes) -> None:
    """Another file of sums, with a marker that agrees."""
    name = f"sums/part-{shard:05d}.npz"
    (run / name).write_bytes(data)
    path = run / f"shards/{shard:05d}.json"
    change_json(path, files=json.loads(path.read_text())["files"] | {name: told(data)})


def put_total(run: Path, data: bytes) -> None:
    (run / "sums/total.npz").write_bytes(data)
    change_json(run / "run.json", sums={"method": "gradcam"} | told(data))


def change_part(change: Callable[[Sums], Sums]) -> Callable[[Path], object]:
    return lambda run: put_part(run, 1, change(Sums.from_bytes((run / "sums/part-00001.npz").read_bytes())).to_bytes())


def claiming(run: Path, shards: tuple[tuple[int, int], ...]) -> bytes:
    """Shard 1's part, as if it were of others."""
    sums = Sums.from_bytes((run / "sums/part-00001.npz").read_bytes())
    return dataclasses.replace(sums, shards=shards).to_bytes()


def swap(run: Path) -> None:
    """Shard 1's sums under shard 2's name."""
    put_part(run, 2, (run / "sums/part-00001.npz").read_bytes())


def of_another_map(run: Path) -> None:
    """Well formed, of the right images, and of other maps than the total."""
    sums = Sums.from_bytes((run / "sums/part-00000.npz").read_bytes())
    flipped = dataclasses.replace(
        sums.by_label, peaks=sums.by_label.peaks[:, ::-1], peaks_correct=sums.by_label.peaks * 0
    )
    put_part(run, 0, dataclasses.replace(sums, by_label=flipped).to_bytes())


def on_another_grid(run: Path) -> None:
    sums = Sums.from_bytes((run / "sums/part-00000.npz").read_bytes())
    changed = {}
    for space in ("by_label", "by_predicted"):
        old = getattr(sums, space)
        nothing = {n: getattr(old, n)[:, :1, :1] * 0 for n in ("peaks_correct", "exceeding", "mass_squared")}
        full = {n: getattr(old, n).sum(axis=(1, 2), keepdims=True) for n in ("peaks", "mass")}
        changed[space] = dataclasses.replace(old, **nothing, **full)
    put_part(run, 0, dataclasses.replace(sums, grid=(1, 1), **changed).to_bytes())


AGAIN = "remove shards/00001.json, and the same `beamcam run` makes that shard again"
TOTAL = "remove run.json, and the same `beamcam run` writes it again"

DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a part is cut off": (
        lambda run: (run / "sums/part-00001.npz").write_bytes((run / "sums/part-00001.npz").read_bytes()[:-9]),
        [rf"sums/part-00001.npz is damaged: \d+ bytes of another checksum than its shard's marker says .*: {AGAIN}"],
    ),
    "a part is missing": (
        lambda run: (run / "sums/part-00001.npz").unlink(),
        [rf"sums/part-00001.npz cannot be read: FileNotFoundError: {AGAIN}"],
    ),
    "a part is no part, and its marker agrees": (
        lambda run: put_part(run, 1, b"nonsense"),
        [rf"sums/part-00001.npz cannot be read: ValueError: it is no .npz file, or a damaged one: .*: {AGAIN}"],
    ),
    "a part counts other images": (
        change_part(
            lambda sums: dataclasses.replace(sums, n_images=sums.n_images + 1, n_unlabelled=sums.n_unlabelled + 1)
        ),
        [rf"sums/part-00001.npz and its shard's marker disagree about images: 8 and 7: {AGAIN}"],
    ),
    "a part counts other failures": (
        change_part(lambda sums: dataclasses.replace(sums, failures_by_type={"x": 1})),
        [rf"sums/part-00001.npz and its shard's marker disagree about failures: .*: {AGAIN}"],
    ),
    "a part is another shard's": (
        swap,
        [r"sums/part-00002.npz and its shard's marker disagree about shards: \(\(1, 2\),\) and \(\(2, 3\),\): .*"],
    ),
    "a part that claims very many shards": (
        lambda run: put_part(run, 1, claiming(run, ((0, 1 << 52),))),
        [rf"sums/part-00001.npz and its shard's marker disagree about shards: \(\(0, 4503.*\(\(1, 2\),\): {AGAIN}"],
    ),
    "a part of other maps": (of_another_map, [rf"sums/total.npz is not the sum of the shards' sums: {TOTAL}"]),
    "a part on another grid": (
        on_another_grid,
        [rf"sums/total.npz is not the sum of the shards' sums: {TOTAL}"],
    ),
    "the total is missing": (
        lambda run: (run / "sums/total.npz").unlink(),
        [rf"sums/total.npz cannot be read: FileNotFoundError: {TOTAL}"],
    ),
    "the total is cut off": (
        lambda run: (run / "sums/total.npz").write_bytes((run / "sums/total.npz").read_bytes()[:-1]),
        [rf"sums/total.npz is damaged: \d+ bytes of another checksum than run.json says of \d+: {TOTAL}"],
    ),
    "the total is of one shard": (
        lambda run: put_total(run, (run / "sums/part-00000.npz").read_bytes()),
        [rf"sums/total.npz is not the sum of the shards' sums: {TOTAL}"],
    ),
    "run.json says nothing of the total": (
        lambda run: (run / "run.json").write_text(
            json.dumps({k: v for k, v in json.loads((run / "run.json").read_text()).items() if k != "sums"})
        ),
        ["sums/total.npz belongs to no shard: remove it"],
    ),
    "run.json says nonsense of the total": (
        lambda run: change_json(run / "run.json", sums=5),
        [r"run.json is damaged: its sums is the bytes and sha256 of the total of all sums, not 5: .*"],
    ),
    "a part of no shard": (
        lambda run: (run / "sums/part-00099.npz").write_bytes(b""),
        ["sums/part-00099.npz belongs to no shard: remove it"],
    ),
    "the total is no total, and run.json agrees": (
        lambda run: put_total(run, b"nonsense"),
        [rf"sums/total.npz cannot be read: ValueError: it is no .npz file, or a damaged one: .*: {TOTAL}"],
    ),
    "what a job left for the total, and a stranger beside it": (
        lambda run: [(run / f"sums/{name}.npz").write_bytes(b"") for name in ("partial", "partial2")],
        ["sums/partial2.npz belongs to no shard: remove it"],
    ),
}


def test_a_run_with_sums_is_whole(whole: Path) -> None:
    assert list(verify_run(str(whole))) == []


def test_a_total_that_another_machine_compressed_is_whole(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "sums/total.npz").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.npz.LEVEL", 9)
        data = Sums.from_bytes(before).to_bytes()
    assert data != before
    put_total(run, data)
    assert list(verify_run(str(run))) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_of_sums_is_told_in_its_own_sentence_and_nothing_else_is(run: Path, name: str) -> None:
    damage, patterns = DAMAGES[name]
    damage(run)
    found = [problem.sentence for problem in verify_run(str(run))]
    assert len(found) == len(patterns), found
    for sentence, pattern in zip(found, patterns, strict=True):
        assert re.fullmatch(pattern, sentence), found


def test_a_part_that_an_older_marker_does_not_name_is_a_stranger(run: Path) -> None:
    path = run / "shards/00001.json"
    files = json.loads(path.read_text())["files"]
    del files["sums/part-00001.npz"]
    change_json(path, files=files)
    assert [p.sentence for p in verify_run(str(run))] == ["sums/part-00001.npz belongs to no shard: remove it"]


# Reading


@pytest.mark.parametrize(
    "name",
    ["a part is cut off", "a part is missing", "a part is no part, and its marker agrees", "the total is missing",
     "the total is cut off", "the total is of one shard", "a part is another shard's",
     "a part that claims very many shards"],
)  # fmt: skip
def test_sums_are_read_past_what_is_damaged(run: Path, whole: Path, name: str) -> None:
    wanted = read_sums(open_run(whole))
    DAMAGES[name][0](run)
    if name.startswith("a part"):
        (run / "sums/total.npz").unlink()
    found = read_sums(open_run(run))
    is_other_file = name in ("a part is no part, and its marker agrees", "a part is another shard's",
                             "a part that claims very many shards")  # fmt: skip
    assert (found.parts_digest == wanted.parts_digest) or is_other_file
    assert (
        dataclasses.replace(found, parts_digest=0).to_bytes() == dataclasses.replace(wanted, parts_digest=0).to_bytes()
    )


def test_sums_that_count_other_images_than_markers_are_refused(run: Path) -> None:
    DAMAGES["a part counts other images"][0](run)
    (run / "sums/total.npz").unlink()
    with pytest.raises(RunError, match=r"its markers disagree about images: 18 and 17: `beamcam verify .*` tells what"):
        read_sums(open_run(run))


def test_sums_that_claim_very_many_shards_are_compared_without_counting_them(run: Path) -> None:
    sums = Sums.from_bytes(claiming(run, ((0, 1 << 52),)))
    words = contradiction(sums, markers(run))
    assert words == "shards: ((0, 4503599627370496),) and ((0, 3),)"
    layout = RunLayout(str(run))
    wanted = (run / "sums/total.npz").read_bytes()
    storage.write_bytes(layout.uri(layout.PARTIAL), sums.to_bytes())
    write_total(layout, markers(run), BASIS)
    assert (run / "sums/total.npz").read_bytes() == wanted


def test_a_part_of_another_method_is_computed_anew(run: Path, whole: Path) -> None:
    change_part(lambda sums: dataclasses.replace(sums, method="scorecam"))(run)
    (run / "sums/total.npz").unlink()
    found = read_sums(open_run(run))
    assert found.method == "gradcam"
    np.testing.assert_array_equal(found.by_label.mass, read_sums(open_run(whole)).by_label.mass)


def test_parts_on_different_grids_are_told_in_one_line(run: Path) -> None:
    on_another_grid(run)
    (run / "sums/total.npz").unlink()
    words = (
        r"the sums of the run in '.*' do not add up: sums of different methods \(gradcam\) or grids .*: `beamcam verify"
    )
    with pytest.raises(RunError, match=words) as told:
        read_sums(open_run(run))
    assert "\n" not in str(told.value)
    with pytest.raises(RunError, match=words):
        write_total(RunLayout(str(run)), markers(run), BASIS)


@pytest.mark.parametrize("names", [5, "abcde", {"a": 1}, [1, 2], [["a"]], False])
def test_class_names_that_are_none_are_told_in_one_line(run: Path, names: Any) -> None:
    opened = open_run(run)
    change_json(run / "run.json", class_names=names)
    with pytest.raises(RunError, match=r"^run\.json is damaged: its class_names is a list of words, or null, not "):
        read_sums(RunLayout(opened.path))


@pytest.mark.parametrize("shards", ["x", {}, -1, 3.0, True, [3]])
def test_shards_that_are_no_number_are_told_in_one_line(run: Path, shards: Any) -> None:
    change_json(run / "run.json", shards=shards)
    with pytest.raises(RunError, match=r"^run\.json is damaged: its shards is a whole number, not "):
        read_sums(RunLayout(str(run)))


def test_a_run_json_without_a_configuration_is_told_in_one_line(run: Path) -> None:
    summary = json.loads((run / "run.json").read_text())
    del summary["config"]
    (run / "run.json").write_text(json.dumps(summary))
    with pytest.raises(RunError, match="does not say by what methods"):
        read_sums(RunLayout(str(run)))


def test_a_store_that_is_away_is_no_missing_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = storage.read_bytes

    def away(uri: str, limit: int | None = None) -> bytes:
        if uri.endswith(".npz"):
            raise UnavailableError(f"no answer for {uri}")
        return original(uri, limit)

    monkeypatch.setattr(storage, "read_bytes", away)
    with pytest.raises(UnavailableError):
        read_sums(open_run(run))


def test_a_part_of_a_shard_without_one_is_computed_and_bears_the_digest_that_its_file_would_have(run: Path) -> None:
    layout, marker = RunLayout(str(run)), markers(run)[1]
    stored = read_part(layout, marker, BASIS)
    del marker["files"][layout.sums(1)]
    assert read_part(layout, marker, BASIS).to_bytes() == stored.to_bytes()


# The total


def test_a_total_is_of_every_shard_whatever_was_added_up_before(run: Path, whole: Path) -> None:
    wanted, layout = (whole / "sums/total.npz").read_bytes(), RunLayout(str(run))
    parts = [read_part(layout, marker, BASIS) for marker in markers(run)]
    for begun in ([], [0], [1], [0, 2], [2, 1, 0]):
        if begun:
            partial = Sums.merge(parts[i] for i in begun)
            storage.write_bytes(layout.uri(layout.PARTIAL), partial.to_bytes())
        said = write_total(layout, markers(run), BASIS)
        assert (run / "sums/total.npz").read_bytes() == wanted
        assert said == {"method": "gradcam"} | told(wanted)
        assert not (run / "sums/partial.npz").exists()


def test_what_was_added_up_before_is_not_read_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = RunLayout(str(run))
    partial = Sums.merge(read_part(layout, marker, BASIS) for marker in markers(run)[:2])
    storage.write_bytes(layout.uri(layout.PARTIAL), partial.to_bytes())
    asked: list[str] = []
    original = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri, *rest: asked.append(uri) or original(uri, *rest))
    write_total(layout, markers(run), BASIS)
    assert sorted(uri.rsplit("/", 1)[-1] for uri in asked) == ["part-00002.npz", "partial.npz", "total.npz"]


def test_a_total_is_written_where_nothing_may_be_removed_or_written_over(
    run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, create, tried = RunLayout(str(run)), storage.write_bytes, []
    partial = Sums.merge(read_part(layout, marker, BASIS) for marker in markers(run)[:2])
    storage.write_bytes(layout.uri(layout.PARTIAL), partial.to_bytes())

    def refuse(uri: str) -> None:
        tried.append(uri)
        assert storage.exists(layout.uri(layout.TOTAL)), "what it is added up from must stay until it is there"
        raise PermissionError(f"{uri}: storage.objects.delete denied")

    def create_only(uri: str, data: bytes) -> None:
        if storage.exists(uri):
            raise PermissionError(f"{uri}: storage.objects.delete denied")
        create(uri, data)

    monkeypatch.setattr(storage, "remove_file", refuse)
    monkeypatch.setattr(storage, "write_bytes", create_only)
    (run / "sums/total.npz").unlink()
    for _ in range(2):
        said = write_total(layout, markers(run), BASIS)
        assert said == {"method": "gradcam"} | told((whole / "sums/total.npz").read_bytes())
        assert (run / "sums/total.npz").read_bytes() == (whole / "sums/total.npz").read_bytes()
    assert tried == [layout.uri(layout.PARTIAL)] * 2
    assert list(verify_run(str(run))) == []
    (run / "sums/total.npz").write_bytes(b"something else")
    with pytest.raises(PermissionError):
        write_total(layout, markers(run), BASIS)


STALE: dict[str, Callable[[Sums], Sums]] = {
    "other files": lambda sums: dataclasses.replace(sums, parts_digest=sums.parts_digest ^ 1),
    "another method": lambda sums: dataclasses.replace(sums, method="scorecam(channels=32)"),
    "shards that are none": lambda sums: dataclasses.replace(sums, shards=((0, 9),)),
    "other shards": lambda sums: dataclasses.replace(sums, shards=((1, 3),)),
}


@pytest.mark.parametrize("name", STALE)
def test_what_is_not_proven_is_added_up_anew(run: Path, whole: Path, name: str) -> None:
    layout = RunLayout(str(run))
    partial = STALE[name](Sums.merge(read_part(layout, marker, BASIS) for marker in markers(run)[:2]))
    storage.write_bytes(layout.uri(layout.PARTIAL), partial.to_bytes())
    write_total(layout, markers(run), BASIS)
    assert (run / "sums/total.npz").read_bytes() == (whole / "sums/total.npz").read_bytes()


def test_no_shard_at_all_has_a_total_too(tmp_path: Path) -> None:
    layout = RunLayout(str(tmp_path))
    write_total(layout, [], BASIS)
    assert Sums.from_bytes((tmp_path / "sums/total.npz").read_bytes()).n_images == 0


def test_sums_gather_to_few_and_to_the_same_total(whole: Path) -> None:
    layout = RunLayout(str(whole))
    one = read_part(layout, markers(whole)[0], BASIS)
    waiting: list[Sums] = []
    for shard in range(100):
        waiting = gather(waiting, [dataclasses.replace(one, shards=((shard, shard + 1),))])
        assert len(waiting) < 33
    total = Sums.merge(waiting)
    assert (total.n_images, total.shards) == (100 * one.n_images, ((0, 100),))
    np.testing.assert_array_equal(total.by_label.mass, 100 * one.by_label.mass)


def test_what_workers_have_added_up_is_merged_two_at_a_time(whole: Path) -> None:
    one = read_part(RunLayout(str(whole)), markers(whole)[0], BASIS)
    seen: list[weakref.ref[Sums]] = []
    most = 0

    def arrive() -> Iterator[list[Sums]]:
        nonlocal most
        for shard in range(40):
            sums = dataclasses.replace(one, shards=((shard, shard + 1),))
            seen.append(weakref.ref(sums))
            most = max(most, sum(ref() is not None for ref in seen))
            yield [sums]

    combine = SumsCombineFn(cast(Any, None), BASIS)
    (total,) = combine.merge_accumulators(arrive())
    assert most <= 3
    assert (total.n_images, total.shards) == (40 * one.n_images, ((0, 40),))
    np.testing.assert_array_equal(total.by_label.mass, 40 * one.by_label.mass)
    assert combine.merge_accumulators([[], []]) == []
    assert combine.extract_output([]).to_bytes() == Sums.empty("gradcam").to_bytes()


def test_parts_are_told_by_the_sum_of_their_digests(whole: Path) -> None:
    layout, found = RunLayout(str(whole)), markers(whole)
    total = Sums.from_bytes((whole / "sums/total.npz").read_bytes())
    wanted = sum(int(told((whole / layout.sums(i)).read_bytes())["sha256"], 16) for i in range(3)) % 2**256
    assert digest_of_parts(layout, found) == total.parts_digest == wanted
    del found[1]["files"][layout.sums(1)]
    assert digest_of_parts(layout, found) is None
    assert contradiction(total, found) is None


@pytest.mark.parametrize("change", [{"files": []}, {"files": 3}, {"failures_by_type": []}, {"shard": 7}, {"shard": "1"},
                                    {"failures_by_type": {"x": "1"}}, {"records": "7"}])  # fmt: skip
def test_hostile_markers_are_told_in_one_line(run: Path, change: dict[str, Any]) -> None:
    (run / "sums/total.npz").unlink()
    change_json(run / "shards/00001.json", **change)
    with pytest.raises(RunError, match=r"shards/00001\.json of .* is damaged: it is no marker of its shard"):
        read_sums(open_run(run))


def test_a_run_that_counts_more_shards_than_it_has_is_not_walked_to_the_end(run: Path) -> None:
    change_json(run / "run.json", shards=10**15)
    with pytest.raises(RunError, match=r"shards/00003\.json of .* cannot be read: FileNotFoundError"):
        read_sums(open_run(run))


@pytest.mark.parametrize("told", [3, {}, {"sha256": 5}])
def test_what_run_json_or_a_marker_says_of_a_file_is_not_believed(run: Path, whole: Path, told: Any) -> None:
    files = markers(run)[1]["files"]
    change_json(run / "run.json", sums=told)
    change_json(run / "shards/00001.json", files=files | {"sums/part-00001.npz": told})
    assert read_sums(open_run(run)).to_bytes() == read_sums(open_run(whole)).to_bytes()
