"""`beamcam audit` of a real run: a class that a coloured corner decides is found, confirmed, compared and reported."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import audit as audit_package
from pipeline.audit import command
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.job import run_job
from tests.runs import change_json

NAMES = ("red", "green", "blue")
COUNT = 40  # images a class
SIDE = 56


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, and the model that made it: it sees colours, and red images are red in their bottom-right corner alone."""
    folder = tmp_path_factory.mktemp("audit")
    make_model().save(folder / "model.keras")
    lines = ["uri,label"]
    rng = np.random.default_rng(5)
    for number in range(COUNT * len(NAMES)):
        name = NAMES[number % len(NAMES)]
        uri = f"{name}-{number:03d}.png"
        draw(name, rng).save(folder / uri)
        lines.append(f"{uri},{'green' if number in (2, 5) else name}")  # two wrong labels: they are blue
    (folder / "gone.png").write_bytes(b"")
    (folder / "images.csv").write_text("\n".join([*lines, "gone.png,red"]))
    (folder / "names.txt").write_text("\n".join(NAMES))
    config = RunConfig(
        (str(folder / "images.csv"),), str(folder / "model.keras"), str(folder / "run"), overlays="none", jit="off",
        class_names=str(folder / "names.txt"), preprocess="none", shard_size=50, targets="top:2",
    )  # fmt: skip
    run_job(config, [])
    return folder


def make_model() -> keras.Model:
    """The mean of what is only red, only green and only blue, on a 7x7 grid."""
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.AveragePooling2D(8)(keras.layers.Rescaling(1 / 255)(inputs))
    colors = keras.layers.Conv2D(3, 1, activation="relu", name="colors")
    pooled = keras.layers.GlobalAveragePooling2D()(colors(x))
    head = keras.layers.Dense(3, activation="softmax", name="head")
    model = keras.Model(inputs, head(pooled))
    only = 2 * np.eye(3) - np.ones((3, 3))
    colors.set_weights([only[None, None], np.zeros(3)])
    head.set_weights([150 * np.eye(3), np.zeros(3)])
    return model


def draw(name: str, rng: np.random.Generator) -> Image.Image:
    """A grey ground with a square of the colour: red ones in the corner, others somewhere."""
    pixels = rng.integers(90, 110, (SIDE, SIDE, 1)).repeat(3, axis=2).astype(np.uint8)
    x, y = (48, 48) if name == "red" else 8 * rng.integers(1, 5, 2)
    pixels[y : y + 8, x : x + 8] = np.eye(3)[NAMES.index(name)] * 200
    return Image.fromarray(pixels)


def audit(folder: Path, *options: str, run: str = "run") -> tuple[int, dict[str, Any]]:
    code = main(["audit", str(folder / run), *options])
    out = Path(options[options.index("--out") + 1]) if "--out" in options else folder / run / "audit"
    return code, json.loads((out / "findings.json").read_text())


def test_the_marked_class_is_the_first_finding_and_no_other_class_is_one(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    code, content = audit(folder)
    first = content["findings"][0]
    assert (code, content["status"], first["rule"], first["state"]) == (0, "findings", "BC101", "new")
    assert (first["scope"]["class"], first["scope"]["name"], first["place"]) == (0, "red", "bottom-right corner")
    assert first["region"] == pytest.approx([6 / 7, 6 / 7, 1, 1], abs=1e-5)
    assert [one["rule"] for one in content["findings"]].count("BC101") == 1
    assert content["run"]["n_images"] == 3 * COUNT
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning BC101 red: 100% of the maps peak in one place (bottom-right corner)")
    assert lines[-1].startswith("findings: 0 error")
    assert lines[-1].endswith("report: " + str(folder / "run/audit/index.html"))


def test_what_an_audit_writes_is_what_its_schema_says(folder: Path) -> None:
    _, content = audit(folder)
    schema = json.loads((Path(audit_package.__file__).parent / "findings.schema.json").read_text())
    jsonschema.validate(content, schema)
    for where in ("findings", "baseline", "counts"):
        broken = {**content, where: None}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_wrong_labels_are_listed_with_their_images(folder: Path) -> None:
    _, content = audit(folder)
    (found,) = (one for one in content["findings"] if one["rule"] == "BC103")
    assert (found["value"], found["severity"]) == (2, "info")
    named = {Path(example["uri"]).name for example in found["examples"]["worst"]}
    assert named == {"blue-002.png", "blue-005.png"}
    rows = pq.read_table(folder / "run/audit/findings.parquet").to_pylist()
    assert {Path(row["uri"]).name for row in rows if row["key"] == found["key"]} == named
    shortcut = [row for row in rows if row["rule"] == "BC101"]
    assert len(shortcut) == COUNT
    assert {row["predicted"] for row in shortcut} == {0}


def test_examples_are_six_of_each_kind_and_none_twice(folder: Path) -> None:
    _, content = audit(folder)
    examples = content["findings"][0]["examples"]
    ids = [example["id"] for kind in ("worst", "random") for example in examples[kind]]
    assert [len(examples[kind]) for kind in ("worst", "random")] == [6, 6]
    assert len(set(ids)) == 12
    assert all("/red-" in example["uri"] for kind in examples.values() for example in kind)


def test_an_audit_of_the_same_run_is_the_same_file(folder: Path, tmp_path: Path) -> None:
    audit(folder, "--out", str(tmp_path / "a"))
    audit(folder, "--out", str(tmp_path / "b"))
    for name in ("findings.json", "state.npz", "index.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_model_confirms_the_shortcut_which_is_an_error_then(folder: Path, tmp_path: Path) -> None:
    code, content = audit(folder, "--confirm", str(folder / "model.keras"), "--out", str(tmp_path))
    first = content["findings"][0]
    assert (code, content["status"], first["severity"]) == (1, "error", "error")
    told = first["evidence"]
    assert told["confirmed"] is True
    assert told["model_of_run"] is True
    assert told["p_marked"] > 0.8
    assert told["mask_drop"] > 0.4
    assert told["transplant_rise"] > 0.1 > abs(told["transplant_mirrored"])
    assert told["recurrence"] > told["recurrence_of_others"] + 0.3
    assert "; confirmed: pasted into 80 other images, the place takes p(red) from" in first["message"]


def test_another_model_that_does_not_go_by_the_corner_does_not_confirm_it(folder: Path, tmp_path: Path) -> None:
    model = make_model()
    model.get_layer("head").set_weights([np.zeros((3, 3)), np.array([5.0, 0, 0])])
    model.save(tmp_path / "other.keras")
    code, content = audit(folder, "--confirm", str(tmp_path / "other.keras"), "--out", str(tmp_path / "out"))
    first = content["findings"][0]
    assert (code, first["severity"], first["evidence"]["confirmed"]) == (0, "warning", False)
    assert first["evidence"]["model_of_run"] is False
    assert "; not confirmed: " in first["message"]


def test_an_accepted_run_is_the_baseline_of_those_beside_it(folder: Path, tmp_path: Path) -> None:
    night = tmp_path / "nights"
    shutil.copytree(folder / "run", night / "run")
    audit(night)
    assert main(["audit", "accept", str(night / "run")]) == 0
    code, content = audit(night)
    assert (code, content["baseline"]["rubber_stamp"]) == (0, False)
    assert {one["rule"]: one["state"] for one in content["findings"]}["BC101"] == "known"
    assert not [one for one in content["findings"] if one["rule"].startswith("BC2")]
    code, content = audit(night, "--baseline", str(night / "run/audit/state.npz"))
    assert (code, content["baseline"]["rubber_stamp"]) == (0, False)
    of_runs = {one["state"] for one in content["findings"] if one["rule"].startswith("BC1")}
    assert of_runs == {"known"}
    assert {one["state"] for one in content["findings"] if one["rule"] == "BC301"} == {"new"}
    code, content = audit(night, "--baseline", "none")
    assert content["baseline"]["rubber_stamp"] is True


def test_exit_codes_say_what_was_found_and_whether_it_could_be_judged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = ["--out", str(tmp_path)]
    assert main(["audit", str(folder / "run"), "--fail-on", "warning", *out]) == 1
    assert main(["audit", str(folder / "run"), "--fail-on", "never", *out]) == 0
    assert main(["audit", str(tmp_path / "nowhere"), *out]) == 3
    assert main(["audit", str(folder / "run"), "--config", str(tmp_path / "nowhere.toml"), *out]) == 2
    assert main(["audit", str(folder / "run"), "another", *out]) == 2
    assert main(["audit", str(folder / "run"), "--history", "-1", *out]) == 2
    assert main(["audit", str(folder / "run"), "--baseline", str(tmp_path / "nowhere"), *out]) == 2
    assert "the command is `beamcam audit RUN`" in capsys.readouterr().err


def test_a_method_or_a_run_that_is_not_named_rightly_is_wrong_usage(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["audit", str(folder / "run"), "--method", "nosuch", "--out", str(tmp_path)]) == 2
    assert "has no maps of 'nosuch': name one of its methods, " in capsys.readouterr().err
    assert main(["audit", "accept", str(folder / "run"), "--method", "nosuch"]) == 2
    assert "has no maps of 'nosuch'" in capsys.readouterr().err
    assert main(["audit", "accept"]) == 2
    assert "the command is `beamcam audit accept RUN`" in capsys.readouterr().err
    assert main(["audit", "show"]) == 2
    assert "the command is `beamcam audit show RUN CLASS`" in capsys.readouterr().err


def test_findings_are_told_though_they_cannot_be_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    nowhere = str(tmp_path / "file" / "audit")
    assert main(["audit", str(folder / "run"), "--out", nowhere]) == 2
    told = capsys.readouterr()
    assert told.out.startswith("warning BC101 red: 100% of the maps peak in one place (bottom-right corner)")
    assert "report: " not in told.out
    (line,) = told.err.splitlines()
    assert f"the audit in {nowhere!r} cannot be written: Not a directory (name another place with --out)" in line
    junit, out = str(tmp_path / "file" / "folder" / "junit.xml"), tmp_path / "out"
    assert main(["audit", str(folder / "run"), "-q", "--out", str(out), "--junit", junit]) == 2
    told = capsys.readouterr()
    assert [line.split("\t")[1] for line in told.out.splitlines()[:2]] == ["rule", "BC101"]
    (line,) = told.err.splitlines()
    assert f"the file {junit!r} cannot be written: Not a directory (name another place with --junit)" in line
    assert {"findings.json", "findings.parquet", "state.npz", "index.html"} <= {path.name for path in out.iterdir()}


def test_a_damaged_run_cannot_be_judged(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    for path in [*tmp_path.glob("run/sums/*"), *tmp_path.glob("run/records/*")]:
        path.write_bytes(b"PAR1")
    assert main(["audit", str(tmp_path / "run")]) == 3


def test_settings_suppress_rename_and_switch_off(folder: Path, tmp_path: Path) -> None:
    settings = tmp_path / "audit.toml"
    settings.write_text(
        '[BC301]\nseverity = "error"\n[BC103]\nenabled = false\n'
        '[[ignore]]\nrule = "BC101"\nclass = "red"\nuntil = 2999-01-01\nreason = "the corner is known"\n'
        '[[ignore]]\nrule = "BC105"\nuntil = 2020-01-01\nreason = "old"\n'
    )
    code, content = audit(folder, "--config", str(settings), "--out", str(tmp_path / "out"))
    states = {one["rule"]: (one["severity"], one["state"]) for one in content["findings"]}
    assert states == {"BC301": ("error", "new"), "BC304": ("warning", "new"), "BC101": ("warning", "suppressed"),
                      "BC102": ("warning", "new")}  # fmt: skip
    assert code == 1
    assert content["counts"]["suppressed"] == 1
    assert content["findings"][-1]["rule"] == "BC101"
    (off,) = (rule for rule in content["rules"] if rule["id"] == "BC103")
    assert (off["ran"], off["reason"]) == (False, "switched off by audit.toml")


def test_a_junit_file_has_a_case_for_each_rule(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    audit(folder, "--junit", str(path), "--fail-on", "warning", "--out", str(tmp_path / "out"))
    suite = ET.parse(path).getroot().find("testsuite")
    assert suite is not None
    failed = {case.get("name") for case in suite if case.find("failure") is not None}
    skipped = {str(case.get("name"))[:5] for case in suite if case.find("skipped") is not None}
    assert failed == {"BC101 suspected shortcut", "BC102 attention on the frame", "BC301 incomplete run"}
    assert {"BC108", "BC201"} <= skipped
    assert suite.get("failures") == "3"
    assert len(suite) == int(suite.get("tests", 0)) == 20


def test_quietly_findings_are_rows_of_a_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    audit(folder, "-q", "--out", str(tmp_path))
    header, *rows = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert header == ["key", "rule", "severity", "state", "class", "value", "threshold", "n", "message"]
    assert [row[1:5] for row in rows[:1]] == [["BC101", "warning", "new", "red"]]
    assert {len(row) for row in rows} == {9}


def test_the_page_of_a_class_without_findings_is_made_when_asked_for(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    audit(folder)
    capsys.readouterr()
    assert main(["audit", "show", str(folder / "run"), "green"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page.name == "0001-green.html"
    assert "green" in page.read_text()
    assert main(["audit", "show", str(folder / "run"), "purple"]) == 2


def test_an_audited_run_is_still_whole(folder: Path) -> None:
    audit(folder)
    assert main(["verify", str(folder / "run")]) == 0


def test_a_store_that_does_not_answer_is_no_finding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ConnectionError("no route to the store")

    monkeypatch.setattr(command, "audit_run", fail)
    assert main(["audit", str(folder / "run")]) == 3
    assert "ConnectionError: no route to the store" in capsys.readouterr().err


def test_a_run_does_not_say_what_code_is_run_to_confirm_its_findings(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    change_json(tmp_path / "run" / "run.json", preprocess="antigravity:fly")
    model = str(folder / "model.keras")
    assert main(["audit", str(tmp_path / "run"), "--confirm", model]) == 2
    assert "--preprocess 'antigravity:fly', which is code: say --preprocess" in capsys.readouterr().err
    assert "antigravity" not in sys.modules
    code, content = audit(tmp_path, "--confirm", model, "--preprocess", "none")
    assert (code, content["findings"][0]["evidence"]["confirmed"]) == (1, True)


def test_a_hostile_baseline_is_told_or_passed_over(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "old")
    (tmp_path / "old" / "audit").mkdir(exist_ok=True)
    findings = [{"rule": "BC101", "severity": "fatal"}]
    (tmp_path / "old" / "audit" / "findings.json").write_text(json.dumps({"findings": findings}))
    code, content = audit(folder, "--baseline", str(tmp_path / "old"), "--out", str(tmp_path / "out"))
    assert (code, content["findings"][0]["state"]) == (0, "known")  # by the rules on the old sums
    (tmp_path / "state.npz").write_bytes(b"PK nonsense")
    out = ["--out", str(tmp_path / "out")]
    assert main(["audit", str(folder / "run"), "--baseline", str(tmp_path / "state.npz"), *out]) == 2


@pytest.mark.parametrize("changed", ["nothing", "class_names", "resize"])
def test_against_a_baseline_that_cannot_be_compared_no_shortcut_is_new_and_nothing_is_resolved(
    changed: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "run", tmp_path / "old")
    _, content = audit(tmp_path, "--baseline", "none", run="old")
    shortcut = content["findings"][0]
    gone = {**shortcut, "rule": "BC107", "scope": {**shortcut["scope"], "class": 1, "name": "green"}}
    change_json(tmp_path / "old/audit/findings.json", findings=[gone])
    old, config = tmp_path / "old/run.json", json.loads((folder / "run/run.json").read_text())["config"]
    if changed == "class_names":
        change_json(old, class_names=["red", "green", "violet"])
    elif changed == "resize":
        change_json(old, config={**config, "resize": "crop"})
    code, content = audit(folder, "--baseline", str(tmp_path / "old"), "--out", str(tmp_path / "out"))
    found = [(one["severity"], one["state"]) for one in content["findings"] if one["rule"] == "BC101"]
    resolved = [one["rule"] for one in content["findings"] if one["state"] == "resolved"]
    if changed == "nothing":
        assert (code, found, resolved) == (1, [("error", "new")], ["BC107"])
    else:
        assert (code, found, resolved) == (0, [("warning", "new")], [])
        assert "BC302" in {one["rule"] for one in content["findings"]}


def test_a_baseline_without_a_common_image_is_compared_class_by_class(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lines = ["uri,label"]
    rng = np.random.default_rng(8)
    for number in range(2 * 55):
        name = NAMES[1 + number % 2]
        draw(name, rng).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{name}")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    config = RunConfig(
        (str(tmp_path / "images.csv"),), str(folder / "model.keras"), str(tmp_path / "old"), overlays="none", jit="off",
        class_names=str(folder / "names.txt"), preprocess="none", targets="top:2",
    )  # fmt: skip
    run_job(config, [])
    code, content = audit(folder, "--baseline", str(tmp_path / "old"), "--out", str(tmp_path / "out"))
    first = content["findings"][0]
    assert (code, first["rule"], first["severity"], first["state"]) == (1, "BC101", "error", "new")  # it is learned now
    assert "BC303" in {one["rule"] for one in content["findings"]}  # red images were not there before
    assert content["baseline"]["id"] == str(tmp_path / "old")
    assert capsys.readouterr().err == ""
