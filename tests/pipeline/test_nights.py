"""`--since latest`: the last finished run before this one, of those that anything can be carried over from."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline import job, open_run, parquet, run_job, storage
from pipeline.cli import main, make_parser
from pipeline.commands import make_config
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.job import settle_since
from pipeline.layout import RunLayout
from pipeline.models import digest_of_file
from pipeline.nights import find_since
from pipeline.records import Entry
from pipeline.verify import verify_run


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    (tmp_path / "model.keras").write_bytes(b"weights")
    (tmp_path / "names.txt").write_text("ant\nbee")
    return Nights(tmp_path, str(tmp_path / "runs"))


@dataclasses.dataclass(frozen=True)
class Nights:
    """Runs beside each other, as far as their manifests tell of them."""

    folder: Path
    runs: str

    def config(self, date: str, **options: object) -> RunConfig:
        """A job."""
        given = {"class_names": str(self.folder / "names.txt"), "since": "latest", **options}
        return RunConfig(("-",), str(self.folder / "model.keras"), storage.join(self.runs, date), **given)

    def add(
        self,
        date: str,
        finished: bool = True,
        since: str | None = None,
        facts: Mapping[str, str] = types.MappingProxyType({}),
        **options: object,
    ) -> str:
        """Leaves a run behind; options are those that it was made with."""
        config = self.config(date, **{"precision": "float32", "since": None, **options})
        names = Path(config.class_names).read_text().split() if config.class_names else None
        facts = {
            **facts,
            "config": json.dumps(config.identity(), sort_keys=True), "config_digest": config.digest(), "n_images": "1",
            "model_digest": digest_of_file(config.model), "class_names": json.dumps(names), "schema_version": "1",
            "n_shards": "1", **({"since": since} if since else {}),
        }  # fmt: skip
        first, second = self.folder / f"{uuid.uuid4().hex}", self.folder / f"{uuid.uuid4().hex}"
        parquet.write_manifest(str(first), [Entry("a.jpg")], 256, {})
        parquet.copy_manifest(str(first), str(second), facts, None)
        layout = RunLayout(config.output)
        storage.write_file(layout.uri(layout.MANIFEST), str(second))
        if finished:
            storage.write_bytes(layout.uri(layout.SUMMARY), b"{}")
        return config.output

    def find(self, date: str, overwrite: bool = False, **options: object) -> tuple[str | None, str | None]:
        """What a job goes on from, and what the user is told."""
        config, note = find_since(self.config(date, **options), overwrite)
        return config.since, note


def test_it_is_the_last_finished_run_whose_name_comes_before(nights: Nights) -> None:
    nights.add("2026-11-18")
    wanted = nights.add("2026-11-19")
    nights.add("2026-11-20", finished=False)
    nights.add("2026-11-22")
    storage.write_bytes(storage.join(nights.runs, "2026-11-20-notes/notes.txt"), b"no run")
    found, note = nights.find("2026-11-21")
    assert found == wanted
    assert note == f"records of unchanged images are carried over from {wanted}"


def test_of_runs_that_broke_off_it_is_the_last_if_none_has_finished(nights: Nights) -> None:
    nights.add("2026-11-19", finished=False)
    wanted = nights.add("2026-11-20", finished=False)
    assert nights.find("2026-11-21")[0] == wanted


def test_the_first_night_has_none(nights: Nights) -> None:
    assert nights.find("2026-11-21") == (
        None, f"there is no earlier run beside {nights.runs}/2026-11-21: every image is explained"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"targets": "top:2"}, "--targets was 'top:2' and is 'top:1'"),
        ({"precision": "bfloat16"}, "--precision was 'bfloat16' and is 'float32'"),
    ],
)
def test_a_run_of_other_options_is_passed_over(nights: Nights, options: dict[str, object], why: str) -> None:
    other = nights.add("2026-11-20", **options)
    found, note = nights.find("2026-11-21", precision="float32")
    assert (found, note) == (None, f"the run {other} is of another configuration ({why}): every image is explained")
    wanted = nights.add("2026-11-19")
    assert nights.find("2026-11-21", precision="float32")[0] == wanted


@pytest.mark.parametrize(("file", "why"), [("model.keras", "model digest"), ("names.txt", "class names")])
def test_a_run_of_another_model_or_other_names_is_passed_over(nights: Nights, file: str, why: str) -> None:
    nights.add("2026-11-20")
    (nights.folder / file).write_bytes(b"others")
    found, note = nights.find("2026-11-21")
    assert found is None
    assert f"({why} has changed)" in str(note)


def test_what_may_differ_between_runs_does_not_keep_it_from_being_found(nights: Nights) -> None:
    wanted = nights.add("2026-11-20", precision="bfloat16", shard_size=7, batch_size=3, jit="on")
    assert nights.find("2026-11-21")[0] == wanted


def test_a_run_that_was_begun_goes_on_with_what_it_began_with(nights: Nights) -> None:
    before = nights.add("2026-11-19")
    nights.add("2026-11-21", finished=False, since=before)
    later = nights.add("2026-11-20")  # was taken up again, and finished, meanwhile
    assert nights.find("2026-11-21") == (before, None)
    assert nights.find("2026-11-21", overwrite=True)[0] == later


def test_a_run_that_was_begun_without_stays_without(nights: Nights) -> None:
    nights.add("2026-11-21", finished=False)
    nights.add("2026-11-20")
    assert nights.find("2026-11-21") == (None, None)


def test_any_other_run_is_taken_at_its_word(nights: Nights) -> None:
    config = nights.config("2026-11-21", since="/elsewhere")
    assert find_since(config) == (config, None)
    assert find_since(dataclasses.replace(config, since=None))[0].since is None


def test_the_word_is_no_path_on_the_command_line_and_a_folder_of_that_name_is(tmp_path: Path) -> None:
    for word, expected in (("latest", "latest"), ("./latest", f"{Path.cwd()}/latest")):
        words = ["run", "--images", "-", "--model", "m", "--output", str(tmp_path), "--since", word]
        assert make_config(make_parser().parse_args(words)).since == expected


def test_runs_that_cannot_be_looked_at_are_told_in_one_line(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> list[str]:
        raise PermissionError(13, "may not be listed", uri)

    monkeypatch.setattr(storage, "list_folders", refuse)
    with pytest.raises(ConfigError, match=r"--since latest: the runs beside '.*/2026-11-21' cannot be looked at: Perm"):
        nights.find("2026-11-21")


# What is known of a run's model when it is loaded, and not before


@pytest.fixture
def photograph(photographs: Path, tmp_path: Path) -> str:
    """A list with one image."""
    (tmp_path / "one.txt").write_text(f"{photographs}/00.jpg\n")
    return str(tmp_path / "one.txt")


@pytest.fixture
def retrained(tiny_model_path: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The model `night_models:make`, whose weights are multiplied by the last of these numbers."""
    factors = [1.0]

    def make() -> object:
        import keras

        model = keras.saving.load_model(tiny_model_path)
        model.set_weights([weight * factors[-1] for weight in model.get_weights()])
        return model

    module = types.ModuleType("night_models")
    module.__dict__["make"] = make
    monkeypatch.setitem(sys.modules, "night_models", module)
    return factors


def test_a_model_that_is_another_one_when_it_is_loaded_does_not_end_the_night(
    photograph: str, retrained: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def night(date: str, *words: str) -> tuple[int, str]:
        output = str(tmp_path / "runs" / date)
        code = main(["run", "--images", photograph, "--model", "night_models:make", "--preprocess", "tf", "--jit",
                     "off", "--output", output, *words])  # fmt: skip
        return code, "".join(capsys.readouterr())

    assert night("2026-11-20", "--since", "latest")[0] == 0
    before = str(tmp_path / "runs/2026-11-20")
    retrained.append(1.5)
    why = f"the run {before} is of another configuration (model digest has changed): every image is explained"
    code, said = night("2026-11-21", "--since", "latest", "--dry-run")
    assert (code, why in said) == (0, True), said
    code, said = night("2026-11-21", "--since", before)
    assert (code, "(model digest has changed), whose records are not those of this job" in said) == (2, True), said
    code, said = night("2026-11-21", "--since", "latest")
    assert (code, why in said) == (0, True), said
    run = open_run(tmp_path / "runs/2026-11-21")
    assert (run.summary["records"], run.summary["carried"], run.summary["config"]["since"]) == (1, 0, None)
    assert "since" not in parquet.read_metadata(str(tmp_path / "runs/2026-11-21/manifest.parquet"))
    assert list(verify_run(str(tmp_path / "runs/2026-11-21"))) == []
    assert night("2026-11-21", "--since", "latest")[0] == 0  # the same night again, which is there already
    code, said = night("2026-11-22", "--since", "latest")
    assert (code, "1 records carried over" in said) == (0, True), said


@pytest.mark.parametrize("name", ["model_digest", "activation_layer", "logits_layer", "preprocess", "schema_version"])
def test_the_latest_run_is_passed_over_where_a_named_one_is_refused(nights: Nights, name: str) -> None:
    same = {"activation_layer": "last", "logits_layer": "out", "preprocess": "tf", "versions": "{}"}
    before = nights.add("2026-11-20", facts=same, precision="float32")
    config = nights.config("2026-11-21", since=before, precision="float32")
    metadata = parquet.read_metadata(RunLayout(before).uri(RunLayout.MANIFEST))
    assert settle_since(config, metadata, latest=True) == (config, [])
    changed = {**metadata, name: "another"}
    why = f"{name.replace('_', ' ')} has changed"
    with pytest.raises(ConfigError, match=why):
        settle_since(config, changed)
    assert settle_since(config, changed, latest=True) == (
        dataclasses.replace(config, since=None),
        [f"the run {before} is of another configuration ({why}): every image is explained"],
    )


def test_a_latest_run_that_is_gone_meanwhile_is_refused(nights: Nights) -> None:
    config = nights.config("2026-11-21", since=f"{nights.runs}/2026-11-20")
    with pytest.raises(ConfigError, match="names no run"):
        settle_since(config, {}, latest=True)


def test_a_run_that_is_overwritten_takes_what_is_left_open_from_the_run_that_it_goes_on_from(
    nights: Nights, photograph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.add("2026-11-20", precision="bfloat16")
    nights.add("2026-11-21", precision="float16")
    loaded = []

    def load(config: RunConfig) -> None:
        loaded.append(config.precision)
        raise ConfigError("enough")

    monkeypatch.setattr(job, "_load_worker", load)
    config, _ = find_since(nights.config("2026-11-21"), overwrite=True)
    for since in (config.since, None):
        with pytest.raises(ConfigError, match="enough"):
            run_job(dataclasses.replace(config, images=(photograph,), since=since), [], overwrite=True)
    assert loaded == ["bfloat16", "auto"]


@pytest.mark.parametrize("store", ["gcs", "s3"])
def test_runs_are_found_on_object_stores(nights: Nights, store: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(store)
    there = dataclasses.replace(nights, runs=storage.join(base, f"nights-{uuid.uuid4().hex}"))
    there.add("2026-11-18")
    wanted = there.add("2026-11-19")
    there.add("2026-11-20", finished=False)
    assert there.find("2026-11-21")[0] == wanted
