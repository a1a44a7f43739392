"""What the scripts for Flink and Prism say where something is missing, and that the documented options are Beam's."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.graph import parse_beam_options
from tests.engines import commands

ROOT = Path(__file__).parent.parent.parent
COMMANDS = {"infra/flink/README.md": ("[local]", "--environment_type"), "infra/prism/README.md": ("--prism_location",)}


def run(script: str, folder: Path, *words: str) -> tuple[int, str]:
    """Runs a script with a cache of its own where there are few programs; its exit code and what it says."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("sh", "dirname", "basename", "sed", "mkdir", "mktemp", "rm", "cmp", "seq"):
        target = shutil.which(name)
        assert target is not None
        if not (programs / name).exists():
            (programs / name).symlink_to(target)
    variables = {"PATH": str(programs), "BEAMCAM_CACHE": str(folder / "cache")}
    command = [str(ROOT / "infra" / script), *words]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("flink/get.sh", "get.sh: there is no java: the job server and Flink need Java 11 or 17"),
        ("prism/get.sh", "get.sh: there is no go: Prism is built by it"),
    ],
)
def test_what_is_missing_is_told_in_a_line_and_nothing_is_left(tmp_path, script, said) -> None:
    code, words = run(script, tmp_path)
    assert code == 1
    assert words.startswith(said)
    assert words.count("\n") == 1
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.startswith(".get")] == []


def test_a_cluster_without_flink_says_how_to_get_it(tmp_path) -> None:
    code, said = run("flink/cluster.sh", tmp_path, "start")
    assert code == 1
    assert said.startswith(f"cluster.sh: there is no Flink in {tmp_path}/cache/flink/flink-")
    assert said.endswith("infra/flink/get.sh gets it\n")
    code, said = run("flink/cluster.sh", tmp_path, "stop")
    assert code == 0, said


def test_what_is_no_verb_is_answered_with_the_verbs(tmp_path) -> None:
    code, said = run("flink/cluster.sh", tmp_path, "begin")
    assert code == 2
    assert "cluster.sh start | status | taskmanager | stop" in said


def test_what_the_cache_holds_is_not_fetched_again(tmp_path) -> None:
    version = commands.flink_version()
    cache = tmp_path / "cache/flink"
    (cache / f"flink-{version}/lib").mkdir(parents=True)
    (cache / "job-server.jar").touch()
    shutil.copy(ROOT / "infra/flink/pom.xml", cache)
    assert run("flink/get.sh", tmp_path)[0] == 0
    (cache / "pom.xml").write_text("an older one")
    assert "there is no java" in run("flink/get.sh", tmp_path)[1]


@pytest.mark.parametrize(("readme", "word"), [(name, word) for name, words in COMMANDS.items() for word in words])
def test_the_documented_options_are_beams(readme, word) -> None:
    parse_beam_options(commands.documented(readme, word))
