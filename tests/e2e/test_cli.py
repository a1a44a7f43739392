"""Every command in a real subprocess: what it prints, what it writes, how it exits."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import keras
import numpy as np
import polars as pl
import pytest
from PIL import Image

from pipeline import open_run
from pipeline.cli import make_parser

ROOT = Path(__file__).parent.parent.parent


def beamcam(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False)


def options_of(command: str) -> list[str]:
    parser = make_parser()._subparsers._group_actions[0].choices[command]
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


COMMANDS = list(make_parser()._subparsers._group_actions[0].choices)


def test_help_lists_every_command_at_once() -> None:
    result = beamcam("--help")
    assert result.returncode == 0
    assert all(command in result.stdout for command in COMMANDS)
    assert result.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_help_and_stands_in_the_readme(command: str) -> None:
    parser = make_parser()._subparsers._group_actions[0].choices[command]
    assert all(action.help for action in parser._actions)
    readme = (ROOT / "README.md").read_text()
    assert f"beamcam {command}" in readme
    missing = [name for name in options_of(command) if name not in readme and name not in ("--help", "--verbose")]
    assert missing == []


def test_run_then_verify_then_other_readers(tmp_path, photographs, tiny_model_path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\nelk\n")
    (photographs / "broken.txt").unlink(missing_ok=True)
    manifest = tmp_path / "manifest.csv"
    rows = [f"{path},{i % 5}" for i, path in enumerate(sorted(photographs.glob("??.*")))]
    manifest.write_text("\n".join(["uri,label", *rows, f"{tmp_path}/missing.jpg,1"]))
    common = ("run", "--images", manifest, "--model", tiny_model_path, "--preprocess", "tf", "--jit", "off")
    result = beamcam(*common, "--methods", "cam,gradcam", "--class-names", names, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "14 images in 1 shards; cam, gradcam at last" in result.stdout
    assert "13 records, 1 failures, 26 overlays" in result.stdout
    assert "1 x read:FileNotFoundError" in result.stdout
    assert result.stderr == ""

    verified = beamcam("verify", tmp_path / "run")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "nothing lost, doubled or damaged" in verified.stdout

    again = beamcam(*common, "--methods", "cam,gradcam", "--class-names", names, "--output", tmp_path / "run")
    assert "is complete: 14 images; nothing to do" in again.stdout

    other = beamcam(*common, "--methods", "cam", "--class-names", names, "--output", tmp_path / "run")
    assert other.returncode == 2
    assert "--methods was ['cam', 'gradcam'] and is ['cam']" in other.stderr

    check_other_readers(tmp_path / "run")


def check_other_readers(path: Path) -> None:
    """DuckDB, polars and pandas find the same values as this project's own reader."""
    run = open_run(path)
    assert run.class_names == ["ant", "bee", "cat", "dog", "elk"]
    expected = sorted((r.uri, m.target, np.float32(m.score)) for r in run for m in r.maps if m.method == "cam")
    query = f"SELECT uri, m.target, m.score FROM (SELECT uri, unnest(maps) AS m FROM '{path}/records/*.parquet') WHERE m.method = 'cam'"  # noqa: E501
    assert sorted(duckdb.sql(query).fetchall()) == [(u, t, pytest.approx(s)) for u, t, s in expected]
    exploded = pl.read_parquet(f"{path}/records/*.parquet").select("uri", "maps").explode("maps").unnest("maps")
    assert sorted(exploded.filter(pl.col("method") == "cam").select("uri", "target").rows()) == [
        e[:2] for e in expected
    ]
    assert sorted(run.to_pandas()["uri"]) == [uri for uri, _, _ in expected]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, photographs, tiny_model_path) -> Path:
    from pipeline import RunConfig, run_job

    output = tmp_path_factory.mktemp("finished") / "run"
    run_job(
        RunConfig(
            (str(photographs),),
            tiny_model_path,
            str(output),
            preprocess="tf",
            jit="off",
            shard_size=4,
            labels_from="none",
        ),
        [],
    )
    return output


def change_json(path: Path, name: str, value: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


def swap_shards(run: Path) -> None:
    """Shard 1's records under shard 0's name, with a marker that agrees: only the manifest can tell."""
    marker, other = (json.loads((run / f"shards/0000{shard}.json").read_text()) for shard in (0, 1))
    content = (run / "records/part-00001.parquet").read_bytes()
    (run / "records/part-00000.parquet").write_bytes(content)
    marker["files"]["records/part-00000.parquet"] = other["files"]["records/part-00001.parquet"]
    (run / "shards/00000.json").write_text(json.dumps(marker))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: next(run.glob("overlays/*/*.png")).unlink(), r"overlays/.*\.png is missing"),
        (lambda run: (run / "overlays/zz.png").write_bytes(b"x"), r"overlays/zz\.png belongs to no record"),
        (
            lambda run: (run / "records/part-00001.parquet").write_bytes(b"x"),
            r"part-00001\.parquet is damaged: 1 bytes",
        ),
        (
            lambda run: (run / "records/part-00002.parquet").unlink(),
            r"part-00002\.parquet cannot be read: FileNotFound",
        ),
        (
            lambda run: (run / "shards/00003.json").unlink(),
            r"00003\.json cannot be read: FileNotFoundError",
        ),
        (
            lambda run: (run / "shards/00002.json").write_text("{}"),
            r"00002\.json is damaged: it lacks config",
        ),
        (lambda run: (run / "run.json").write_text("[]"), r"run\.json is damaged: it holds \[\]"),
        (
            lambda run: (run / "records/part-00009.parquet").write_bytes(b"x"),
            r"00009\.parquet belongs to no shard",
        ),
        (lambda run: (run / "manifest.parquet").write_bytes(b"x"), r"manifest\.parquet cannot be read: ArrowInvalid"),
        (
            lambda run: next(run.glob("overlays/*/*.png")).write_bytes(b""),
            r"overlays/.*\.png is no whole PNG: 0 bytes",
        ),
        (
            lambda run: (run / "run.json").unlink(),
            r"run\.json cannot be read: FileNotFoundError: the same `beamcam run` writes it",
        ),
        (
            lambda run: change_json(run / "run.json", "records", 12),
            r"run\.json counts 12 records, and the .* markers 13",
        ),
        (
            lambda run: change_json(run / "shards/00000.json", "model_digest", "?"),
            r"shard 0 was written with another model",
        ),
        (swap_shards, r"shard 0 lost "),
    ],
)
def test_verify_finds_damage(tmp_path, finished_run, damage, words) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    damage(run)
    result = beamcam("verify", run)
    assert result.returncode == 1
    assert re.search(words, result.stdout), result.stdout
    assert re.search(r"\d+ problems? found", result.stderr)


def test_inspect_shows_signal_logits_and_what_fits(tiny_model_path) -> None:
    result = beamcam("inspect", tiny_model_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"last\s+Conv2D\s+\(8, 8, 12\)\s+<- signal", result.stdout)
    assert re.search(r"predictions\s+Dense\s+\(5,\)\s+<- logits", result.stdout)
    assert "signal last (8, 8, 12), logits predictions (5 classes), softmax taken off" in result.stdout
    assert "cam: fits" in result.stdout
    assert "warning: --preprocess is needed" in result.stdout


def test_inspect_of_a_model_without_a_signal_names_the_methods_that_need_none(awkward_models) -> None:
    result = beamcam("inspect", awkward_models / "flat.keras")
    assert result.returncode == 0, result.stderr
    fits = {line.partition(":")[0] for line in result.stdout.splitlines() if line.endswith(": fits")}
    assert {"gradients", "smoothgrad", "occlusion", "rise", "full_gradients", "fixations"} <= fits
    assert not fits & {"cam", "gradcam", "scorecam", "guided_gradcam", "guided_backprop"}
    assert re.search(r"gradcam: does not fit: ", result.stdout)


def test_show_explains_one_image(tmp_path, photographs, tiny_model_path) -> None:
    image = photographs / "04.png"
    result = beamcam(
        "show", image, "--model", tiny_model_path, "--preprocess", "tf", "--methods", "cam,gradients", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    with Image.open(image) as picture:
        width, height = picture.size
    assert f"04.png: {width} x {height} pixels" in result.stdout
    assert re.search(r"cam: class \d, p 0\.\d+, ", result.stdout)
    with Image.open(tmp_path / "04-explained.png") as picture:
        assert picture.width > 3 * max(width, height)
    broken = beamcam("show", tiny_model_path, "--model", tiny_model_path, "--preprocess", "tf", cwd=tmp_path)
    assert (broken.returncode, broken.stdout) == (1, "")
    assert "not an image" in broken.stderr


def test_methods_prints_the_table() -> None:
    result = beamcam("methods")
    assert result.returncode == 0
    assert re.search(r"^gradcam +Grad-CAM +a spatial signal +1 f \+ k h +Selvaraju", result.stdout, re.MULTILINE)


@pytest.mark.slow
def test_demo_leaves_a_whole_run_and_a_contact_sheet(tmp_path) -> None:
    result = beamcam("demo", "--output", tmp_path / "demo", "--count", 60)
    assert result.returncode == 0, result.stderr
    assert "66 images in 1 shards; cam, gradcam, gradients" in result.stdout
    assert "1 x read:FileNotFoundError" in result.stdout
    run = open_run(tmp_path / "demo/run")
    assert (len(run), run.summary["failures"], run.summary["overlays"]) == (60, 6, 360)
    assert beamcam("verify", tmp_path / "demo/run").returncode == 0
    with Image.open(tmp_path / "demo/contact-sheet.png") as sheet:
        assert np.asarray(sheet).std() > 20
    boxes = {entry.uri: entry.boxes for entry in run.manifest()}
    assert all(boxes[record.uri] for record in run), "every picture has its ground truth in the manifest"


def test_options_come_from_yaml_and_the_command_line_wins(tmp_path, photographs, tiny_model_path) -> None:
    options = (
        f"images: {photographs}\nmodel: {tiny_model_path}\npreprocess: tf\nmethods: cam\nshard-size: 4\njit: 'off'\n"
    )
    (tmp_path / "night.yaml").write_text(options)
    result = beamcam("run", "--config", tmp_path / "night.yaml", "--methods", "gradcam", "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "13 images in 4 shards; gradcam at last" in result.stdout
    (tmp_path / "night.yaml").write_text("shard-sise: 4\n")
    wrong = beamcam("run", "--config", tmp_path / "night.yaml")
    assert wrong.returncode == 2
    assert "unknown option 'shard-sise'; did you mean 'shard_size'?" in wrong.stderr


def test_dry_run_plans_and_writes_nothing(tmp_path, photographs, tiny_model_path) -> None:
    result = beamcam("run", "--images", photographs, "--model", tiny_model_path, "--preprocess", "tf", "--dry-run",
                     "--output", tmp_path / "run", "--shard-size", 5)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "13 images in 3 shards; gradcam at last" in result.stdout
    assert re.search(
        r"^13 images tried: \d+\.\d images/s on \d+ cores, \d+\.\d s to start$", result.stdout, re.MULTILINE
    )
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[2:]] == [
        "workers like this", "1", "3", "records", "overlays", "sums", "others", "in all"
    ]  # fmt: skip
    assert result.stderr.splitlines() == [
        "13 images listed; loading the model", "measuring on a sample of the images, for about 15 s"
    ]  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_dry_run_of_what_cannot_be_explained_is_an_error(tmp_path, tiny_model_path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    result = beamcam("run", "--images", tmp_path, "--model", tiny_model_path, "--preprocess", "tf", "--dry-run",
                     "--output", tmp_path / "run", "--jit", "off")  # fmt: skip
    assert result.returncode == 2
    assert re.search(r"not one of 1 images tried could be explained \(decode:NotAnImage\), such as", result.stderr)
    assert not (tmp_path / "run").exists()


def test_max_failures_is_an_error_after_the_work_is_done(tmp_path, photographs, tiny_model_path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    common = ("--model", tiny_model_path, "--preprocess", "tf", "--output", tmp_path / "run", "--jit", "off")
    result = beamcam("run", "--images", photographs, "--images", tmp_path / "bad.jpg", *common, "--max-failures", 0)
    assert result.returncode == 1
    assert "1 images failed, and --max-failures allows 0" in result.stderr
    assert len(open_run(tmp_path / "run")) == 13


@pytest.fixture(scope="module")
def awkward_models(tmp_path_factory) -> Path:
    """Models that cannot be explained, or not like this."""
    folder = tmp_path_factory.mktemp("models")
    keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]).save(
        folder / "flat.keras"
    )
    layers = [keras.Input((32, 32, 3)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Conv2D(2, 3),
              keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]  # fmt: skip
    keras.Sequential(layers).save(folder / "code.keras")
    (folder / "names.txt").write_text("one\ntwo\n")
    (folder / "no_uri.csv").write_text("path,label\na.jpg,1\n")
    (folder / "subclassed.py").write_text(
        "import keras\n"
        "class Net(keras.Model):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.dense = keras.layers.Dense(2)\n"
        "    def call(self, x):\n"
        "        return self.dense(keras.ops.mean(x, (1, 2)))\n"
    )
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", "{here}/none/*.jpg"], r"no image matches '.*none/\*\.jpg'"),
        (["--images", "{models}/no_uri.csv"], r"needs a column 'uri', and row 1 has: path, label"),
        (["--methods", "gradcan"], r"no method 'gradcan'\. Did you mean 'gradcam'\? The methods are: cam, gradcam"),
        (
            ["--layer", "lost"],
            r"no layer 'lost'\. Did you mean 'last'\? The last spatial signals are: .*last \(8, 8, 12\)",
        ),
        (["--model", "{models}/flat.keras"], r"the model has no spatial signal"),
        (["--model", "{models}/code.keras"], r"holds Python code, in the Lambda layers lambda.*--allow-unsafe-model"),
        (["--model", "subclassed:Net"], r"only functional and Sequential models can be exposed, and 'Net'"),
        (["--model", "{models}/nothing.keras"], r"there is no model at "),
        (["--class-names", "{models}/names.txt"], r"holds 2 names, and the model has 5 classes"),
        (["--batchsize", "4"], r"there is no option --batchsize, neither of beamcam nor of Beam; did you mean --batch"),
        (["--targets", "best"], r"--targets is top:K, label, .* not 'best'"),
        (["--targets", "label", "--labels-from", "none"], r"--targets label needs labels, and the input has none"),
        (["--output", "{models}/names.txt/run"], r"cannot be written"),
        (["--output", ""], r"these options are needed: --output"),
        (["--images", ""], r"nothing to explain: give --images"),
        (["--direct_running_mode", "sideways"], r"invalid choice: 'sideways'"),
        (["--runner", "Walker"], r"Beam refuses these options: .*Walker"),
        (["--methods", "scorecam(channel=3)"], r"scorecam has no option 'channel'\. Did you mean 'channels'\?"),
        (["--methods", "rise(masks=0)"], r"masks is an integer of at least 1, not 0"),
        (
            ["--methods", "cam, scorecam(channels=3),scorecam( channels=3 )"],
            r"names a method twice: cam, scorecam\(cha",
        ),
        (["--metrics", "speed"], r"--metrics are of deletion, insertion, .*, not 'speed'"),
        (["--reshape", "tokens"], r"tokens"),
        (["--methods", "cam,cam"], r"names at least one method, and none twice, not 'cam,cam'"),
        (["--layer", "avg_pool"], r"a map needs a signal with positions, and 'avg_pool' has the shape \(None, 12\)"),
        (["--preprocess", "os:getcwd"], r"one batch could not be explained: TypeError"),
        (
            ["--output", "nowhere://bucket/run"],
            r"output folder .* cannot be reached: OSError: \[Errno \d+\] there is no store",
        ),
        (
            ["--model", "nowhere://model.keras"],
            r"the model .* cannot be reached: OSError: \[Errno \d+\] there is no store for",
        ),
    ],
)
def test_wrong_usage_is_one_clear_line_before_any_work(
    tmp_path, photographs, tiny_model_path, awkward_models, options, words
) -> None:
    given = {"--images": str(photographs), "--model": tiny_model_path, "--preprocess": "tf", "--jit": "off",
             "--output": str(tmp_path / "run")}  # fmt: skip
    for name, value in zip(options[::2], options[1::2], strict=True):
        given[name] = value.format(here=tmp_path, models=awkward_models)
    result = beamcam("run", *[word for pair in given.items() for word in pair], cwd=awkward_models)
    assert result.returncode == 2, result.stderr
    assert re.search(words, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "run").exists()


def test_a_job_that_breaks_off_is_one_line_and_goes_on_afterwards(tmp_path, photographs, tiny_model_path) -> None:
    command = ("run", "--images", photographs, "--model", tiny_model_path, "--preprocess", "tf", "--jit", "off",
               "--output", tmp_path / "run", "--shard-size", 5)  # fmt: skip
    assert beamcam(*command).returncode == 0
    (tmp_path / "run/shards").rename(tmp_path / "aside")
    (tmp_path / "run/shards").write_text("a file where a folder is needed")
    broken = beamcam(*command)
    assert broken.returncode == 1
    assert re.fullmatch(
        r"beamcam: the job broke off: \w+: \[Errno \d+\] .*\. 0 of 3 shards are committed and kept; .*\n", broken.stderr
    ), broken.stderr
    (tmp_path / "run/shards").unlink()
    assert beamcam(*command).returncode == 0
    assert beamcam("verify", tmp_path / "run").returncode == 0


def test_picture_of_show_is_not_blank(tmp_path, photographs, tiny_model_path) -> None:
    target = tmp_path / "out" / "picture.png"
    beamcam("show", photographs / "01.png", "--model", tiny_model_path, "--preprocess", "tf", "--output", target)
    picture = np.asarray(Image.open(io.BytesIO(target.read_bytes())).convert("RGB"))
    assert picture.std() > 10
