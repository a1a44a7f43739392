"""`beamcam verify` finds every damage that a run can have, says it in one sentence, and says nothing of a whole run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.cli import main
from pipeline.verify import TOLD, Told, verify_run
from pipeline.verify.columns import ATTENTION, SURENESS
from tests.damages import DAMAGES, FIRST, SECOND
from tests.runs import (
    METHODS,
    FakeRun,
    change_json,
    change_rows,
    change_table,
    encode_table,
    put_file,
    rows_of,
)

GOOD = {
    "as they are": {},
    "without overlays": {"overlays": False},
    "with the best logits": {"logits": "top:2"},
    "with the best logits and no class names": {"logits": "top:2", "has_names": False},
    "with more best logits than classes": {"logits": "top:9"},
    "without class names": {"has_names": False},
    "with maps as uint8": {"map_dtype": "uint8"},
    "with one shard": {"shard_size": 100},
    "with an image a shard": {"shard_size": 1},
    "with shards over several row groups": {"n_images": 9000, "shard_size": 2500, "overlays": False},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images in three shards; the sixth is a failure."""
    path = tmp_path_factory.mktemp("whole") / "run"
    FakeRun(str(path)).write()
    return path


@pytest.fixture
def run(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def found_in(run: Path | str) -> list[str]:
    return [problem.sentence for problem in verify_run(str(run))]


@pytest.mark.parametrize("options", GOOD.values(), ids=GOOD)
def test_a_whole_run_is_whole(tmp_path: Path, options: dict[str, Any]) -> None:
    FakeRun(str(tmp_path / "run"), **options).write()
    assert found_in(tmp_path / "run") == []


def test_a_whole_run_in_an_object_store_is_whole(tmp_path: Path) -> None:
    uri = f"memory:///{tmp_path.name}/run"
    FakeRun(uri).write()
    try:
        assert found_in(uri) == []
        storage.remove_file(f"{uri}/records/part-00001.parquet")
        assert len(found_in(uri)) == 1
    finally:
        storage.remove_folder(uri)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_told_in_its_own_sentence_and_nothing_else_is(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    damage, expected = DAMAGES[name]
    damage(run)
    asked = note_uris(monkeypatch)
    found = found_in(run)
    assert len(found) == len(expected), found
    for sentence, pattern in zip(found, expected, strict=True):
        assert re.fullmatch(pattern, sentence), found
    outside = [uri for uri in asked if not uri.startswith(f"{run}/") or "/../" in uri]
    assert asked
    assert outside == []


def note_uris(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read from here on."""
    asked: list[str] = []
    for name in ("read_bytes", "open_file", "exists"):
        original = getattr(storage, name)

        def noting(uri: str, *rest: Any, original: Callable[..., Any] = original) -> Any:
            asked.append(uri)
            return original(uri, *rest)

        monkeypatch.setattr(storage, name, noting)
    return asked


# Runs that carry records over, and runs of other options


def test_records_carried_over_are_whole_as_long_as_the_run_that_they_are_from(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    FakeRun(str(old)).write()
    FakeRun(str(new), earlier=str(old)).write()
    assert found_in(new) == []
    overlay = rows_of(new / "records/part-00000.parquet")[1]["maps"][0]["overlay"]
    assert overlay.startswith(f"{old}/overlays/")
    Path(overlay).unlink()
    words = "is missing: a record carried over from that run names it, and the run has changed"
    assert found_in(new) == [f"{overlay} {words}"]


def test_only_records_that_the_manifest_knows_from_an_earlier_run_have_overlays_elsewhere(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    FakeRun(str(old)).write()
    FakeRun(str(new), earlier=str(old)).write()
    listed = pq.read_table(new / "manifest.parquet")
    metadata = {k.decode().removeprefix("beamcam."): v.decode() for k, v in listed.schema.metadata.items()}
    none = listed.set_column(5, listed.schema.field(5), pa.nulls(10, pa.int32()))
    (new / "manifest.parquet").write_bytes(encode_table(none, metadata))
    assert [re.sub(r"class \d", "class", words)[:60] for words in found_in(new)] == [
        f"the {method} map of {SECOND} for class names the overlay '{old}"[:60] for method in METHODS
    ]


def test_more_records_with_overlays_elsewhere_than_were_carried_over_are_told(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    FakeRun(str(old)).write()
    FakeRun(str(new), earlier=str(old)).write()
    change_json(new / "shards/00000.json", carried=0)
    change_json(new / "run.json", carried=0)
    assert found_in(new) == ["shard 0 holds 1 records with overlays of an earlier run, and its marker counts 0"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logits": [1.0]}, "the logits of {} are not one a class, nor the best ones with their classes"),
        ({"logit_classes": [1, 2, 3]}, "the logits of {} are not one a class, nor the best ones with their classes"),
        ({"logit_classes": None}, "the logits of {} are not one a class, nor the best ones with their classes"),
        ({"logit_classes": [1, 1]}, "the logits of {} are of a class twice, or of one that the model does not have"),
        ({"logit_classes": [1, 5]}, "the logits of {} are of a class twice, or of one that the model does not have"),
        ({"logit_classes": [-1, 4]}, "the logits of {} are of a class twice, or of one that the model does not have"),
    ],
)
def test_the_best_logits_have_their_classes(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    FakeRun(str(tmp_path), logits="top:2").write()
    change_rows(tmp_path, 0, lambda found: found[0].update(changes))
    assert found_in(tmp_path) == [words.format(FIRST)]


def test_logits_of_another_length_are_told_where_nobody_says_how_many_classes_there_are(tmp_path: Path) -> None:
    FakeRun(str(tmp_path), has_names=False).write()
    change_rows(tmp_path, 1, lambda found: found[0].update(logits=[1.0, 2.0], predicted=1, runner_up=0))
    assert found_in(tmp_path) == ["/photos/0000004.jpg has 2 logits, and the run's first record 5"]


def test_an_overlay_of_a_run_without_overlays_is_told(tmp_path: Path) -> None:
    FakeRun(str(tmp_path), overlays=False).write()
    change_rows(tmp_path, 0, lambda found: found[0]["maps"][0].update(overlay="overlays/x.png"))
    first, second = found_in(tmp_path)
    assert first.endswith("has an overlay, and the run's options ask for none")
    assert second.endswith("names the overlay 'overlays/x.png', which is not its own")


def test_a_map_of_bytes_has_a_byte_a_value(tmp_path: Path) -> None:
    FakeRun(str(tmp_path), map_dtype="uint8", overlays=False).write()
    change_rows(tmp_path, 0, lambda found: found[0]["maps"][0].update(data=b"1234567"))
    assert [words.partition(" class ")[2][2:] for words in found_in(tmp_path)] == [
        "has not as many values as its size says"
    ]


def test_files_of_before_there_were_metrics_are_whole(tmp_path: Path) -> None:
    FakeRun(str(tmp_path)).write()

    def without_metrics(found: pa.Table) -> pa.Table:
        struct = found.schema.field("maps").type.value_type
        kept = pa.list_(pa.struct([field for field in struct if field.name != "metrics"]))
        return pa.Table.from_pylist(
            found.to_pylist(), schema=found.schema.set(found.schema.get_field_index("maps"), pa.field("maps", kept))
        )

    for shard in range(3):
        change_table(tmp_path, shard, without_metrics)
    assert found_in(tmp_path) == []


@pytest.mark.parametrize("logits", ["all", "top:2"])
def test_files_of_before_there_were_attention_and_confidence_are_whole(tmp_path: Path, logits: str) -> None:
    FakeRun(str(tmp_path), logits=logits).write()

    def without(found: pa.Table) -> pa.Table:
        struct = found.schema.field("maps").type.value_type
        older = pa.list_(pa.struct([field for field in struct if f"maps[].{field.name}" not in ATTENTION]))
        fields = [pa.field("maps", older) if field.name == "maps" else field for field in found.schema]
        kept = [field for field in fields if field.name not in SURENESS]
        return pa.Table.from_pylist(found.to_pylist(), schema=pa.schema(kept, found.schema.metadata))

    for shard in range(3):
        change_table(tmp_path, shard, without)
    assert "com_x" not in rows_of(tmp_path / "records/part-00000.parquet")[0]["maps"][0]
    assert found_in(tmp_path) == []


def test_records_of_before_there_were_attention_and_confidence_may_be_carried_over(tmp_path: Path) -> None:
    FakeRun(str(tmp_path)).write()

    def forget(found: list[dict[str, Any]]) -> None:
        found[0].update(dict.fromkeys(SURENESS[1:]))  # the class with the highest logit is known all the same
        found[0]["maps"][0].update(dict.fromkeys(name.removeprefix("maps[].") for name in ATTENTION))

    change_rows(tmp_path, 0, forget)
    assert found_in(tmp_path) == []


@pytest.mark.parametrize(("logits", "wrong"), [("all", 5), ("top:2", 2)])
def test_each_class_but_the_best_is_no_prediction(tmp_path: Path, logits: str, wrong: int) -> None:
    FakeRun(str(tmp_path), logits=logits).write()
    first = rows_of(tmp_path / "records/part-00000.parquet")[0]
    classes = first["logit_classes"] or range(5)
    best = classes[int(np.argmax(first["logits"]))]
    assert len(classes) == wrong
    for other in classes:
        change_rows(tmp_path, 0, lambda found, other=other: found[0].update(predicted=other, runner_up=None,
                                                                            runner_up_confidence=None))  # fmt: skip
        expected = f"the class that {FIRST} is predicted to be is not the one with the highest logit"
        assert found_in(tmp_path) == ([] if other == best else [expected])


# Hostile files


def test_a_file_that_unpacks_to_more_than_memory_is_not_unpacked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.verify.shards.MAX_BYTES", 1_000_000)
    repeated = pa.table({"id": pa.array(["x" * 100] * 4), "logits": pa.array([[0.0] * 100_000] * 4)})
    put_file(run, 0, "records", encode_table(repeated, {}))
    (found,) = found_in(run)
    assert re.match(
        r"records/part-00000\.parquet cannot be read: ValueError: it unpacks to more than 1000000 bytes", found
    )


@pytest.mark.parametrize("seed", range(30))
def test_noise_in_any_file_is_told_and_nothing_breaks(run: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    files = sorted(path for path in run.rglob("*") if path.is_file())
    path = files[rng.integers(0, len(files))]
    data = bytearray(path.read_bytes())
    for _ in range(3):
        data[rng.integers(0, len(data))] ^= int(rng.integers(1, 256))
    path.write_bytes(bytes(data))
    if path.parent.name in ("records", "failures"):  # also where the checksum is made to agree
        put_file(run, int(path.stem[-5:]), path.parent.name, bytes(data))
    elif not path.name.endswith((".json", "manifest.parquet")):
        assert found_in(run)
    for problem in found_in(run):
        assert problem


# What is told, and the exit code


def test_of_many_problems_of_a_kind_a_few_are_told(run: Path) -> None:
    for path in run.glob("overlays/*/*.png"):
        path.unlink()
    (run / "shards/notes.txt").write_bytes(b"")
    told = Told()
    lines = list(told.lines(verify_run(str(run))))
    assert told.total == 19
    assert [line.rsplit(" ", 2)[-2:] for line in lines[:TOLD]] == [["is", "missing"]] * TOLD
    assert lines[TOLD:] == ["shards/notes.txt belongs to no shard: remove it", "and 15 more: overlay is missing"]


def test_problems_are_told_as_they_are_found(run: Path) -> None:
    (run / "shards/00000.json").unlink()
    found = verify_run(str(run))
    assert next(found).sentence.startswith("shards/00000.json cannot be read")
    found.close()


def test_exit_codes_are_for_schedulers(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    assert (
        "9 records, 1 failures, 18 overlays of 10 images: nothing lost, doubled or damaged" in capsys.readouterr().out
    )
    (run / "records/part-00001.parquet").unlink()
    assert main(["verify", str(run)]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("records/part-00001.parquet cannot be read")
    assert told.err.endswith("1 problem found\n")
    (run / "run.json").unlink()
    assert main(["verify", str(run)]) == 1
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "holds no run: neither run.json nor manifest.parquet is there" in capsys.readouterr().err
    assert main(["verify", "nonsense://x/y"]) == 2
    assert "there is no store for nonsense://" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["read_bytes", "walk_files"])
def test_a_store_that_is_away_is_not_a_run_without_problems(
    run: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def away(uri: str, *_: Any) -> Iterator[str]:
        raise TimeoutError(f"no answer from the store for {uri}")

    monkeypatch.setattr("pipeline.verify.run.walk_files" if what == "walk_files" else f"pipeline.storage.{what}", away)
    found = found_in(run)
    assert len(found) == (5 if what == "walk_files" else 1), "each folder is told, and nothing else"
    assert all("TimeoutError: no answer from the store" in words for words in found)
    assert main(["verify", str(run)]) == 1


def test_a_store_that_goes_away_half_way_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = storage.read_bytes

    def flaky(uri: str, *rest: Any) -> bytes:
        if "part-00001" in uri or "-scorecam-" in uri:
            raise ConnectionResetError("reset")
        return original(uri, *rest)

    monkeypatch.setattr(storage, "read_bytes", flaky)
    found = found_in(run)
    assert len([words for words in found if words.endswith(".png cannot be read: ConnectionResetError: reset")]) == 6
    assert (
        len([words for words in found if "part-00001.parquet cannot be read: ConnectionResetError: reset" in words])
        == 2
    )
    assert len(found) == 8
