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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import ConfigError, RunConfig, dataflow, engines
from pipeline.cli import make_parser
from pipeline.commands import make_config
from pipeline.graph import beam_option_names, parse_beam_options, prepare_options, suit_machines

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


FORMS = {
    "a bare flag of Beam": ("--no_use_public_ips", ["--no_use_public_ips"], ""),
    "one that is true": ("--no_use_public_ips=true", ["--no_use_public_ips"], ""),
    "one whose opposite is asked for": ("--use_public_ips=False", ["--no_use_public_ips"], ""),
    "the opposite of an opposite": ("--no_use_public_ips=false", ["--use_public_ips"], ""),
    "one without an opposite": ("--no_wait_until_finish=false", [],
        "--no_wait_until_finish=false is passed over: it has no opposite, and the default holds"),
    "one that is on anyway": ("--enable_streaming_engine=false", [],
        "--enable_streaming_engine=false is passed over: it has no opposite, and the default holds"),
    "one that is neither": ("--use_public_ips=1", [], "--use_public_ips=1 is passed over: a flag is true or false"),
    "one that is empty": ("--no_use_public_ips=", [], ""),
    "a value": ("--region=europe-west4", ["--region=europe-west4"], ""),
    "a value that is true": ("--experiments=true", ["--experiments=true"], ""),
    "a value that looks like JSON": ("--experiments=[1]", ["--experiments=[1]"], ""),
    "no value": ("--region", [], "--region is passed over: it has no value"),
    "an empty value": ("--region=", [], ""),
    "a value that stands alone": ("update", [], "update is passed over: it stands alone, and options are --name=value"),
    "nobody's": ("--dumpHeapOnOom", [], "--dumpHeapOnOom is passed over: Beam has no such option"),
    "a bare flag of ours": ("--allow_unsafe_model", ["--allow-unsafe-model"], ""),
    "one of ours that is true": ("--overwrite=TRUE", ["--overwrite"], ""),
    "one of ours that is false": ("--overwrite=false", [], ""),
    "one of ours that is neither": ("--overwrite=yes", [], "--overwrite=yes is passed over: a flag is true or false"),
    "a value of ours": ("--shard_size=64", ["--shard-size=64"], ""),
    "no value of ours": ("--shard_size", [], "--shard-size is passed over: it has no value"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_an_option_reaches_beam_in_a_form_that_it_takes_or_is_told_of(launched: ModuleType, form: str, capsys) -> None:
    argument, words, said = FORMS[form]
    assert launched.run_words([argument])[1:] == [*words, "--runner=DataflowRunner", "--log-format=json"]
    assert capsys.readouterr().err == (f"beamcam: {said}\n" if said else "")
    _, rest = make_parser().parse_known_args(["run", *words])
    options = parse_beam_options(rest).get_all_options(drop_default=True)
    assert options.get("use_public_ips") == {"--no_use_public_ips": False, "--use_public_ips": True}.get("".join(words))


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
            f'echo "{name} talks"\ncase "{name} $*" in "${{FAILS:-nothing}}"*) exit 3 ;; esac\n'
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

    def build(**more: str) -> subprocess.CompletedProcess:
        command = ["sh", str(checkout / "infra/dataflow/build.sh"), "registry/p/beamcam", "gs://b/t.json"]
        return subprocess.run(command, env=told | more, capture_output=True, text=True, timeout=60, check=False)

    for step in ("docker build", "docker push", "gcloud dataflow"):
        failed = build(FAILS=step)
        assert (failed.returncode, failed.stdout) == (3, "")
    Path(told["TOLD"]).unlink()
    ended = build()
    assert ended.stderr.splitlines() == ["docker talks", "docker talks", "gcloud talks"]
    image = ended.stdout.split()[-1]
    assert ended.stdout == f"{image}\n"  # image=$(build.sh ...) has nothing else
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


# The look at the GPU, on a machine of stand-ins, where what is sent there is run


GCLOUD = """
case "$1 $2 $3" in
    "compute instances create") [ -z "${SIGNAL:-}" ] || kill -s "$SIGNAL" "$PPID" ;;
    "compute instances delete") exit "${DELETED:-0}" ;;
    "compute ssh "*)
        [ -z "${NO_SSH:-}" ] || { echo "$NO_SSH" >&2; exit 255; }
        while [ "$1" != --command ]; do shift; done
        exec sh -c "$2" ;;
esac
"""
DOCKER = """
while [ "$1" != --entrypoint ]; do shift; done
entry=$2
shift 3 # and the image
exec "$entry" "$@"
"""
TENSORFLOW = """
import os
class config:
    list_physical_devices = staticmethod(lambda kind: [f"the {kind}"] if "BLIND" not in os.environ else [])
"""
DEFAULTS = """
import os, signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
os.execvp("sh", ["sh", *sys.argv[1:]])
"""


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., tuple[subprocess.CompletedProcess, list[list[str]]]]:
    """Runs `gpu.sh` with a setting of the stand-ins; returns how it ended, and the words of all that was called."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python/tensorflow.py").write_text(TENSORFLOW)
    python = f'PYTHONPATH={tmp_path}/python exec {sys.executable} "$@"'
    bodies = {"gcloud": GCLOUD, "docker": DOCKER, "python": python}
    for name in (*bodies, "sudo", "sleep", "docker-credential-gcr", "nvidia-smi", "beamcam"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        told = f'printf "%s\\0" {name} "$@" >> {tmp_path}/told\nprintf "\\n" >> {tmp_path}/told\n'
        program.write_text(f"#!/bin/sh\n{told}{bodies.get(name, '')}\n")
        program.chmod(0o755)

    def run(**more: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        env = {"PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}", "PROJECT": "p", "ZONE": "z", **more}
        # With no signal ignored, as under nohup: a shell could not trap it.
        command = [sys.executable, "-c", DEFAULTS, str(FOLDER / "gpu.sh"), "registry/p/beamcam:1"]
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        return ended, [line.split("\0") for line in (tmp_path / "told").read_text().split("\0\n") if line]

    return run


def steps_of(told: list[list[str]]) -> list[str]:
    """What was asked of Google: create, delete, and ssh."""
    return [words[3] if words[2] == "instances" else words[2] for words in told if words[0] == "gcloud"]


def test_a_look_shows_the_gpu_as_tensorflow_sees_it_and_runs_the_demo(look) -> None:
    ended, told = look()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "['the GPU']\n"
    assert steps_of(told) == ["create", *["ssh"] * 5, "delete"]
    assert [words[0] for words in told[-5:]] == ["docker", "nvidia-smi", "python", "beamcam", "gcloud"]
    assert told[-2] == ["beamcam", "demo", "--count", "120", "--output", "/tmp/demo"]
    assert told[-1][4] == told[0][4]  # the machine that is removed is the one that was made
    assert {"--max-run-duration=1h", "--instance-termination-action=DELETE"} <= set(told[0])
    assert ["docker-credential-gcr", "configure-docker", "--registries", "registry"] in told


def test_a_gpu_that_tensorflow_does_not_see_ends_the_look(look) -> None:
    ended, told = look(BLIND="yes")
    assert (ended.returncode, ended.stdout) == (1, "[]\n")
    assert "beamcam" not in [words[0] for words in told]
    assert steps_of(told)[-1] == "delete"


@pytest.mark.parametrize("signal", ["HUP", "INT", "TERM"])
def test_a_look_that_is_interrupted_while_the_machine_is_made_removes_it(look, signal: str) -> None:
    ended, told = look(SIGNAL=signal)
    assert ended.returncode == 1
    assert steps_of(told) == ["create", "delete"]
    assert told[1][4] == told[0][4]


def test_a_machine_that_cannot_be_reached_is_given_up_with_the_reason_and_removed(look) -> None:
    ended, told = look(NO_SSH="Permission denied (publickey).")
    assert ended.returncode == 1
    name = told[0][4]
    assert ended.stderr == f"gpu.sh: no SSH to {name} in 30 tries, at last: Permission denied (publickey).\n"
    assert steps_of(told) == ["create", *["ssh"] * 30, "delete"]


def test_a_machine_that_may_be_left_is_told(look) -> None:
    ended, told = look(DELETED="1")
    assert ended.returncode == 1
    assert (
        ended.stderr == f"gpu.sh: {told[0][4]} could not be removed: if it is there, it costs money for up to an hour\n"
    )
