"""What a job stores of attention and confidence, against the maps and logits that it stores beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline import Record, RunConfig, open_run, parquet, run_job
from pipeline.layout import RunLayout
from pipeline.verify import verify_run
from tests import attention as oracle
from tests.runs import put_file


def _config(photographs: Path, model: str, output: Path, **options: object) -> RunConfig:
    defaults = {"images": (str(photographs / "manifest.jsonl"),), "preprocess": "tf", "jit": "off", "overlays": "none"}
    return RunConfig(**{**defaults, "model": model, "output": str(output), **options})


def _run(photographs: Path, model: str, output: Path, **options: object) -> list[Record]:
    run_job(_config(photographs, model, output, **options), [])
    assert list(verify_run(str(output))) == []
    return list(open_run(output))


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_attention_is_that_of_the_map_beside_it(tmp_path, photographs, tiny_model_path, resize: str) -> None:
    records = _run(photographs, tiny_model_path, tmp_path / "run", resize=resize, methods=("cam",), targets="top:2")
    compared = 0
    for found in (values for record in records for values in record.maps):
        raw = found.array()
        if found.com_x is None:
            assert found.total == 0 or resize == "pad"
            continue
        expected = oracle.describe(raw, found.geometry)
        # The map was rounded to float16 after it was measured: what jumps with a hair of it is told less exactly.
        assert found.peak_cell in np.flatnonzero(raw >= raw.max() * (1 - 1e-3))
        for name in ("com_x", "com_y", "spread", "eff_area", "gini", "border_energy", "border_ratio", "corner_energy"):
            assert getattr(found, name) == pytest.approx(expected[name], rel=2e-3, abs=1e-3), name
        compared += 1
    assert compared >= 13


def test_confidence_is_that_of_the_logits_beside_it(tmp_path, photographs, tiny_model_path) -> None:
    records = _run(photographs, tiny_model_path, tmp_path / "run")
    assert len({record.confidence for record in records}) == 13
    for record in records:
        powers = np.exp(record.logits.astype(np.float64) - record.logits.max())
        shares = powers / powers.sum()
        first, second = np.argsort(-shares)[:2]
        assert (record.predicted, record.runner_up) == (first, second)
        assert record.confidence == pytest.approx(shares[first], rel=1e-4)
        assert record.runner_up_confidence == pytest.approx(shares[second], rel=1e-4)
        assert record.entropy == pytest.approx(-np.sum(shares * np.log(shares)), rel=1e-4)


def test_confidence_is_stored_where_most_logits_are_not(tmp_path, photographs, tiny_model_path) -> None:
    whole = _run(photographs, tiny_model_path, tmp_path / "all")
    best = _run(photographs, tiny_model_path, tmp_path / "best", logits="top:1")
    for known, kept in zip(whole, best, strict=True):
        assert len(kept.logits) == 1
        names = ("predicted", "confidence", "runner_up", "runner_up_confidence", "entropy")
        assert [getattr(kept, name) for name in names] == [getattr(known, name) for name in names]


def test_a_model_of_sigmoids_has_their_confidence(tmp_path, photographs) -> None:
    keras.utils.set_random_seed(5)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(6, 3, strides=4, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    path = str(tmp_path / "model.keras")
    keras.Model(inputs, keras.layers.Dense(3, activation="sigmoid")(x)).save(path)
    for record in _run(photographs, path, tmp_path / "run"):
        probabilities = 1 / (1 + np.exp(-record.logits.astype(np.float64)))
        assert record.confidence == pytest.approx(probabilities.max(), rel=1e-4)
        shares = probabilities / probabilities.sum()
        assert record.entropy == pytest.approx(-np.sum(shares * np.log(shares)), rel=1e-4)


def test_the_maps_of_the_two_best_classes_are_compared_by_method(tmp_path, photographs, tiny_model_path) -> None:
    records = _run(photographs, tiny_model_path, tmp_path / "run", methods=("cam", "layercam"), targets="top:3")
    compared = 0
    for record in records:
        for method in ("cam", "layercam"):
            first, second, third = (values for values in record.maps if values.method == method)
            assert (first.rank, second.rank, third.rank) == (0, 1, 2)
            assert second.top2_cc is third.top2_cc is None
            a, b = (np.maximum(values.array(), 0).ravel() for values in (first, second))
            if first.top2_cc is not None:
                assert first.top2_cc == pytest.approx(np.corrcoef(a, b)[0, 1], abs=2e-3)
                compared += 1
            else:
                assert min(np.ptp(a), np.ptp(b)) == 0
    assert compared >= 13


@pytest.mark.parametrize("targets", ["top:1", "label", "predicted+label"])
def test_without_a_map_of_the_second_best_class_nothing_is_compared(
    tmp_path, photographs, tiny_model_path, targets: str
) -> None:
    records = _run(photographs, tiny_model_path, tmp_path / "run", targets=targets, methods=("cam",))
    compared = [values for record in records for values in record.maps if values.top2_cc is not None]
    both = [r for r in records if targets == "predicted+label" and int(r.label or -1) == r.runner_up]
    assert len(compared) <= len(both)
    assert all(values.rank == 0 for values in compared)
    if targets != "predicted+label":
        assert compared == []


def test_records_of_before_there_was_attention_are_carried_over(tmp_path, photographs, tiny_model_path) -> None:
    _run(photographs, tiny_model_path, tmp_path / "old", shard_size=5)
    layout = RunLayout(str(tmp_path / "old"))
    for shard in range(3):  # as a program would have written them that knew of neither
        uri = layout.uri(layout.records(shard))
        known = parquet.read_metadata(uri)
        records = [_forget(record) for record in parquet.read_records(uri)]
        put_file(tmp_path / "old", shard, "records", parquet.encode_records(records, known))
    found = _run(photographs, tiny_model_path, tmp_path / "new", shard_size=5, since=str(tmp_path / "old"))
    assert len(found) == 13
    assert {(record.confidence, record.maps[0].gini) for record in found} == {(None, None)}
    np.testing.assert_array_equal([record.logits for record in found], [r.logits for r in open_run(tmp_path / "old")])


def _forget(record: Record) -> Record:
    names = {field.name for field in dataclasses.fields(record.maps[0]) if field.default is None}
    maps = tuple(dataclasses.replace(values, **dict.fromkeys(names)) for values in record.maps)
    return dataclasses.replace(record, maps=maps, confidence=None, runner_up=None, runner_up_confidence=None,
                               entropy=None)  # fmt: skip
