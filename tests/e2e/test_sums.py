"""A run's sums: a part beside each shard, their total proven at the end, and the same numbers by hand."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import ConfigError, Run, RunConfig, RunError, open_run, run_job, storage
from pipeline.job import mend_run
from pipeline.layout import RunLayout
from pipeline.observations import read_observations
from pipeline.run import config_of_run
from pipeline.sums import UNIT, Sums
from pipeline.totals import Basis, make_part, read_sums
from pipeline.verify import verify_run
from tests.e2e.test_job import make_config

NAMES = [*"abcde"]


def problems(run: Path) -> list[str]:
    return [problem.sentence for problem in verify_run(str(run))]


@pytest.fixture(scope="module")
def images(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs, one of them broken."""
    folder = tmp_path_factory.mktemp("images") / "images"
    shutil.copytree(photographs, folder)
    sorted(folder.glob("??.*"))[3].write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def config(images: Path, tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return make_config(images, tiny_model_path, tmp_path_factory.mktemp("runs") / "run", methods=("cam", "gradcam"),
                       targets="top:2", batch_size=4, shard_size=5, overlays="none")  # fmt: skip


@pytest.fixture(scope="module")
def whole(config: RunConfig) -> Path:
    run_job(config, [])
    return Path(config.output)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def sums_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "sums").iterdir())}


def make_old(run: Path, shards: list[int]) -> None:
    """Takes out of a run what older programs did not write."""
    for shard in shards:
        path = run / f"shards/{shard:05d}.json"
        marker = json.loads(path.read_text())
        del marker["files"][f"sums/part-{shard:05d}.npz"]
        path.write_text(json.dumps(marker))
        (run / f"sums/part-{shard:05d}.npz").unlink()


def make_whole_run_old(run: Path) -> None:
    make_old(run, [0, 1, 2])
    summary = json.loads((run / "run.json").read_text())
    del summary["sums"]
    (run / "run.json").write_text(json.dumps(summary))
    shutil.rmtree(run / "sums")


def test_a_runs_sums_are_what_counting_its_records_by_hand_gives(whole: Path) -> None:
    sums, records = read_sums(open_run(whole)), list(open_run(whole))
    assert (sums.method, sums.n_images, sums.n_failed, sums.failures_by_type) == ("cam", 12, 1, {"decode:EmptyFile": 1})
    assert sums.shards == ((0, 3),)
    assert sums.count_pairs() == Counter((int(record.label), record.predicted) for record in records)
    for space, key in ((sums.by_label, lambda r: int(r.label)), (sums.by_predicted, lambda r: r.predicted)):
        assert space.classes.tolist() == sorted({key(record) for record in records})
        for row, index in enumerate(space.classes):
            members = [record for record in records if key(record) == index]
            assert space.n[row] == len(members)
            assert space.n_correct[row] == sum(int(r.label) == r.predicted for r in members)
            maps = [np.maximum(record.maps[0].array(), 0).astype(np.float64) for record in members]
            shares = [values / values.sum() for values in maps if values.any()]
            np.testing.assert_allclose(space.mass[row] / UNIT, sum(shares), atol=1e-6)
            peaks = sum((np.arange(v.size) == v.argmax()).reshape(v.shape).astype(int) for v in maps if v.any())
            np.testing.assert_array_equal(space.peaks[row], peaks)
            assert [i.decode() for i in space.sample_ids[row] if i] == sorted(record.id for record in members)
            confidence = sum(float(np.exp(r.logits - r.logits.max()).max() / np.exp(r.logits - r.logits.max()).sum())
                             for r in members)  # fmt: skip
            assert space.confidence[row] / UNIT == pytest.approx(confidence, rel=1e-5)


def test_the_total_is_written_told_and_found_whole(whole: Path) -> None:
    assert sorted(sums_of(whole)) == ["part-00000.npz", "part-00001.npz", "part-00002.npz", "total.npz"]
    parts = [Sums.from_bytes(data) for name, data in sums_of(whole).items() if name != "total.npz"]
    total = Sums.from_bytes(sums_of(whole)["total.npz"])
    joined = dataclasses.replace(Sums.merge(reversed(parts)), parts_digest=total.parts_digest)
    assert joined.to_bytes() == sums_of(whole)["total.npz"]
    assert problems(whole) == []


@pytest.mark.parametrize("shard_size", [1, 4, 100])
def test_sums_do_not_hang_on_how_a_run_is_cut_into_shards(config: RunConfig, whole: Path, tmp_path, shard_size) -> None:
    run_job(dataclasses.replace(config, output=str(tmp_path / "run"), shard_size=shard_size), [])
    one, other = read_sums(open_run(whole)), read_sums(open_run(tmp_path / "run"))
    # A map that is stored in another batch may differ in its last bit, and so a cell's mass in its.
    assert np.abs(one.by_label.mass - other.by_label.mass).max() < 1e-5 * UNIT
    for name in ("n", "n_empty", "n_correct", "peaks", "peaks_correct", "sample_ids"):
        np.testing.assert_array_equal(getattr(one.by_label, name), getattr(other.by_label, name))
    assert one.count_pairs() == other.count_pairs()


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_workers_add_up_to_the_same_bytes(config: RunConfig, whole: Path, tmp_path: Path, mode: str) -> None:
    options = ["--direct_num_workers=2", f"--direct_running_mode={mode}"]
    run_job(dataclasses.replace(config, output=str(tmp_path / "run")), options)
    assert sums_of(tmp_path / "run") == sums_of(whole)


def test_a_part_is_what_its_stored_records_give(whole: Path) -> None:
    layout, run = RunLayout(str(whole)), open_run(whole)
    entries = list(run.manifest())
    basis = Basis.of_run(run.summary)
    for shard in range(3):
        marker = json.loads((whole / layout.marker(shard)).read_text())
        records = list(pq_records(whole, shard))
        again = make_part(shard, entries, records, marker["failures_by_type"], basis)
        assert again == (whole / layout.sums(shard)).read_bytes()


def pq_records(run: Path, shard: int):
    from pipeline import parquet

    return parquet.read_records(str(run / f"records/part-{shard:05d}.parquet"))


def test_another_method_is_summed_up_from_the_records(whole: Path) -> None:
    sums = read_sums(open_run(whole), "gradcam")
    assert (sums.method, sums.n_images, sums.shards) == ("gradcam", 12, ((0, 3),))
    for index in sums.by_predicted.classes:
        maps = [np.maximum(r.maps[2].array(), 0) for r in open_run(whole) if r.predicted == index]
        wanted = np.mean([values / values.sum() for values in maps if values.any()], axis=0)
        np.testing.assert_allclose(sums.by_predicted.mean_map(index), wanted, atol=1e-6)
    with pytest.raises(RunError, match=r"has no maps of 'scorecam': its methods are cam, gradcam"):
        read_sums(open_run(whole), "scorecam")


@pytest.mark.parametrize("shards", [[1], [0, 1, 2]])
def test_runs_of_before_there_were_sums_are_whole_and_give_the_same(run: Path, shards: list[int]) -> None:
    wanted = read_sums(open_run(run))
    if len(shards) == 3:
        make_whole_run_old(run)
    else:
        make_old(run, shards)
    assert problems(run) == []
    assert read_sums(open_run(run)).to_bytes() == wanted.to_bytes()


def test_files_without_the_newer_columns_give_the_same_observations(run: Path) -> None:
    wanted = list(read_observations(open_run(run)))
    for path in (run / "records").iterdir():
        table = pq.read_table(path)
        old = table.select([n for n in table.column_names if n not in ("predicted", "confidence", "runner_up",
                                                                       "runner_up_confidence", "entropy")])  # fmt: skip
        pq.write_table(without_attention(old), path)
    for new, old in zip(wanted, read_observations(open_run(run)), strict=True):
        for name in ("ids", "label", "predicted", "runner_up", "peak", "maps"):
            np.testing.assert_array_equal(getattr(new, name), getattr(old, name))
        for name in ("confidence", "margin", "mistakenness"):
            np.testing.assert_allclose(getattr(new, name), getattr(old, name), atol=1e-5)
        for name, values in new.scalars.items():
            # Maps are stored in float16: what the older file does not say is found from that.
            np.testing.assert_allclose(values, old.scalars[name], atol=2e-3, err_msg=name)


def without_attention(table):
    import pyarrow as pa

    from pipeline.verify.columns import ATTENTION

    lost = {name.removeprefix("maps[].") for name in ATTENTION}
    rows = table.to_pylist()
    for row in rows:
        row["maps"] = [{name: value for name, value in found.items() if name not in lost} for found in row["maps"]]
    kind = table.schema.field("maps").type.value_type
    kept = pa.list_(pa.struct([field for field in kind if field.name not in lost]))
    schema = table.schema.set(table.schema.get_field_index("maps"), pa.field("maps", kept))
    return pa.Table.from_pylist(rows, schema=schema)


def test_a_killed_job_goes_on_to_the_same_total(config: RunConfig, whole: Path, tmp_path, monkeypatch) -> None:
    config = dataclasses.replace(config, output=str(tmp_path / "run"))
    monkeypatch.setattr("pipeline.run.write_total", lambda *_: 1 / 0)  # dies between the graph and run.json
    with pytest.raises(ZeroDivisionError):
        run_job(config, [])
    monkeypatch.undo()
    assert (tmp_path / "run/sums/partial.npz").exists()
    for folder in ("records", "failures", "sums", "shards"):
        for path in (tmp_path / "run" / folder).glob("*00001*"):
            path.unlink()
    run_job(config, [])
    assert sums_of(tmp_path / "run") == sums_of(whole)
    assert problems(tmp_path / "run") == []


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", None])
def test_what_a_job_leaves_for_the_total_is_believed_only_if_it_is_proven(
    config: RunConfig, whole: Path, tmp_path, monkeypatch, content: bytes | None
) -> None:
    def replace(layout: RunLayout, sums: Sums) -> None:
        # Well formed and of the right counts, but of other files: that of a job that ran beside this one, say.
        stale = dataclasses.replace(sums, parts_digest=1).to_bytes()
        storage.write_bytes(layout.uri(layout.PARTIAL), stale if content is None else content)

    monkeypatch.setattr("pipeline.transforms.write_partial", replace)
    run_job(dataclasses.replace(config, output=str(tmp_path / "run")), [])
    assert sums_of(tmp_path / "run") == sums_of(whole)


def test_a_shard_whose_sums_are_gone_is_made_again(run: Path, config: RunConfig, whole: Path) -> None:
    (run / "sums/part-00001.npz").unlink()
    (run / "run.json").unlink()
    summary = run_job(dataclasses.replace(config, output=str(run)), [])
    assert summary["shards_this_time"] == 1
    assert sums_of(run) == sums_of(whole)


def test_images_that_are_tried_again_count_in_the_sums(images: Path, config: RunConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    config = dataclasses.replace(config, images=(str(folder / "manifest.jsonl"),), output=str(tmp_path / "run"))
    run_job(config, [])
    broken, good = sorted(folder.glob("??.*"))[3:5]
    assert broken.suffix
    broken.write_bytes(good.read_bytes())
    mend_run(config_of_run(str(tmp_path / "run")), [])
    sums = read_sums(open_run(tmp_path / "run"))
    assert (sums.n_images, sums.n_failed, sums.failures_by_type) == (13, 0, {})
    assert problems(tmp_path / "run") == []


def test_records_that_are_carried_over_count_in_the_sums(config: RunConfig, whole: Path, tmp_path: Path) -> None:
    summary = run_job(dataclasses.replace(config, output=str(tmp_path / "run"), since=str(whole)), [])
    assert summary["carried"] == 12
    assert sums_of(tmp_path / "run") == sums_of(whole)
    assert problems(tmp_path / "run") == []


def test_overwriting_a_run_overwrites_its_sums(run: Path, config: RunConfig, whole: Path) -> None:
    (run / "sums/part-00099.npz").write_bytes(b"of a larger run")
    run_job(dataclasses.replace(config, output=str(run)), [], overwrite=True)
    assert sums_of(run) == sums_of(whole)


def test_a_folder_of_sums_without_a_run_is_no_output(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "run/sums").mkdir(parents=True)
    (tmp_path / "run/sums/notes.txt").write_text("my own")
    with pytest.raises(ConfigError, match="holds sums but no manifest"):
        run_job(dataclasses.replace(config, output=str(tmp_path / "run")), [])


def test_damaged_sums_are_told_and_do_without(run: Path) -> None:
    wanted = read_sums(open_run(run)).to_bytes()
    for name in ("total", "part-00002"):
        path = run / f"sums/{name}.npz"
        path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")
    found = problems(run)
    assert len(found) == 2
    assert found[0].startswith("sums/part-00002.npz is damaged")
    assert found[1].startswith("sums/total.npz is damaged")
    assert read_sums(open_run(run)).to_bytes() == wanted


def test_a_run_is_read_without_its_total(run: Path) -> None:
    wanted = read_sums(Run(str(run))).to_bytes()
    (run / "sums/total.npz").unlink()
    assert read_sums(Run(str(run))).to_bytes() == wanted
    assert read_sums(RunLayout(str(run))).to_bytes() == wanted


def test_a_run_in_a_store_has_the_sums_of_one_on_a_disk(config: RunConfig, whole: Path) -> None:
    output = "memory:///sums/run"
    try:
        run_job(dataclasses.replace(config, output=output), [])
        names = {uri.rsplit("/", 1)[-1]: uri for uri in storage.list_files(f"{output}/sums")}
        assert {name: storage.read_bytes(uri) for name, uri in names.items()} == sums_of(whole)
        assert list(verify_run(output)) == []
        assert read_sums(open_run(output)).to_bytes() == read_sums(open_run(whole)).to_bytes()
    finally:
        storage.remove_folder(output)
