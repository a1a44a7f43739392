"""The threat model of ARCHITECTURE.md, where a claim belongs to no single module."""

from __future__ import annotations

import io
import json
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import cli, commands, parquet, progress, run, storage
from pipeline.class_names import load_class_names
from pipeline.config import LATER, RunConfig
from pipeline.errors import ConfigError, RunError
from pipeline.layout import RunLayout, is_overlay
from pipeline.reading import Run
from pipeline.records import Entry, image_id
from pipeline.sheet import make_sheet

ROOT = Path(__file__).parent.parent
ANY_TEXT = st.text(st.characters(codec="utf-8"))
OWN = "overlays/ab/ab" + 30 * "0" + "-gradcam-3.png"


def test_every_claim_of_the_threat_model_names_a_test_that_is_there() -> None:
    section = re.search(r"## Threat model\n(.*?)\n## ", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL)
    assert section is not None
    names = re.findall(r"`(test_\w+)`", section[1])
    assert len(names) >= 15
    known = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    assert [name for name in names if f"def {name}(" not in known] == []


# Names


@given(uri=ANY_TEXT, method=st.text(), target=st.integers(0, 10**6), output=st.sampled_from(["/runs/a", "gs://b/a"]))
@settings(deadline=None)  # the first gs:// imports a library
def test_no_name_leads_out_of_the_output_folder(uri: str, method: str, target: int, output: str) -> None:
    layout = RunLayout(output)
    path = layout.overlay(image_id(uri), method, target)
    folder, name = path.rsplit("/", 1)
    assert folder == f"overlays/{image_id(uri)[:2]}"
    assert re.fullmatch(r"[A-Za-z0-9_.-]+\.png", name)
    assert not name.startswith(".")
    assert is_overlay(path)
    assert layout.uri(path) == f"{output}/{path}" == layout.overlay_uri(path)


@given(label=st.none() | ANY_TEXT, uri=ANY_TEXT)
def test_labels_are_no_part_of_any_name(label: str | None, uri: str) -> None:
    assert Entry(uri, label).id == Entry(uri).id


# A run folder from somebody else


def run_of_somebody(folder: Path) -> Run:
    summary = {
        "config_digest": "", "model_digest": "", "class_names": None, "inputs": 1, "records": 1, "failures": 0,
        "overlays": 1, "shards": 1,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(summary))
    return Run(str(folder))


@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "../secret.png",
        "overlays/../../secret.png",
        f"../other/../{OWN}",
        f"{OWN}/../../../../secret.png",
        f"overlays/../{OWN}",
        "run.json",
        "overlays/ab/secret.png",
        f"http://169.254.169.254/{OWN}",
        f"https://example.org/{OWN}",
        f"ssh://host/{OWN}",
        f"simplecache::http://host/{OWN}",
        f"{OWN}\n",
        "",
    ],
)
def test_a_record_cannot_make_a_reader_read_other_files(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_text("secret")
    found = run_of_somebody(tmp_path / "run")
    with pytest.raises(RunError, match="as its overlay, which is not read"):
        found.read_overlay(path)


def test_overlays_of_a_run_and_of_an_earlier_one_are_read(tmp_path: Path) -> None:
    found = run_of_somebody(tmp_path / "run")
    for place in ("run", "earlier"):
        storage.write_bytes(f"{tmp_path}/{place}/{OWN}", place.encode())
    assert found.read_overlay(OWN) == b"run"
    assert found.read_overlay(f"{tmp_path}/earlier/{OWN}") == b"earlier"
    layout = RunLayout(str(tmp_path / "run"))
    for uri in (f"gs://bucket/old/{OWN}", f"s3://bucket/old/{OWN}"):
        assert layout.overlay_uri(uri) == uri
    assert RunLayout("az://b/run").overlay_uri(f"az://b/old/{OWN}") == f"az://b/old/{OWN}"
    with pytest.raises(RunError):
        RunLayout("gs://b/run").overlay_uri(f"az://b/old/{OWN}")


def run_on_disk(folder: Path) -> RunLayout:
    """The folders of a run, with a file in each."""
    layout = RunLayout(str(folder))
    for path in (layout.records(0), layout.failures(0), layout.marker(0), OWN, "run.json", "manifest.parquet"):
        storage.write_bytes(layout.uri(path), b"x")
    return layout


def test_removing_a_run_leaves_alone_what_its_links_lead_to(tmp_path: Path) -> None:
    layout = run_on_disk(tmp_path / "run")
    private = tmp_path / "private"
    private.mkdir()
    (private / "letter.txt").write_text("dear reader")
    (tmp_path / "run" / "overlays" / "cd").symlink_to(private)
    (tmp_path / "run" / "records" / "part-00001.parquet").symlink_to(private / "letter.txt")
    run.remove_run(layout)
    assert (private / "letter.txt").read_text() == "dear reader"
    assert not any((tmp_path / "run").rglob("*"))


def test_a_folder_of_a_run_that_is_a_link_is_not_emptied(tmp_path: Path) -> None:
    layout = run_on_disk(tmp_path / "run")
    private = tmp_path / "private"
    private.mkdir()
    (private / "letter.txt").write_text("dear reader")
    (tmp_path / "run" / "shards" / "00000.json").unlink()
    (tmp_path / "run" / "shards").rmdir()
    (tmp_path / "run" / "shards").symlink_to(private)
    with pytest.raises(ConfigError, match=r"cannot be removed: .* symbolic link"):
        run.remove_run(layout)
    assert (private / "letter.txt").read_text() == "dear reader"


def test_overlays_that_no_record_names_are_removed_and_other_files_are_not(tmp_path: Path) -> None:
    layout = RunLayout(str(tmp_path / "run"))
    private = tmp_path / "private"
    private.mkdir()
    (private / "letter.txt").write_text("dear reader")
    storage.write_bytes(layout.uri(OWN), b"x")
    (tmp_path / "run" / "overlays" / "cd").symlink_to(private)
    run.remove_orphans(layout, 0)
    assert not (tmp_path / "run" / OWN).exists()
    assert (private / "letter.txt").read_text() == "dear reader"


def test_a_run_does_not_say_whether_code_in_models_is_run(tmp_path: Path) -> None:
    config = RunConfig(("a.jpg",), "model.keras", str(tmp_path))
    identity = config.identity() | {"allow_unsafe_model": True, "storage_options": ["s3.endpoint_url=http://evil"]}
    metadata = {"schema_version": "1", "n_images": "1", "n_shards": "1", "config": json.dumps(identity)}
    metadata |= dict.fromkeys(("config_digest", "model_digest", "class_names"), "-")
    parquet.write_manifest(str(tmp_path / "manifest.parquet"), [Entry("a.jpg")], 1, metadata)
    found = run.config_of_run(str(tmp_path))
    assert found.model == "model.keras"
    assert found.allow_unsafe_model is False
    assert found.storage_options == ()
    assert set(LATER) <= set(RunConfig.__dataclass_fields__)


# What is written


def test_options_are_written_down_without_secrets() -> None:
    config = RunConfig(
        ("https://me:pass@h/a.csv", "https://h/b.csv?X-Amz-Signature=abc&x=1"),
        "https://me:pass@h/model.keras",
        "s3://bucket/run",
        storage_options=("s3.secret=abc", "s3.key=def", "gs.project=mine"),
    )
    written = config.without_secrets()
    assert written["images"] == ["https://***@h/a.csv", "https://h/b.csv?X-Amz-Signature=***&x=1"]
    assert written["model"] == "https://***@h/model.keras"
    assert written["storage_options"] == ["s3.secret=***", "s3.key=***", "gs.project=***"]
    assert written["output"] == "s3://bucket/run"
    assert written["batch_size"] == config.batch_size
    json.dumps(written)


def test_a_file_that_is_written_replaces_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "source").write_bytes(b"new")
    for name, write in {
        "bytes": lambda uri: storage.write_bytes(uri, b"new"),
        "file": lambda uri: storage.write_file(uri, str(tmp_path / "source")),
    }.items():
        link = tmp_path / name
        link.symlink_to(victim)
        write(str(link))
        assert link.read_bytes() == b"new"
        assert not link.is_symlink()
    assert victim.read_text() == "untouched"


def test_temporary_names_cannot_be_guessed(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        with storage._appearing(tmp_path / "a") as temporary:
            names.append(temporary.name)
            temporary.write_bytes(b"x")
    ends = {name.rsplit("-", 1)[-1] for name in names}
    assert len(ends) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", end) for end in ends), "128 bits, of which 122 are random"


def test_files_get_the_rights_that_the_user_gives_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        storage.write_bytes(str(tmp_path / "a" / "b"), b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750


# What is shown

HARMFUL = "a\x1b[2J\r\nb\u202e"
HARMLESS = "a\\x1b[2J\\r\\nb\\u202e"


def test_commands_show_names_harmlessly(capsys: pytest.CaptureFixture[str]) -> None:
    commands.say(f"{HARMFUL} https://me:sEcReT@h/a")
    progress.tell(HARMFUL)
    out, err = capsys.readouterr()
    assert out == f"{HARMLESS} https://***@h/a\n"
    assert err == f"{HARMLESS}\n"


def test_complaints_show_names_harmlessly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", f"{tmp_path}/{HARMFUL}?token=sEcReT"]) in (1, 2)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\u202e" not in out + err
    assert "sEcReT" not in out + err
    assert "token=***" in err


def test_captions_show_names_harmlessly() -> None:
    picture = Image.new("RGB", (40, 40))
    assert make_sheet([(picture, "a\x1b[2J\u202eb\x00")], 1) == make_sheet([(picture, "a\\x1b[2J\\u202eb\\x00")], 1)
    long = make_sheet([(picture, "x" * 10**6)], 1)
    assert long == make_sheet([(picture, "x" * 1000)], 1)
    assert Image.open(io.BytesIO(long)).size[0] < 500


# Memory


def laughs() -> str:
    lines = ['a: &a ["lol"]']
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
    return "\n".join([*lines, "images: *j"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (laughs(), "refers back to its own values"),
        ("images: &x [*x]", "refers back to its own values"),
        ("[" * 900_000, "nested more than 20 levels deep"),
        ("a:\n" + "".join(f"{' ' * i}a:\n" for i in range(1, 500)), "nested more than 20 levels deep"),
        ("images: !!python/object/apply:os.system ['touch MARK']", "cannot be read"),
        ("images: 2001-99-99", "cannot be read"),
        ("images: \udc80", "cannot be read"),
    ],
    ids=["laughs", "ring", "deep", "indented", "code", "date", "bytes"],
)
def test_a_hostile_config_file_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "night.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=words) as caught:
        commands.read_config_file("night.yaml")
    assert len(str(caught.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["night.yaml"]


def test_files_of_options_and_of_names_are_not_read_beyond_their_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long.yaml").write_bytes(b"#" * (commands.MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match=r"long\.yaml' cannot be read"):
        commands.read_config_file(str(tmp_path / "long.yaml"))
    monkeypatch.setattr("pipeline.class_names.MAX_BYTES", 1000)
    (tmp_path / "names.txt").write_bytes(b"cat\n" * 251)
    with pytest.raises(ConfigError, match=r"names\.txt' cannot be read"):
        load_class_names(str(tmp_path / "names.txt"))


@pytest.mark.parametrize("text", ["[" * 500_000, '{"0": "cat", "2": "dog"}', "7", '{"a": "b"}', "[[]]", "\udcff"])
def test_hostile_class_names_are_told_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"names\.json' cannot be read") as caught:
        load_class_names(str(tmp_path / "names.json"))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400
