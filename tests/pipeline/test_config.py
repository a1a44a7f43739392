"""A configuration is complete and valid the moment it exists, and survives JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pipeline.config import (
    NOT_PART_OF_A_RESULT,
    PREDICTED,
    PREPROCESSES,
    RunConfig,
    Targets,
    describe_difference,
)
from pipeline.errors import BeamcamError, ConfigError

BASE = RunConfig(images=("photos",), model="model.keras", output="run")

# Another valid value of every option.
OTHERS = {
    "images": ("a.csv", "b/*.jpg"),
    "model": "keras.applications:VGG16",
    "output": "gs://bucket/run",
    "layer": "conv5",
    "logits_layer": "scores",
    "reshape": "14x7",
    "class_names": "names.txt",
    "methods": ("cam", "gradcam"),
    "targets": "ids:3,17",
    "metrics": ("deletion", "energy"),
    "labels_from": "folder",
    "label_column": "class",
    "preprocess": "my.module:function",
    "resize": "pad",
    "input_size": (128, 224),
    "batch_size": 7,
    "shard_size": 9,
    "overlays": "layer",
    "overlay_size": 512,
    "overlay_sample": 0.25,
    "colormap": "viridis",
    "logits": "top:5",
    "map_dtype": "uint8",
    "max_pixels": 1_000_000,
    "max_bytes": 50_000,
    "max_failures": 0,
    "allow_unsafe_model": True,
    "jit": "off",
    "precision": "bfloat16",
    "since": "runs/yesterday",
    "storage_options": ("gs.requester_pays=true",),
    "storage_timeout": 20.5,
}


def _with(**changes: object) -> RunConfig:
    return dataclasses.replace(BASE, **changes)


def test_the_table_of_other_values_covers_every_option() -> None:
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    assert set(OTHERS) == fields
    assert all(getattr(BASE, name) != value for name, value in OTHERS.items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", (), r"nothing to explain: give --images a folder"),
        ("methods", (), r"--methods names at least one method"),
        ("targets", "top:0", r"--targets is top:K, label, predicted\+label, ids:3,17 or all, not 'top:0'"),
        ("targets", "best", r"--targets .*, not 'best'"),
        ("labels_from", "file", r"--labels-from is one of column, folder, none, not 'file'"),
        ("preprocess", "imagenet", r"--preprocess is one of tf, caffe, .* or module:function, not 'imagenet'"),
        ("resize", "zoom", r"--resize is one of stretch, crop, pad, not 'zoom'"),
        ("batch_size", 0, r"--batch-size is at least 1, not 0"),
        ("shard_size", -3, r"--shard-size is at least 1, not -3"),
        ("overlays", "heat", r"--overlays is one of blend, layer, none, not 'heat'"),
        ("max_bytes", 0, r"--max-bytes is at least 1, not 0"),
        ("storage_timeout", 0, r"--storage-timeout is a number of seconds above 0, not 0"),
        ("storage_timeout", float("inf"), r"--storage-timeout is a number of seconds above 0, not inf"),
        ("overlay_size", 0, r"--overlay-size is at least 1, not 0"),
        ("overlay_sample", 1.1, r"--overlay-sample is a share between 0 and 1, not 1\.1"),
        ("overlay_sample", -0.1, r"--overlay-sample is a share between 0 and 1, not -0\.1"),
        ("overlay_sample", float("nan"), r"--overlay-sample is a share between 0 and 1, not nan"),
        ("colormap", "infrared", r"--colormap: there is no colour map 'infrared': try inferno, viridis"),
        ("logits", "top", r"--logits is all or top:K, not 'top'"),
        ("logits", "top:0", r"--logits is all or top:K, not 'top:0'"),
        ("logits", "top:-1", r"--logits is all or top:K, not 'top:-1'"),
        ("logits", "best:3", r"--logits is all or top:K, not 'best:3'"),
        ("logits", "", r"--logits is all or top:K, not ''"),
        ("map_dtype", "float32", r"--map-dtype is one of float16, uint8, not 'float32'"),
        ("max_pixels", 0, r"--max-pixels is at least 1, not 0"),
        ("max_failures", -1, r"--max-failures is at least 0, not -1"),
        ("jit", "yes", r"--jit is one of auto, on, off, not 'yes'"),
        ("precision", "half", r"--precision is one of auto, float32, bfloat16, float16, not 'half'"),
        ("metrics", ("deletion", "speed"), r"--metrics are of deletion, insertion, .*, not 'speed'"),
        ("reshape", "patches", r"--reshape is tokens, or the height and width of a grid of them, not 'patches'"),
        ("input_size", (0, 224), r"--input-size .*\(0, 224\)"),
        ("input_size", (224, -1), r"--input-size .*\(224, -1\)"),
    ],
)
def test_an_invalid_value_is_told_with_its_option(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _with(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", "8"),
        ("shard_size", 1.5),
        ("max_pixels", "1e6"),
        ("max_failures", "none"),
        ("overlay_sample", "all"),
        ("overlay_size", [512]),
        ("input_size", (224,)),
        ("input_size", ("224", "224")),
        ("targets", 5),
        ("logits", 5),
        ("logits", "top:²"),
        ("labels_from", ["column"]),
        ("map_dtype", 16),
    ],
)
def test_a_value_of_the_wrong_type_as_yaml_may_bring_it_is_told_with_its_option(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        _with(**{name: value})
    assert f"--{name.replace('_', '-')} is" in str(caught.value)
    assert str(value) in str(caught.value)


def test_a_configuration_error_is_the_users_to_mend() -> None:
    assert issubclass(ConfigError, BeamcamError)
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize("name", OTHERS)
def test_a_valid_value_of_every_option_is_taken(name: str) -> None:
    assert getattr(_with(**{name: OTHERS[name]}), name) == OTHERS[name]


@pytest.mark.parametrize("preprocess", [None, *PREPROCESSES, "package.module:function"])
def test_every_named_preprocessing_is_taken(preprocess: str | None) -> None:
    assert _with(preprocess=preprocess).preprocess == preprocess


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0])
def test_a_share_may_be_nothing_or_all(value: float) -> None:
    assert _with(overlay_sample=value).overlay_sample == value


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="batch_size"):
        BASE.batch_size = 1


# JSON


def test_a_configuration_survives_json() -> None:
    for config in (BASE, RunConfig(**OTHERS)):
        restored = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert restored == config
        assert restored.digest() == config.digest()
        assert hash(restored) == hash(config)


def test_the_plain_form_has_every_option_by_name() -> None:
    plain = RunConfig(**OTHERS).to_dict()
    assert plain == {name: list(value) if isinstance(value, tuple) else value for name, value in OTHERS.items()}


def test_an_unknown_option_in_a_stored_configuration_is_no_silent_loss() -> None:
    with pytest.raises(TypeError, match="colour"):
        RunConfig.from_dict({**BASE.to_dict(), "colour": "red"})


def test_the_representation_is_the_constructor() -> None:
    config = RunConfig(**OTHERS)
    assert eval(repr(config), {"RunConfig": RunConfig}) == config


# Identity


def test_options_that_came_later_are_no_part_of_a_run_that_does_not_use_them() -> None:
    assert {"metrics", "reshape"} & set(BASE.identity()) == set()
    assert _with(metrics=("drop",), reshape="tokens").identity() == {
        **BASE.identity(), "metrics": ["drop"], "reshape": "tokens"
    }  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_is_another_if_and_only_if_an_option_of_the_result_is_another(name: str) -> None:
    other = _with(**{name: OTHERS[name]})
    results = ("output", "images", "batch_size", "jit", "max_failures", "allow_unsafe_model")
    may_change = name in (*results, "since", "storage_options", "storage_timeout")
    assert (other.identity() == BASE.identity()) == may_change
    assert (other.digest() == BASE.digest()) == may_change
    assert (name in NOT_PART_OF_A_RESULT) == may_change


def test_a_digest_is_the_same_in_every_process() -> None:
    # SHA-256 of the canonical JSON of the identity, by another road.
    import hashlib

    text = json.dumps(dict(sorted(BASE.identity().items())))
    assert BASE.digest() == hashlib.sha256(text.encode()).hexdigest()


def test_a_difference_is_told_option_by_option() -> None:
    old, new = BASE.identity(), _with(shard_size=64, map_dtype="uint8", layer="conv").identity()
    assert describe_difference(old, new) == (
        "--layer was None and is 'conv'; --map-dtype was 'float16' and is 'uint8'; --shard-size was 256 and is 64"
    )
    assert describe_difference(old, dict(old)) == ""


def test_an_option_that_an_older_run_did_not_have_differs_only_if_it_is_set() -> None:
    old = BASE.identity()
    del old["layer"], old["resize"]
    assert describe_difference(old, BASE.identity()) == "--resize was None and is 'stretch'"


# Targets and logits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top:1", Targets("top", count=1)),
        ("top:12", Targets("top", count=12)),
        ("label", Targets("label")),
        ("predicted+label", Targets("predicted+label")),
        ("ids:3,17", Targets("ids", ids=(3, 17))),
        ("ids:0", Targets("ids", ids=(0,))),
        ("all", Targets("all")),
    ],
)
def test_targets_are_read(text: str, expected: Targets) -> None:
    assert Targets.parse(text) == expected
    assert _with(targets=text).parsed_targets == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "top",
        "top:",
        "top:0",
        "top:-2",
        "top:x",
        "top:1.5",
        "ids",
        "ids:",
        "ids:a",
        "ids:1,",
        "label:2",
        "all:1",
        "TOP:1",
    ],
)
def test_nonsense_for_targets_is_refused_with_what_is_valid(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--targets is top:K, label, predicted\+label, ids:3,17 or all, not"
    ) as caught:
        Targets.parse(text)
    assert repr(text) in str(caught.value)


def test_a_negative_id_is_no_class() -> None:
    # -1 means "the next best class" inside the program, and must not come in from outside.
    with pytest.raises(ConfigError, match=r"--targets .*ids:-1"):
        Targets.parse("ids:-1")


@pytest.mark.parametrize(
    ("text", "columns", "labelled", "unlabelled"),
    [
        ("top:1", 1, [PREDICTED], [PREDICTED]),
        ("top:3", 3, [PREDICTED] * 3, [PREDICTED] * 3),
        ("label", 1, [4], [PREDICTED]),
        ("predicted+label", 2, [PREDICTED, 4], [PREDICTED, PREDICTED]),
        ("ids:3,0", 2, [3, 0], [3, 0]),
        ("all", 5, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
    ],
)
def test_every_kind_of_targets_fills_its_columns(
    text: str, columns: int, labelled: list[int], unlabelled: list[int]
) -> None:
    targets = Targets.parse(text)
    assert targets.columns(5) == columns
    assert targets.row(4, 5) == labelled
    assert targets.row(None, 5) == unlabelled


def test_class_zero_is_a_label() -> None:
    assert Targets.parse("label").row(0, 5) == [0]
    assert Targets.parse("predicted+label").row(0, 5) == [PREDICTED, 0]


def test_only_targets_that_name_the_label_need_labels() -> None:
    need = {text: Targets.parse(text).need_labels for text in ("top:1", "label", "predicted+label", "ids:1", "all")}
    assert need == {"top:1": False, "label": True, "predicted+label": True, "ids:1": False, "all": False}


@pytest.mark.parametrize(("text", "expected"), [("all", None), ("top:1", 1), ("top:20", 20)])
def test_logits_to_keep_are_read(text: str, expected: int | None) -> None:
    assert _with(logits=text).top_logits == expected
