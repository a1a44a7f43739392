"""The job through Beam, against the same images through plain functions."""

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import explainers as ex
from pipeline import ConfigError, RunConfig, RunError, open_run, run_job
from pipeline.overlay import color_table
from pipeline.verify import verify_run


def make_config(photographs: Path, model: str, output: Path, **options) -> RunConfig:
    defaults = {"images": (str(photographs / "manifest.jsonl"),), "preprocess": "tf", "jit": "off"}
    return RunConfig(**{**defaults, "model": model, "output": str(output), **options})


def copy_photographs(photographs: Path, folder: Path, count: int) -> Path:
    """A folder of so many images: the photographs again and again, under new names."""
    folder.mkdir()
    for i in range(count):
        source = sorted(photographs.glob("??.*"))[i % 13]
        shutil.copy(source, folder / f"{i:03d}{source.suffix}")
    return folder


def wait_for_markers(markers: Path, count: int) -> None:
    """Waits until a job in another process has committed so many shards."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (markers.is_dir() and len(list(markers.glob("*.json"))) >= count):
        time.sleep(0.005)


def explain_directly(paths: list[Path], model_path: str) -> list[dict]:
    """The same by hand: Pillow, NumPy and direct calls, an image at a time, nothing of the pipeline."""
    exposed = ex.expose(keras.saving.load_model(model_path))
    results = []
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
        inputs = (pixels.astype(np.float32) / 127.5 - 1)[np.newaxis]
        logits = exposed(inputs)[0].numpy()
        best = np.argsort(-logits)[:, :2].astype(np.int32)
        maps = {
            name: getattr(ex.methods.cams, name)(exposed, inputs, best)[1].numpy()[0] for name in ("cam", "gradcam")
        }
        results.append({"logits": logits[0], "targets": best[0], "maps": maps})
    return results


@pytest.mark.parametrize(("batch_size", "shard_size"), [(4, 256), (4, 5), (32, 6), (1, 13), (13, 1)])
def test_pipeline_equals_plain_loop(tmp_path, photographs, tiny_model_path, batch_size, shard_size) -> None:
    config = make_config(photographs, tiny_model_path, tmp_path / "run", methods=("cam", "gradcam"), targets="top:2",
                         batch_size=batch_size, shard_size=shard_size)  # fmt: skip
    run_job(config, [])
    records = list(open_run(tmp_path / "run"))
    expected = explain_directly([Path(record.uri) for record in records], tiny_model_path)
    assert [Path(record.uri).name for record in records] == sorted(p.name for p in photographs.glob("??.*"))
    for record, direct in zip(records, expected, strict=True):
        np.testing.assert_allclose(record.logits, direct["logits"], rtol=1e-5, atol=1e-6)
        assert [(m.method, m.target) for m in record.maps] == [
            (name, target) for name in ("cam", "gradcam") for target in direct["targets"]
        ]
        for i, stored in enumerate(record.maps):
            raw = direct["maps"][stored.method][..., i % 2]
            np.testing.assert_allclose(stored.array(), raw, atol=1e-3 * np.abs(raw).max())
            assert stored.rank == i % 2
            assert stored.score == pytest.approx(direct["logits"][stored.target], rel=1e-5)
    assert list(verify_run(str(tmp_path / "run"))) == []


def test_records_tell_what_was_read(tmp_path, photographs, tiny_model_path) -> None:
    import hashlib

    run_job(make_config(photographs, tiny_model_path, tmp_path / "run"), [])
    for record in open_run(tmp_path / "run"):
        content = Path(record.uri).read_bytes()
        assert record.content_sha256 == hashlib.sha256(content).hexdigest()
        assert record.id == hashlib.sha256(record.uri.encode()).hexdigest()[:32]
        assert (record.geometry.width, record.geometry.height) == Image.open(io.BytesIO(content)).size
        assert record.label == str(int(Path(record.uri).stem) % 5)
        probabilities = np.exp(record.logits) / np.exp(record.logits).sum()
        assert record.maps[0].probability == pytest.approx(probabilities[record.predicted], rel=1e-4)


def test_one_bad_image_costs_no_other(tmp_path, photographs, tiny_model_path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    run_job(make_config(folder, tiny_model_path, tmp_path / "clean", overlays="none"), [])
    names = sorted(path.name for path in folder.glob("??.*"))
    (folder / names[0]).write_bytes(b"")
    (folder / names[3]).write_bytes((folder / names[3]).read_bytes()[:60])
    (folder / names[4]).write_text("<html>not found</html>")
    (folder / names[12]).unlink()
    run_job(make_config(folder, tiny_model_path, tmp_path / "run", overlays="none", batch_size=4, shard_size=5), [])
    run = open_run(tmp_path / "run")
    failures = {Path(failure.uri).name: (failure.stage, failure.error_type) for failure in run.failures()}
    assert failures == {
        names[0]: ("decode", "EmptyFile"),
        names[3]: ("decode", "BrokenImage"),
        names[4]: ("decode", "NotAnImage"),
        names[12]: ("read", "FileNotFoundError"),
    }
    clean = {record.id: record for record in open_run(tmp_path / "clean")}
    assert len(run) == 9
    for record in run:
        np.testing.assert_allclose(record.logits, clean[record.id].logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(record.maps[0].array(), clean[record.id].maps[0].array(), rtol=2e-3, atol=1e-6)
    assert run.summary["failures_by_type"] == {
        "decode:BrokenImage": 1, "decode:EmptyFile": 1, "decode:NotAnImage": 1, "read:FileNotFoundError": 1
    }  # fmt: skip
    assert list(verify_run(str(tmp_path / "run"))) == []


def test_a_batch_of_failures_only_is_a_run(tmp_path, tiny_model_path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"nothing")
    run_job(make_config(tmp_path, tiny_model_path, tmp_path / "run", images=(str(tmp_path / "*.jpg"),)), [])
    run = open_run(tmp_path / "run")
    assert (len(run), run.summary["failures"]) == (0, 3)
    assert list(verify_run(str(tmp_path / "run"))) == []


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("label", lambda best, label: [label]),
        ("predicted+label", lambda best, label: list(dict.fromkeys([best[0], label]))),
        ("ids:4,1", lambda best, label: [4, 1]),
        ("all", lambda best, label: [0, 1, 2, 3, 4]),
        ("top:3", lambda best, label: list(best[:3])),
    ],
)
def test_targets_choose_the_classes(tmp_path, photographs, tiny_model_path, targets, expected) -> None:
    config = make_config(photographs, tiny_model_path, tmp_path / "run", targets=targets, overlays="none")
    run_job(config, [])
    for record in open_run(tmp_path / "run"):
        best = np.argsort(-record.logits)
        assert [values.target for values in record.maps] == expected(best, int(record.label))
        assert [values.rank for values in record.maps] == [list(best).index(values.target) for values in record.maps]


def test_an_image_without_label_has_no_map_for_it(tmp_path, photographs, tiny_model_path) -> None:
    rows = [json.loads(line) for line in (photographs / "manifest.jsonl").read_text().splitlines()[:3]]
    rows = [{**row, "uri": str(photographs / row["uri"])} for row in rows]
    rows[1]["label"] = None
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for targets, counts in (("label", [1, 0, 1]), ("predicted+label", None)):
        config = make_config(photographs, tiny_model_path, tmp_path / targets, targets=targets,
                             images=(str(tmp_path / "m.jsonl"),))  # fmt: skip
        run_job(config, [])
        records = list(open_run(tmp_path / targets))
        assert counts is None or [len(record.maps) for record in records] == counts
        assert counts or [values.rank for values in records[1].maps] == [0]


def test_top_logits_keep_their_classes(tmp_path, photographs, tiny_model_path) -> None:
    for logits in ("all", "top:2"):
        run_job(make_config(photographs, tiny_model_path, tmp_path / logits, logits=logits, overlays="none"), [])
    for every, best in zip(open_run(tmp_path / "all"), open_run(tmp_path / "top:2"), strict=True):
        assert every.logit_classes is None
        assert list(best.logit_classes) == list(np.argsort(-every.logits)[:2])
        np.testing.assert_array_equal(best.logits, every.logits[best.logit_classes])
        assert best.predicted == every.predicted


def test_overlays_are_original_size_and_sampled_by_id(tmp_path, photographs, tiny_model_path) -> None:
    run_job(make_config(photographs, tiny_model_path, tmp_path / "all", resize="pad"), [])
    run_job(make_config(photographs, tiny_model_path, tmp_path / "some", overlay_sample=0.4), [])
    run = open_run(tmp_path / "all")
    for record in run:
        overlay = Image.open(io.BytesIO(run.read_overlay(record.maps[0].overlay)))
        assert overlay.size == (record.geometry.width, record.geometry.height)
    chosen = {record.id for record in open_run(tmp_path / "some") if record.maps[0].overlay}
    assert chosen == {record.id for record in run if int(record.id[:8], 16) < 0.4 * 16**8}
    assert 0 < len(chosen) < 13


def test_layers_have_the_palette_of_the_configured_colour_map(tmp_path, photographs, tiny_model_path) -> None:
    run_job(make_config(photographs, tiny_model_path, tmp_path / "run", overlays="layer", colormap="viridis"), [])
    run = open_run(tmp_path / "run")
    colors = np.frombuffer(color_table("viridis"), np.uint8).reshape(256, 4)
    for record in run:
        layer = Image.open(io.BytesIO(run.read_overlay(record.maps[0].overlay)))
        assert (layer.mode, layer.size) == ("P", (record.geometry.width, record.geometry.height))
        np.testing.assert_array_equal(np.asarray(layer.convert("RGBA")), colors[np.asarray(layer)])
        assert np.asarray(layer).max() > 200  # the map's strongest place


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder, with the time of its last change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def test_the_same_job_again_writes_nothing(tmp_path, photographs, tiny_model_path) -> None:
    config = make_config(photographs, tiny_model_path, tmp_path / "run", shard_size=5)
    run_job(config, [])
    before = snapshot(tmp_path / "run")
    run_job(config, [])
    assert snapshot(tmp_path / "run") == before


def test_a_lost_shard_is_made_again_byte_for_byte(tmp_path, photographs, tiny_model_path) -> None:
    config = make_config(photographs, tiny_model_path, tmp_path / "run", shard_size=5)
    run_job(config, [])
    before = snapshot(tmp_path / "run")
    (tmp_path / "run/shards/00001.json").unlink()
    (tmp_path / "run/run.json").unlink()
    said = []
    run_job(config, [], say=said.append)
    assert "2 of them done before" in said[0]
    after = snapshot(tmp_path / "run")
    kept = [name for name in before if name.endswith((".parquet", ".png"))]
    assert {name: after[name][1] for name in kept} == {name: before[name][1] for name in kept}
    assert {name for name in after if after[name] != before[name]} >= {"run.json", "shards/00001.json"}
    assert after["records/part-00000.parquet"] == before["records/part-00000.parquet"]


def test_another_configuration_is_refused_with_the_difference(tmp_path, photographs, tiny_model_path) -> None:
    run_job(make_config(photographs, tiny_model_path, tmp_path / "run"), [])
    before = snapshot(tmp_path / "run")
    other = make_config(photographs, tiny_model_path, tmp_path / "run", methods=("cam",), resize="crop")
    with pytest.raises(
        ConfigError, match=r"--methods was \['gradcam'\] and is \['cam'\]; --resize was 'stretch' and is"
    ):
        run_job(other, [])
    assert snapshot(tmp_path / "run") == before
    run_job(other, [], overwrite=True)
    assert {values.method for record in open_run(tmp_path / "run") for values in record.maps} == {"cam"}
    assert list(verify_run(str(tmp_path / "run"))) == []


def test_new_images_are_not_passed_over_and_vanished_ones_are_failures(tmp_path, photographs, tiny_model_path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    config = make_config(
        folder, tiny_model_path, tmp_path / "run", images=(str(folder),), shard_size=5, overlays="none"
    )
    run_job(config, [])
    shutil.copy(folder / "01.png", folder / "new.png")
    with pytest.raises(
        ConfigError, match=r"a run over another input: 1 of the 14 images are not in it, such as '.*new.png'"
    ):
        run_job(config, [])
    (folder / "new.png").unlink()
    (folder / "01.png").unlink()
    (tmp_path / "run/shards/00000.json").unlink()
    assert run_job(config, [])["failures_by_type"] == {"read:FileNotFoundError": 1}
    assert list(verify_run(str(tmp_path / "run"))) == []


def test_a_changed_model_under_the_same_name_is_refused(tmp_path, photographs, tiny_model_path) -> None:
    path = tmp_path / "model.keras"
    shutil.copy(tiny_model_path, path)
    run_job(make_config(photographs, str(path), tmp_path / "run"), [])
    model = keras.saving.load_model(path)
    model.get_layer("predictions").bias.assign_add(np.ones(5))
    model.save(path)
    config = make_config(photographs, str(path), tmp_path / "run", batch_size=16)  # another size: loads the model anew
    with pytest.raises(ConfigError, match=r"run of another model: .* has changed since"):
        run_job(config, [])


def test_a_folder_with_something_else_is_left_alone(tmp_path, photographs, tiny_model_path) -> None:
    (tmp_path / "run/records").mkdir(parents=True)
    (tmp_path / "run/records/theirs.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds records but no manifest of a run: choose an empty folder"):
        run_job(make_config(photographs, tiny_model_path, tmp_path / "run"), [])
    assert (tmp_path / "run/records/theirs.txt").read_text() == "precious"


def test_overwrite_removes_no_folder_but_a_runs(tmp_path, photographs, tiny_model_path) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "records").mkdir(parents=True)
    (theirs / "records/precious.txt").write_text("precious")
    shutil.copy(Path(__file__).parent.parent / "golden/schema-1/records.parquet", theirs / "manifest.parquet")
    before = snapshot(theirs)
    config = make_config(photographs, tiny_model_path, theirs)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holds a manifest\.parquet that is not a run's: choose an empty folder"):
            run_job(config, [], overwrite=overwrite)
    assert snapshot(theirs) == before


def test_a_job_leaves_the_files_of_one_that_is_running_alone(tmp_path, photographs, tiny_model_path) -> None:
    config = make_config(photographs, tiny_model_path, tmp_path / "run")
    run_job(config, [])
    alive = tmp_path / f"run/overlays/.tmp-{HOST}-{os.getpid()}-{'0' * 32}"
    own = tmp_path / "run/.tmp-of-the-users"
    for path in (alive, own):
        path.write_text("not ours to remove")
    run_job(config, [])
    assert alive.exists()
    assert own.exists()


def test_overlays_of_an_earlier_run_are_no_input(tmp_path, photographs, tiny_model_path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    for name in ("run1", "run2", "."):
        config = make_config(folder, tiny_model_path, (folder / name).resolve(), images=(str(folder),))
        assert run_job(config, [])["records"] == 13
        assert run_job(config, [])["records"] == 13


def test_a_resumed_shard_leaves_no_overlay_of_its_first_attempt(tmp_path, photographs, tiny_model_path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    config = make_config(folder, tiny_model_path, tmp_path / "run", images=(str(folder),))
    run_job(config, [])
    (tmp_path / "run/shards/00000.json").unlink()
    (tmp_path / "run/run.json").unlink()
    (folder / "01.png").write_bytes(b"")
    assert run_job(config, [])["failures"] == 1
    assert list(verify_run(str(tmp_path / "run"))) == []


def read_process(folder: Path) -> tuple[int, int] | None:
    """The number of a running process and its parent's; None if it has ended."""
    try:
        state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else (int(folder.name), int(parent))


def test_workers_end_soon_after_the_process_that_started_them(tmp_path, photographs, tiny_model_path) -> None:
    folder = copy_photographs(photographs, tmp_path / "images", 400)
    words = ["run", "--images", str(folder), "--model", tiny_model_path, "--preprocess", "tf", "--output",
             str(tmp_path / "run"), "--shard-size", "4", "--jit", "off", "--direct_num_workers=2",
             "--direct_running_mode=multi_processing"]  # fmt: skip
    job = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *words], stderr=subprocess.DEVNULL)
    wait_for_markers(tmp_path / "run/shards", 3)
    children = [pid for pid in map(read_process, Path("/proc").glob("[0-9]*")) if pid and pid[1] == job.pid]
    assert len(children) >= 2
    # By this alone they know whose they are; Beam ends most of them by itself, some seconds later.
    told = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid, _ in children]
    assert all(b"BEAMCAM_JOB=%d" % job.pid in variables for variables in told)
    job.kill()
    job.wait(20)
    # A worker that had no shard yet is left to Beam, which takes more than twenty seconds.
    wait_until_fewer(children, 2, seconds=15)
    wait_until_fewer(children, 1, seconds=60)


def wait_until_fewer(processes: list[tuple[int, int]], count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := sum(bool(read_process(Path(f"/proc/{pid}"))) for pid, _ in processes)) >= count:
        assert time.monotonic() < deadline, f"{left} processes are left after {seconds} seconds"
        time.sleep(0.2)


@pytest.mark.parametrize("damage", ["", "{}", "not json"])
def test_a_damaged_marker_is_no_marker(tmp_path, photographs, tiny_model_path, damage) -> None:
    config = make_config(photographs, tiny_model_path, tmp_path / "run", shard_size=5)
    run_job(config, [])
    before = (tmp_path / "run/records/part-00001.parquet").read_bytes()
    (tmp_path / "run/shards/00001.json").write_text(damage)
    run_job(config, [])
    assert (tmp_path / "run/records/part-00001.parquet").read_bytes() == before
    assert list(verify_run(str(tmp_path / "run"))) == []


def test_labels_that_match_no_class_are_told(tmp_path, photographs, tiny_model_path) -> None:
    rows = [
        f"{path},{label}" for path, label in zip(sorted(photographs.glob("??.*")), ["1", "2.0", "dog"], strict=False)
    ]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label", *rows]))
    said: list[str] = []
    config = make_config(
        photographs, tiny_model_path, tmp_path / "run", images=(str(tmp_path / "m.csv"),), targets="label"
    )
    run_job(config, [], say=said.append)
    assert said[0].startswith("1 of 3 labels match no class, such as 'dog': labels are indices")
    assert [[m.target for m in record.maps] for record in open_run(tmp_path / "run")] == [[1], [2], []]
    strange = make_config(photographs, tiny_model_path, tmp_path / "other", images=(str(photographs),), targets="label",
                          labels_from="folder")  # fmt: skip
    with pytest.raises(ConfigError, match=r"13 of 13 labels match no class, such as 'photographs"):
        run_job(strange, [])


def test_changed_labels_are_not_passed_over(tmp_path, photographs, tiny_model_path) -> None:
    path = min(photographs.glob("??.*"))
    manifest = tmp_path / "m.csv"
    config = make_config(photographs, tiny_model_path, tmp_path / "run", images=(str(manifest),))
    manifest.write_text(f"uri,label\n{path},1\n")
    run_job(config, [])
    manifest.write_text(f"uri,label\n{path},2\n")
    with pytest.raises(ConfigError, match=r"holds a run with other labels: 1 differ, such as "):
        run_job(config, [])


def test_classes_with_equal_logits_have_places_of_their_own(tmp_path, photographs, tiny_model_path) -> None:
    model = keras.saving.load_model(tiny_model_path)
    dense = model.get_layer("predictions")
    dense.set_weights([np.zeros_like(weight) for weight in dense.get_weights()])
    model.save(tmp_path / "equal.keras")
    run_job(make_config(photographs, str(tmp_path / "equal.keras"), tmp_path / "run", targets="top:5"), [])
    for record in open_run(tmp_path / "run"):
        assert [(values.target, values.rank) for values in record.maps] == [(i, i) for i in range(5)]


def test_an_unwritable_output_is_told_before_any_work(tmp_path, photographs, tiny_model_path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match=r"cannot be written"):
        run_job(make_config(photographs, tiny_model_path, tmp_path / "file" / "run"), [])


def test_two_processes_write_the_same_records(tmp_path, photographs, tiny_model_path) -> None:
    one = make_config(photographs, tiny_model_path, tmp_path / "one", shard_size=3)
    two = make_config(photographs, tiny_model_path, tmp_path / "two", shard_size=3)
    run_job(one, [])
    run_job(two, ["--direct_num_workers=2", "--direct_running_mode=multi_processing"])
    for shard in range(5):
        name = f"records/part-{shard:05d}.parquet"
        for a, b in zip(open_run(tmp_path / "one"), open_run(tmp_path / "two"), strict=True):
            assert a.id == b.id
            np.testing.assert_array_equal(a.maps[0].array(), b.maps[0].array())
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


HOST = re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())


def run_in_subprocess(config: RunConfig) -> subprocess.Popen:
    code = (
        "import json, sys\nfrom pipeline import RunConfig, run_job\n"
        "run_job(RunConfig.from_dict(json.loads(sys.argv[1])), [])"
    )
    return subprocess.Popen([sys.executable, "-c", code, json.dumps(config.to_dict())], stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_job_resumes_to_the_same_records(tmp_path, photographs, tiny_model_path) -> None:
    folder = copy_photographs(photographs, tmp_path / "many", 240)
    options = {"images": (str(folder),), "shard_size": 20, "batch_size": 8}
    undisturbed = make_config(folder, tiny_model_path, tmp_path / "whole", **options)
    run_job(undisturbed, [])
    config = make_config(folder, tiny_model_path, tmp_path / "killed", **options)
    process = run_in_subprocess(config)
    markers = tmp_path / "killed/shards"
    wait_for_markers(markers, 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    committed = len(list(markers.glob("*.json")))
    assert 4 <= committed < 12, "the job was to be killed half-way"
    (tmp_path / f"killed/records/.tmp-{HOST}-{process.pid}-{'0' * 32}").write_text("half a file")
    run_job(config, [])
    assert list(verify_run(str(tmp_path / "killed"))) == []
    for name in [f"records/part-{shard:05d}.parquet" for shard in range(12)]:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not [path for path in (tmp_path / "killed").rglob("*") if path.name.startswith(".tmp-")]


def test_an_interrupted_job_ends_at_once_and_goes_on_later(tmp_path, photographs, tiny_model_path) -> None:
    folder = copy_photographs(photographs, tmp_path / "images", 400)
    options = ["run", "--images", str(folder), "--model", tiny_model_path, "--preprocess", "tf", "--jit", "off",
               "--shard-size", "10", "--batch-size", "4", "--output", str(tmp_path / "run")]  # fmt: skip
    program = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pipeline.cli import main
sys.exit(main(sys.argv[1:]))"""
    process = subprocess.Popen([sys.executable, "-c", program, *options], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    markers = tmp_path / "run/shards"
    wait_for_markers(markers, 3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: what was committed is kept" in said
    committed = len(list(markers.glob("*.json")))
    assert 3 <= committed < 40, "the job was to be interrupted half-way"
    assert (
        subprocess.run([sys.executable, "-c", program, *options], stdout=subprocess.DEVNULL, check=False).returncode
        == 0
    )
    assert list(verify_run(str(tmp_path / "run"))) == []
    assert len(open_run(tmp_path / "run")) == 400


def test_a_job_that_breaks_off_says_what_is_kept(tmp_path, photographs, tiny_model_path) -> None:
    config = make_config(photographs, tiny_model_path, tmp_path / "run", shard_size=5)
    run_job(config, [])
    shutil.rmtree(tmp_path / "run/shards")
    (tmp_path / "run/shards").write_text("a file where a folder is needed")
    with pytest.raises(RunError, match=r"the job broke off: .* 0 of 3 shards are committed and kept; the same command"):
        run_job(config, [])


def test_no_process_is_left_behind() -> None:
    assert multiprocessing.active_children() == []
