"""Incremental nights: what is known is not computed again, and what comes out is what a full run would have written."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import ConfigError, RunConfig, RunError, open_run, run_job, storage
from pipeline.cli import main
from pipeline.job import describe_cause, mend_run
from pipeline.layout import RunLayout
from pipeline.run import config_of_run
from pipeline.verify import verify_run
from pipeline.worker import Worker


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(14):
        make_picture(folder / f"{i:02d}.png", i)
    return folder


def make_picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def config(images, tiny_model_path, tmp_path) -> RunConfig:
    return RunConfig((str(images),), tiny_model_path, str(tmp_path / "old"), preprocess="tf", jit="off", shard_size=5,
                     batch_size=4)  # fmt: skip


@pytest.fixture
def explained(monkeypatch) -> list[int]:
    """The number of images of every batch that the model sees from now on."""
    sizes: list[int] = []
    explain = Worker.explain

    def counting(self, images, targets):
        sizes.append(len(images))
        return explain(self, images, targets)

    monkeypatch.setattr(Worker, "explain", counting)
    return sizes


def rows(run: str) -> list[dict]:
    """A run's records as plain values, but for where their overlays are."""
    table = open_run(run).to_arrow().to_pylist()
    for row in table:
        for values in row["maps"]:
            values["overlay"] = Path(values["overlay"]).name
    return table


def assert_same_results(some: list[dict], others: list[dict]) -> None:
    """The same but for the last bits, which depend on an image's place in its batch."""
    for one, other in zip(some, others, strict=True):
        for name in ("id", "uri", "content_sha256", "label", "width", "height", "view"):
            assert one[name] == other[name]
        np.testing.assert_allclose(one["logits"], other["logits"], rtol=1e-5, atol=1e-6)
        for values, others_values in zip(one["maps"], other["maps"], strict=True):
            for name in ("method", "target", "rank", "height", "width", "dtype", "overlay"):
                assert values[name] == others_values[name]
            assert values["total"] == pytest.approx(others_values["total"], rel=1e-4)


def as_new(config: RunConfig, name: str, **changes) -> RunConfig:
    return dataclasses.replace(config, output=str(Path(config.output).parent / name), **changes)


def test_only_what_is_new_or_changed_is_explained_and_the_run_is_whole(config, images, explained) -> None:
    (images / "03.png").write_bytes(b"")
    assert run_job(config, [])["failures"] == 1
    assert sum(explained) == 13
    make_picture(images / "01.png", 101)  # changed
    make_picture(images / "03.png", 3)  # mended
    make_picture(images / "05b.png", 55)  # new, which shifts the shards
    (images / "08.png").unlink()  # gone
    explained.clear()
    summary = run_job(as_new(config, "new", since=config.output), [])
    assert sum(explained) == 3
    assert (summary["inputs"], summary["records"], summary["carried"], summary["failures"]) == (14, 14, 11, 0)
    full = run_job(as_new(config, "full"), [])
    assert full["carried"] == 0
    assert_same_results(rows(summary["config"]["output"]), rows(full["config"]["output"]))
    before = {row["uri"]: row for row in rows(config.output)}
    changed = ("01.png", "03.png", "05b.png")
    for row in rows(summary["config"]["output"]):
        assert Path(row["uri"]).name in changed or row == before[row["uri"]]
    assert list(verify_run(summary["config"]["output"])) == []
    new = open_run(summary["config"]["output"])
    overlays = {Path(record.uri).name: record.maps[0].overlay for record in new}
    for name, overlay in overlays.items():
        assert overlay.startswith(f"{config.output}/overlays/") == (name not in changed)
        there = Path(full["config"]["output"], "overlays", Path(overlay).parent.name, Path(overlay).name)
        assert name in changed or new.read_overlay(overlay) == there.read_bytes()


def test_carried_records_are_carried_on_from_where_they_first_were(config, explained) -> None:
    run_job(config, [])
    second = as_new(config, "second", since=config.output)
    run_job(second, [])
    third = as_new(config, "third", since=second.output)
    explained.clear()
    assert run_job(third, [])["carried"] == 14
    assert explained == []
    assert {record.maps[0].overlay.split("/overlays/")[0] for record in open_run(third.output)} == {config.output}
    assert rows(third.output) == rows(config.output)
    assert list(verify_run(third.output)) == []


def test_another_label_is_another_image(config, images, tmp_path, explained) -> None:
    manifest = tmp_path / "m.jsonl"

    def write(labels: list) -> None:
        names = sorted(path.name for path in images.iterdir())[: len(labels)]
        lines = [
            json.dumps({"uri": f"images/{name}", "label": label}) for name, label in zip(names, labels, strict=True)
        ]
        manifest.write_text("\n".join(lines))

    write(["1", "2", None])
    config = dataclasses.replace(config, images=(str(manifest),), targets="predicted+label")
    run_job(config, [])
    write(["1", "3", None])
    explained.clear()
    new = as_new(config, "new", since=config.output)
    assert run_job(new, [])["carried"] == 2
    assert sum(explained) == 1
    assert [record.label for record in open_run(new.output)] == ["1", "3", None]
    assert {values.target for record in open_run(new.output) if record.label == "3" for values in record.maps} >= {3}


def test_a_run_that_broke_off_serves_as_far_as_it_came(config, explained) -> None:
    run_job(config, [])
    for name in ("run.json", "shards/00001.json", "records/part-00001.parquet"):
        Path(config.output, name).unlink()
    Path(config.output, "records/part-00002.parquet").write_bytes(b"PAR1 damaged")
    explained.clear()
    new = as_new(config, "new", since=config.output)
    assert run_job(new, [])["carried"] == 5
    assert sum(explained) == 9
    assert list(verify_run(new.output)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("cam",)}, r"another configuration \(--methods was \['gradcam'\] and is \['cam'\]\)"),
        ({"overlays": "none"}, r"--overlays was 'blend' and is 'none'"),
        ({"since": "nowhere"}, r"--since 'nowhere' names no run: leave it out the first time"),
    ],
)
def test_runs_that_do_not_agree_are_refused_with_the_difference(config, changes, message) -> None:
    run_job(config, [])
    new = as_new(config, "new", **{"since": config.output, **changes})
    with pytest.raises(ConfigError, match=message):
        run_job(new, [])
    assert not Path(new.output).exists()


def test_another_model_is_refused(config, tmp_path, tiny_model_path) -> None:
    import keras

    run_job(config, [])
    model = keras.saving.load_model(tiny_model_path)
    model.set_weights([weight * 1.01 for weight in model.get_weights()])
    model.save(tmp_path / "other.keras")
    shutil.copy(tmp_path / "other.keras", tmp_path / "model.keras")
    with pytest.raises(ConfigError, match=r"--model was|model digest has changed"):
        run_job(as_new(config, "new", since=config.output, model=str(tmp_path / "model.keras")), [])


def test_shards_of_another_size_are_no_hindrance(config, explained) -> None:
    run_job(config, [])
    explained.clear()
    new = as_new(config, "new", since=config.output, shard_size=3)
    assert run_job(new, [])["carried"] == 14
    assert explained == []
    assert rows(new.output) == rows(config.output)


def test_a_job_with_since_goes_on_where_it_was_killed(config, explained) -> None:
    run_job(config, [])
    new = as_new(config, "new", since=config.output)
    run_job(new, [])
    before = [Path(new.output, f"records/part-0000{i}.parquet").read_bytes() for i in range(3)]
    for name in ("run.json", "shards/00001.json"):
        Path(new.output, name).unlink()
    explained.clear()
    run_job(new, [])
    assert explained == []
    assert [Path(new.output, f"records/part-0000{i}.parquet").read_bytes() for i in range(3)] == before
    with pytest.raises(ConfigError, match=r"begun since '.*old', and not since '.*elsewhere'"):
        run_job(dataclasses.replace(new, since=f"{config.output}/elsewhere"), [])


# --retry-failures


def test_failures_are_tried_again_in_place_and_nothing_else_is(config, images, explained) -> None:
    (images / "03.png").write_bytes(b"")
    (images / "12.png").write_bytes(b"")
    (images / "13.png").write_text("hello")
    run_job(config, [])
    make_picture(images / "03.png", 3)
    make_picture(images / "12.png", 12)
    make_picture(images / "04.png", 444)  # changed meanwhile: its record stays
    untouched = Path(config.output, "records/part-00001.parquet")
    before = untouched.stat()
    kept = {row["uri"]: row for row in rows(config.output)}
    explained.clear()
    summary = mend_run(config_of_run(config.output), [])
    assert sum(explained) == 2
    assert (summary["records"], summary["failures"]) == (13, 1)
    assert summary["failures_by_type"] == {"decode:NotAnImage": 1}
    after = untouched.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(verify_run(config.output)) == []
    mended = {row["uri"]: row for row in rows(config.output)}
    assert {uri: mended[uri] for uri in kept} == kept
    assert {Path(uri).name for uri in set(mended) - set(kept)} == {"03.png", "12.png"}
    assert [record.uri for record in open_run(config.output)] == sorted(mended)
    full = run_job(as_new(config, "full"), [])
    again = {row["uri"]: row for row in rows(full["config"]["output"])}
    for uri in set(mended) - set(kept):
        assert_same_results([mended[uri]], [again[uri]])


def test_a_retry_that_was_killed_goes_on(config, images, explained) -> None:
    (images / "03.png").write_bytes(b"")
    run_job(config, [])
    make_picture(images / "03.png", 3)
    for name in ("run.json", "shards/00000.json"):  # killed after it had opened the shard again
        Path(config.output, name).unlink()
    explained.clear()
    assert mend_run(config_of_run(config.output), [])["records"] == 14
    assert sum(explained) == 1
    assert list(verify_run(config.output)) == []


def test_a_record_whose_overlay_is_gone_is_made_again(config, images, explained) -> None:
    (images / "03.png").write_bytes(b"")
    run_job(config, [])
    first = next(iter(open_run(config.output)))
    overlay = Path(config.output, first.maps[0].overlay)
    content = overlay.read_bytes()
    overlay.unlink()
    explained.clear()
    mend_run(config_of_run(config.output), [])
    assert explained == [1]
    assert overlay.read_bytes() == content
    assert list(verify_run(config.output)) == []


def test_a_run_without_failures_has_nothing_to_retry(config, explained) -> None:
    run_job(config, [])
    before = {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}
    explained.clear()
    said: list[str] = []
    assert mend_run(config_of_run(config.output), [], say=said.append)["records"] == 14
    assert (explained, len(said)) == ([], 1)
    assert {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")} == before


def test_failures_of_an_incremental_run_are_retried_with_carried_records_kept(config, images, explained) -> None:
    run_job(config, [])
    (images / "03.png").write_bytes(b"")
    new = as_new(config, "new", since=config.output)
    assert run_job(new, [])["failures"] == 1
    make_picture(images / "03.png", 300)
    explained.clear()
    summary = mend_run(config_of_run(new.output), [])
    assert explained == [1]
    assert (summary["records"], summary["overlays"]) == (14, 1)
    assert list(verify_run(new.output)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "top:2"}, r"another configuration \(--targets was 'top:1' and is 'top:2'\)"),
        ({"output": "nowhere"}, "there is no run in 'nowhere'"),
    ],
)
def test_a_retry_is_of_the_runs_own_configuration(config, changes, message) -> None:
    run_job(config, [])
    with pytest.raises(ConfigError, match=message):
        mend_run(dataclasses.replace(config_of_run(config.output), **changes), [])
    assert list(verify_run(config.output)) == []


def test_a_damaged_file_of_records_is_made_anew_and_costs_no_other_shard(config, images, explained) -> None:
    (images / "03.png").write_bytes(b"")
    (images / "12.png").write_bytes(b"")
    run_job(config, [])
    part = Path(config.output, "records/part-00000.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    part.write_bytes(data)
    make_picture(images / "12.png", 12)
    explained.clear()
    assert mend_run(config_of_run(config.output), [])["records"] == 13
    assert sum(explained) == 4 + 1
    assert list(verify_run(config.output)) == []


def test_an_overlay_that_cannot_be_read_costs_no_record(config, images, monkeypatch) -> None:
    (images / "03.png").write_bytes(b"")
    run_job(config, [])
    overlay = Path(config.output, next(iter(open_run(config.output))).maps[0].overlay)
    read = storage.read_bytes

    def fail(uri: str, limit: int | None = None) -> bytes:
        if uri == str(overlay):
            raise error
        return read(uri, limit)

    monkeypatch.setattr(storage, "read_bytes", fail)
    error: OSError = storage.UnavailableError("no answer")
    with pytest.raises(RunError, match="an overlay of a record that is to stay cannot be read: no answer"):
        mend_run(config_of_run(config.output), [])
    error = PermissionError(13, "not yours")
    assert mend_run(config_of_run(config.output), [])["records"] == 13  # explained anew
    monkeypatch.undo()
    assert list(verify_run(config.output)) == []


def test_a_run_is_not_since_itself(config) -> None:
    run_job(config, [])
    with pytest.raises(ConfigError, match="they are the same folder"):
        run_job(dataclasses.replace(config, since=config.output), [], overwrite=True)
    assert list(verify_run(config.output)) == []


@pytest.mark.parametrize("output", ["memory://night/run", "memory:///night/run"])
def test_a_run_is_gone_on_with_however_its_uri_is_spelled(config, output, explained) -> None:
    config = dataclasses.replace(config, output=output)
    storage.remove_folder(output)
    run_job(config, [])
    layout = RunLayout(output)
    before = storage.list_files(layout.uri("overlays"), recursive=True)
    storage.remove_file(layout.uri(layout.marker(1)))
    storage.remove_file(layout.uri(layout.SUMMARY))
    storage.write_bytes(layout.uri(f"overlays/00/{'0' * 32}-gradcam-1.png"), b"of an attempt that was killed")
    explained.clear()
    assert run_job(config, [])["overlays"] == 14
    assert sum(explained) == 5
    assert storage.list_files(layout.uri("overlays"), recursive=True) == before
    assert list(verify_run(output)) == []


# The command line


def run_command(*words: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", *words], capture_output=True, text=True, timeout=200,
                          check=False)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_night_by_the_command_line(config, images, tmp_path) -> None:
    (images / "03.png").write_bytes(b"")
    night = tmp_path / "night.yaml"
    night.write_text(f"images: {images}\nmodel: {config.model}\npreprocess: tf\njit: off\nshard-size: 5\n")
    command = ("run", "--config", str(night), "--output")
    assert run_command(*command, config.output)[0] == 0
    make_picture(images / "01.png", 101)
    code, said, _ = run_command(*command, str(tmp_path / "new"), "--since", config.output)
    assert (code, "13 records, 1 failures, 1 overlays (12 records carried over)" in said) == (0, True), said
    make_picture(images / "03.png", 3)
    code, said, _ = run_command("run", "--retry-failures", str(tmp_path / "new"))
    assert (code, "14 records, 0 failures" in said) == (0, True), said
    code, said, _ = run_command("run", "--retry-failures", str(tmp_path / "new"), "--config", str(night))
    assert (code, "complete: 14 images; nothing to do" in said) == (0, True), said
    assert run_command("verify", str(tmp_path / "new"))[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--overwrite",), "leave --overwrite out"),
        (("--dry-run",), "leave --dry-run out"),
        (("--images", "x"), "leave --images out"),
        (("--output", "x"), "leave --output out"),
        (("--methods", "cam"), "--methods was ['gradcam'] and is ['cam']"),
        (("--storage-option", "nonsense"), "--storage-option"),
    ],
)
def test_what_does_not_go_with_a_retry_is_told_in_a_line(config, words, message, capsys) -> None:
    run_job(config, [])
    assert main(["run", "--retry-failures", config.output, *words]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


def test_a_run_that_is_complete_is_told_without_loading_tensorflow(config, tmp_path) -> None:
    run_job(config, [])
    before = {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}
    code = (
        "import sys; sys.modules['tensorflow'] = None; from pipeline.cli import main; "
        f"sys.exit(main(['run', '--images', {config.images[0]!r}, '--model', {config.model!r}, '--preprocess', 'tf', "
        f"'--shard-size', '5', '--output', {config.output!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True), done.stderr
    assert {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")} == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("bad"), "ValueError: bad"),
        (OSError(28, "No space left"), "OSError: [Errno 28] No space left"),
        (RuntimeError("ValueError: bad [while running 'x-ptransform-7']"), "ValueError: bad"),
        (
            RuntimeError(
                'Traceback (most recent call last):\n  File "x.py", line 3, in f\n    raise E\n'
                "pipeline.errors.RunError: shard 3 broke: KeyError: 'a'\n\nDuring handling:\n\n"
                'Traceback (most recent call last):\n  File "y.py", line 1\n'
                "pipeline.errors.RunError: shard 3 broke: KeyError: 'a' [while running 'x']\n"
            ),
            "RunError: shard 3 broke: KeyError: 'a'",
        ),
    ],
)
def test_the_cause_of_a_break_is_found_among_what_beam_wraps_around_it(error, words) -> None:
    assert describe_cause(error) == words
