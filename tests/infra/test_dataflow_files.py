"""The files that make Dataflow's image and template: every parameter, path and version in them is a real one."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import ConfigError, RunConfig, dataflow, engines
from pipeline.cli import make_parser
from pipeline.commands import make_config
from pipeline.graph import beam_option_names, prepare_options, suit_machines

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "infra/dataflow"
METADATA = json.loads((FOLDER / "metadata.json").read_text())
PARAMETERS = {parameter["name"]: parameter for parameter in METADATA["parameters"]}
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
SCRIPTS = sorted(FOLDER.glob("*.sh"))


@pytest.fixture(scope="module")
def launched() -> ModuleType:
    """The program that the template's launcher calls."""
    spec = importlib.util.spec_from_file_location("launched", FOLDER / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_options() -> dict[str, str]:
    """The options of `beamcam run`, by the names that they have as parameters."""
    run = make_parser()._subparsers._group_actions[0].choices["run"]
    return {word.lstrip("-").replace("-", "_"): word for action in run._actions for word in action.option_strings}


# The template's parameters


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_an_option_of_beamcam_or_of_beam(name: str) -> None:
    assert name in run_options() or f"--{name}" in beam_option_names()


def test_every_option_of_a_job_is_a_parameter() -> None:
    """But those that make no sense where nobody looks on, or that happen anyway."""
    senseless = {"help", "h", "verbose", "v", "dry_run", "resume", "log_format"}
    assert set(run_options()) - senseless <= set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_described_as_the_service_wants_it(name: str) -> None:
    parameter = PARAMETERS[name]
    assert set(parameter) <= {"name", "label", "helpText", "isOptional", "paramType", "regexes"}
    assert parameter["label"]
    assert parameter["helpText"].endswith(".")
    assert parameter["isOptional"] is True  # --config or --retry-failures may bring any of them
    assert parameter["paramType"] == "TEXT"
    for regex in parameter.get("regexes", ()):
        assert re.compile(regex).pattern.startswith("^")
        assert not re.search(r"\(\?", regex)  # the service's expressions know no lookahead


def test_defaults_that_parameters_tell_of_are_the_real_ones() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    texts = {name: parameter["helpText"] for name, parameter in PARAMETERS.items() if name in fields}
    found = {name: re.search(r"Default: ([\w:.]+?)[.,]? *(which|$)", text) for name, text in texts.items()}
    told = {name: match[1] for name, match in found.items() if match}
    assert len(told) >= 15
    for name, text in told.items():
        default = fields[name]
        if default is not None and default != ():
            words = ",".join(default) if isinstance(default, tuple) else str(default).removesuffix(".0")
            assert text == words, name


EXAMPLES = {
    "images": (["gs://b/photos/", "gs://b/*.jpg", '["gs://a/", "gs://b/"]', "s3://b/m.csv"], ["photos/", "/data", "[gs://a]"]),
    "model": (["gs://b/m.keras", "keras.applications:ResNet50", "mine.models:make"], ["m.keras", "/m.keras"]),
    "output": (["gs://my-bucket/runs/2026-11-22"], ["s3://b/run", "runs/one", "gs://b/with space"]),
    "methods": (["gradcam", "gradcam,scorecam(channels=32)", "rise(masks=200,seed=1),cam"],
                ["GradCAM!", "cam,,cam", "cam("]),
    "targets": (["top:3", "label", "predicted+label", "ids:3,17", "all"], ["top", "top:0", "ids:"]),
    "since": (["latest", "gs://b/runs/before"], ["yesterday", "runs/before"]),
    "overlay_sample": (["0", "1", "0.25", ".5", "1.0"], ["2", "-1", "half"]),
    "overwrite": (["true", "false"], ["yes", "1"]),
    "shard_size": (["256"], ["0", "-1", "1e3"]),
    "dataflow_service_options": (
        ["worker_accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver:5xx", "enable_prime,other=1"], ["a b"]
    ),
    "sdk_container_image": (["europe-west4-docker.pkg.dev/p/beamcam/beamcam:0.1.0-py3.11-0123456789ab"], ["beamcam"]),
    "storage_option": (["gs.requester_pays=true", '["gs.project=x", "gs.requester_pays=true"]'], ["requester_pays"]),
    "machine_type": ([dataflow.MACHINE, "n1-custom-8-16384"], ["G2", "large"]),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_service_lets_good_values_pass_and_stops_bad_ones(name: str) -> None:
    good, bad = EXAMPLES[name]
    (regex,) = PARAMETERS[name]["regexes"]
    assert [value for value in good if not re.search(regex, value)] == []
    assert [value for value in bad if re.search(regex, value)] == []


def test_all_methods_may_be_named() -> None:
    from explainers.methods.registry import METHODS

    (regex,) = PARAMETERS["methods"]["regexes"]
    assert [name for name in METHODS if not re.search(regex, name)] == []
    assert re.search(regex, ",".join(METHODS))


# The program that the launcher calls


def test_parameters_become_options(launched: ModuleType) -> None:
    words = launched.run_words(
        ["--images=gs://b/p/", "--shard_size=64", "--label_column=kind=of", "--overwrite=true", "--config=",
         "--allow_unsafe_model=false", '--storage_option=["gs.a=1", "gs.b=2"]', "--region=europe-west4",
         "--template_location=gs://b/t"], "registry/p/beamcam:1")  # fmt: skip
    assert words == [
        "run", "--images=gs://b/p/", "--shard-size=64", "--label-column=kind=of", "--overwrite",
        "--storage-option=gs.a=1",
        "--storage-option=gs.b=2", "--region=europe-west4", "--template_location=gs://b/t", "--runner=DataflowRunner",
        "--sdk_container_image=registry/p/beamcam:1", "--log-format=json",
    ]  # fmt: skip


def test_what_the_launcher_says_itself_is_not_said_twice(launched: ModuleType) -> None:
    words = launched.run_words(["--runner=DataflowRunner", "--sdk_container_image=other:2"], "registry/p/beamcam:1")
    assert words == ["run", "--runner=DataflowRunner", "--sdk_container_image=other:2", "--log-format=json"]


def test_an_option_that_beam_does_not_have_is_passed_over_and_told(launched: ModuleType, capsys) -> None:
    assert launched.run_words(["--dumpHeapOnOom=true", "--jit=off"], None)[1:] == [
        "--jit=off", "--runner=DataflowRunner", "--log-format=json"
    ]  # fmt: skip
    assert capsys.readouterr().err == "beamcam: --dumpHeapOnOom is passed over: Beam has no such option\n"


def test_all_parameters_together_are_understood(launched: ModuleType) -> None:
    values = {name: good[0] for name, (good, _) in EXAMPLES.items()}
    arguments, rest = make_parser().parse_known_args(launched.run_words([f"--{n}={v}" for n, v in values.items()]))
    assert (arguments.shard_size, arguments.since, arguments.overwrite) == (256, "latest", True)
    named = ("runner", "machine_type", "dataflow_service_options", "sdk_container_image")
    assert sorted(word.partition("=")[0] for word in rest) == sorted(f"--{name}" for name in named)


# What is documented


README = (FOLDER / "README.md").read_text()


@pytest.fixture
def client_of_dataflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataflow, "_is_installed", lambda _: True)


def test_the_documented_command_is_one_that_is_not_refused(client_of_dataflow: None) -> None:
    (block,) = (block for block in re.findall(r"```\n(.*?)```", README, re.DOTALL) if block.startswith("beamcam run"))
    words = shlex.split(block.replace("\\\n", " "))[1:]
    arguments, rest = make_parser().parse_known_args(words)
    config = make_config(arguments)
    assert (config.output, config.preprocess) == ("gs://my-bucket/runs/2026-11-22", "tf")
    assert prepare_options(rest, config).get_all_options()["region"] == "europe-west4"


def test_the_table_of_what_is_filled_in_is_complete_and_right(client_of_dataflow: None) -> None:
    rows = dict(re.findall(r"^\| `(--\w+)` \| (.*?) \| .* \|$", README, re.MULTILINE))
    said: list[str] = []
    words = ["--runner=DataflowRunner", "--project=my-project", "--region=r", "--temp_location=gs://b/t",
             "--sdk_container_image=registry/p/beamcam:1"]  # fmt: skip
    config = RunConfig(("gs://b/p/",), "gs://b/m.keras", "gs://b/r")
    suit_machines(prepare_options(words, config, said.append), config, said.append)
    filled_in = dict(line.partition(": ")[0].partition("=")[::2] for line in said)
    assert set(rows) == set(filled_in)
    assert {name: value for name, value in rows.items() if not value.startswith(filled_in[name])} == {}


# The image


def test_the_images_versions_are_those_of_the_lock() -> None:
    lock = (FOLDER / "requirements.lock").read_text()
    (beam,) = re.findall(r"^ARG BEAM=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert f"\napache-beam=={beam} \\\n" in lock
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in (ROOT / "pyproject.toml").read_text()
    assert python.replace(".", "") in re.findall(r"^ARG LAUNCHER=(\S+)$", DOCKERFILE, re.MULTILINE)[0]


def test_the_image_has_what_the_project_is_tested_with() -> None:
    """Its lock agrees with the project's in every package, and adds CUDA and the client of Dataflow."""

    def pinned(path: Path) -> dict[str, set[str]]:
        pins: dict[str, set[str]] = {}
        for name, version in re.findall(r"^([a-z0-9-]+)==([^ ;]+)", path.read_text(), re.MULTILINE):
            pins.setdefault(name, set()).add(version)
        return pins

    ours, images = pinned(ROOT / "requirements.lock"), pinned(FOLDER / "requirements.lock")
    assert {name: images.get(name) for name in ours} == ours
    added = {name for name in images if name not in ours}
    assert {"nvidia-cudnn-cu12", "nvidia-cuda-nvcc-cu12", "google-cloud-dataflow-client"} <= added


def test_all_that_the_image_copies_is_there_and_is_let_through() -> None:
    let_through = [
        line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copied = [
        path for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for path in line.split()
    ]
    assert sorted(copied) == sorted(let_through)
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_the_image_starts_workers_and_knows_the_templates_program() -> None:
    assert re.search(r'^ENTRYPOINT \["/opt/apache/beam/boot"\]$', DOCKERFILE, re.MULTILINE)
    assert (
        "COPY infra/dataflow/main.py /template/main.py\nENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/main.py"
        in DOCKERFILE
    )
    assert "/opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher" in DOCKERFILE


def lint(program: str, *words: str) -> subprocess.CompletedProcess:
    path = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"no {program}: pip install {program}-{'bin' if program == 'hadolint' else 'py'}")
    return subprocess.run([path, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_hadolint_has_nothing_to_say() -> None:
    ended = lint("hadolint", "--failure-threshold", "style", str(FOLDER / "Dockerfile"))
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    ended = lint("shellcheck", str(script))
    assert (ended.returncode, ended.stdout) == (0, "")
    assert os.access(script, os.X_OK)


# The scripts, with programs that write down what they were told in place of Google's and Docker's


@pytest.fixture
def told(tmp_path: Path) -> dict[str, str]:
    """An environment in which gcloud and docker write down their words."""
    for name in ("gcloud", "docker"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\nprintf "%s\\0" {name} "$@" >> {tmp_path}/told\nprintf "\\n" >> {tmp_path}/told\n'
        )
        program.chmod(0o755)
    return {
        "PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TOLD": f"{tmp_path}/told",
    }


def run_script(name: str, words: list[str], env: dict[str, str], **more: str) -> tuple[int, str, list[list[str]]]:
    ended = subprocess.run(["sh", str(FOLDER / name), *words], env=env | more, capture_output=True, text=True,
                           timeout=60, check=False)  # fmt: skip
    path = Path(env["TOLD"])
    lines = path.read_text().split("\0\n") if path.exists() else []
    return ended.returncode, ended.stderr, [line.split("\0") for line in lines if line]


PLACES = {"PROJECT": "my-project", "REGION": "europe-west4", "TEMP": "gs://b/temp"}


def test_a_launch_hands_every_parameter_over_as_it_is(told: dict[str, str]) -> None:
    gpu = "worker_accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver:5xx"
    parameters = ["images=gs://b/photos/", "methods=gradcam,scorecam(channels=32)", f"dataflow_service_options={gpu}"]
    code, _, ((*command,),) = run_script("launch.sh", ["gs://b/t.json", *parameters], told, **PLACES, ACCOUNT="w@p")
    assert code == 0
    assert command[:4] == ["gcloud", "dataflow", "flex-template", "run"]
    assert re.fullmatch(r"beamcam-\d{8}-\d{6}", command[4])
    options = dict(zip(command[5::2], command[6::2], strict=True))
    assert options["--parameters"] == "^~^" + "~".join(parameters)
    assert options["--template-file-gcs-location"] == "gs://b/t.json"
    assert (options["--service-account-email"], options["--max-workers"]) == ("w@p", "10")


def test_private_addresses_come_with_a_subnetwork(told: dict[str, str]) -> None:
    _, _, ((*command,),) = run_script(
        "launch.sh", ["gs://b/t.json"], told, **PLACES, SUBNETWORK="regions/r/subnetworks/s"
    )
    assert command[command.index("--subnetwork") + 1 :][:2] == ["regions/r/subnetworks/s", "--disable-public-ips"]
    assert "--parameters" not in command


@pytest.mark.parametrize(("word", "complaint"), [("images", "parameters are NAME=VALUE, not images"),
                                                 ("images=gs://b/~x", "no parameter may hold a ~")])  # fmt: skip
def test_words_that_are_no_parameters_are_refused(told: dict[str, str], word: str, complaint: str) -> None:
    code, said, commands = run_script("launch.sh", ["gs://b/t.json", word], told, **PLACES)
    assert (code, commands) == (2, [])
    assert complaint in said


def test_a_build_names_its_image_by_version_python_and_commit(told, tmp_path, monkeypatch) -> None:
    checkout = tmp_path / "checkout"
    for path in ("pyproject.toml", "infra/dataflow/requirements.lock", "infra/dataflow/build.sh"):
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, checkout / path)
    git = ["git", "-C", str(checkout), "-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True, timeout=60)

    def build() -> subprocess.CompletedProcess:
        command = ["sh", str(checkout / "infra/dataflow/build.sh"), "registry/p/beamcam", "gs://b/t.json"]
        return subprocess.run(command, env=told, capture_output=True, text=True, timeout=60, check=False)

    ended = build()
    image = ended.stdout.split()[-1]
    assert re.fullmatch(r"registry/p/beamcam/beamcam:0\.1\.0-py3\.11-[0-9a-f]{12}", image)
    docker, push, template = (line.split("\0") for line in Path(told["TOLD"]).read_text().split("\0\n") if line)
    assert docker[docker.index("--tag") + 1] == image
    assert {"PYTHON=3.11", "BEAM=2.77.0", f"IMAGE={image}"} <= set(docker)
    assert push == ["docker", "push", image]
    assert template[template.index("--image") + 1] == image
    # The name is one that a launcher of another Python is warned by.
    monkeypatch.setattr(dataflow, "_is_installed", lambda _: True)
    monkeypatch.setattr(dataflow.sys, "version_info", (3, 12))
    given = {"runner": "DataflowRunner", "project": "p", "region": "r", "temp_location": "gs://b/t"}
    with pytest.raises(ConfigError, match=r"has Python 3\.11, and this is Python 3\.12"):
        engines.check_job(
            {**given, "sdk_container_image": image}, RunConfig(("gs://b/p/",), "gs://b/m.keras", "gs://b/r")
        )
    monkeypatch.undo()
    (checkout / "pyproject.toml").write_text("changed")
    again = build()
    assert again.returncode == 1
    assert "changes that are not committed" in again.stderr
