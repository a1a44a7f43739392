"""Model files that would run code, read other files or fill the memory are refused before Keras touches them."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import screening, storage
from pipeline.errors import ConfigError
from pipeline.models import load_model
from pipeline.screening import screen_model
from tests import models as nets

LAYER = "dense"  # the layer that attacks take the place of


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a harmless model, as plain.keras and plain.h5."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="relu", name=LAYER)], name="net")
    folder = tmp_path_factory.mktemp("plain")
    for suffix in (".keras", ".h5"):
        model.save(folder / f"plain{suffix}")
    return folder


@pytest.fixture
def keras_may_load() -> None:
    """For models that are loaded in the end."""


@pytest.fixture(autouse=True)
def keras_never_loads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is refused before Keras sees it: where a test does not say otherwise, Keras may not be called at all."""
    if "keras_may_load" not in request.fixturenames:

        def load(*_: Any, **__: Any) -> None:
            raise AssertionError("Keras was called")

        monkeypatch.setattr(keras.saving, "load_model", load)


def refusal(path: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(str(path))
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A .keras or .h5 file with another configuration."""
    if source.suffix == ".keras":
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name == "config.json":
                    config = json.loads(content)
                    change(config)
                    content = json.dumps(config).encode()
                new.writestr(name, content)
        return target
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)
    return target


def with_layer(layer: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Puts a layer behind the others; its name is `evil` unless it has one."""
    layer = copy.deepcopy(layer)
    if isinstance(layer.get("config"), dict):
        layer["config"].setdefault("name", "evil")
    return lambda config: config["config"]["layers"].append(layer)


def with_activation(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["config"]["layers"][-1]["config"].update(activation=value)


def function(module: str, name: str, registered: str | None = None) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": registered or name}


def layer(module: Any, name: str, /, **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": None}


# What a configuration names


FOREIGN = {  # what has been used against Keras, and its relatives: the change, and words of the message
    "a module of Python, CVE-2025-1550": (
        with_layer(layer("subprocess", "Popen", args=["touch", "MARK"])),
        r"layer 'evil' .* class 'Popen' of the module 'subprocess', which is neither Keras's own nor registered here",
    ),
    "a function of Python": (with_activation(function("os", "system")), "layer 'dense' .* function 'system' of 'os'"),
    "a function of builtins": (with_activation(function("builtins", "exec")), "function 'exec' of 'builtins'"),
    "a name that hides another": (
        with_activation(function("builtins", "relu", registered="get_file")),
        "calls the function 'relu'",
    ),
    "the switch of safe mode, CVE-2025-9906": (
        with_layer(function("keras.config", "enable_unsafe_deserialization")),
        "function 'enable_unsafe_deserialization' of 'keras.config'",
    ),
    "a download, CVE-2025-8747": (with_activation(function("keras.utils", "get_file")), "function 'get_file'"),
    "another download": (with_activation(function("keras.src.utils.file_utils", "get_file")), "function 'get_file'"),
    "a model within a model": (with_activation(function("keras.models", "load_model")), "function 'load_model'"),
    "a model of ImageNet": (with_activation(function("keras.applications", "VGG16")), "function 'VGG16'"),
    "a function that makes objects": (
        with_activation(function("keras.layers", "deserialize")),
        "function 'deserialize'",
    ),
    "an activation that is none": (with_activation(function("keras.activations", "get")), "function 'get'"),
    "a module inside Keras": (
        with_layer(layer("keras.src.utils.python_utils", "func_load", value="")),
        "class 'func_load' of the module 'keras.src.utils.python_utils'",
    ),
    "a module that Keras imported": (
        with_layer(layer("keras.src.saving.saving_lib", "zipfile")),
        "class 'zipfile' of the module",
    ),
    "a module below it": (with_layer(layer("keras.src.saving.saving_lib.os", "system")), "class 'system'"),
    "a package like Keras": (with_layer(layer("keras_hub.layers", "Backbone")), "class 'Backbone' of the module"),
    "a callback": (with_layer(layer("keras.callbacks", "CSVLogger", filename="MARK")), "class 'CSVLogger'"),
    "a pickle of Torch, CVE-2025-49655": (
        with_layer(layer("keras.layers", "TorchModuleWrapper", module="gASV")),
        "layer 'evil' that is a TorchModuleWrapper, which runs a program that Keras does not know",
    ),
    "the same by its other name": (
        with_layer(layer("keras.src.utils.torch_utils", "TorchModuleWrapper", module="gASV")),
        "is a TorchModuleWrapper",
    ),
    "a graph of TensorFlow, CVE-2026-1462": (
        with_layer(layer("keras.src.export.tfsm_layer", "TFSMLayer", filepath="MARK")),
        "is a TFSMLayer",
    ),
    "a program of JAX": (with_layer(layer("keras.layers", "JaxLayer")), "is a JaxLayer"),
    "a program of Flax": (with_layer(layer("keras.layers", "FlaxLayer")), "is a FlaxLayer"),
    "a type of TensorFlow": (
        with_layer({"class_name": "__typespec__", "spec_name": "TensorSpec", "module": "os", "config": []}),
        "holds a __typespec__ of TensorFlow",
    ),
    "a vocabulary that is a file, CVE-2025-12058": (
        with_layer(layer("keras.layers", "StringLookup", vocabulary="/etc/passwd")),
        "layer 'evil' that reads the file '/etc/passwd'",
    ),
    "a vocabulary elsewhere": (
        with_layer(layer("keras.layers", "IntegerLookup", vocabulary="http://169.254.169.254/latest")),
        "reads the file 'http://169.254.169.254/latest'",
    ),
    "a text's vocabulary": (
        with_layer(layer("keras.layers", "TextVectorization", vocabulary="gs://bucket/words")),
        "reads the file 'gs://bucket/words'",
    ),
    "an endless number": (
        with_layer({"class_name": "__numpy__", "config": {"value": [""], "dtype": "U2000000000"}}),
        "numbers of the type 'U2000000000'",
    ),
    "a layer inside a layer": (
        with_layer(layer("keras.layers", "TimeDistributed", layer=layer("os", "Popen", name="inside"))),
        "layer 'inside' .* class 'Popen'",
    ),
    "an initializer": (
        lambda config: config["config"]["layers"][-1]["config"].update(kernel_initializer=layer("os", "Popen")),
        "layer 'dense' .* class 'Popen'",
    ),
    "what a layer is built with": (
        lambda config: config["config"]["layers"][-1].update(build_config={"x": layer("os", "Popen")}),
        "class 'Popen'",
    ),
    "the training of a model inside": (
        with_layer(
            layer("keras", "Sequential", layers=[]) | {"compile_config": {"loss": function("keras.utils", "get_file")}}
        ),
        "function 'get_file'",
    ),
    "a class that is no text": (with_layer({"class_name": ["Popen"], "config": {}}), "no class that could be named"),
    "a module that is no text": (with_layer(layer(["os"], "Popen")), "no class that could be named"),
}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("attack", FOREIGN)
def test_what_is_not_kerass_own_is_refused_with_its_layer(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    change, words = FOREIGN[attack]
    path = changed(plain / f"plain{suffix}", tmp_path / f"evil{suffix}", change)
    message = refusal(path)
    assert re.search(words, message), message
    assert message.startswith(f"the model {str(path)!r} has a layer ")
    assert message.endswith(
        "if you trust where it comes from, say --allow-unsafe-model; better, make the model by a function of yours, "
        "--model module:factory"
    )
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "something was run that left a file"


@pytest.mark.parametrize(
    "layer_config",
    [
        {"class_name": "deserialize", "config": {"config": {}}},
        {"class_name": "serialize", "config": {"layer": {}}},
        {"class_name": "serialization_lib", "config": {}},
        {"class_name": "__builtins__", "config": {}},
        {"class_name": "TypeSpec", "type_spec": "tf.TensorSpec", "serialized": []},
        {"class_name": "CompositeTensor", "spec": {}, "tensors": []},
        {"class_name": "TFOpLambda", "config": {"function": "io.write_file"}},
    ],
    ids=lambda value: value["class_name"],
)
def test_names_that_old_files_look_up_among_keras_internals_are_refused(
    plain: Path, tmp_path: Path, layer_config: dict[str, Any]
) -> None:
    path = changed(plain / "plain.h5", tmp_path / "evil.h5", with_layer(layer_config))
    assert "has a layer " in refusal(path)


def lambda_layer(mark: Path) -> dict[str, Any]:
    """A Lambda layer whose code would leave a mark as soon as it runs."""
    path = str(mark)
    made = keras.layers.Lambda(lambda x: (open(path, "w").close(), x)[1], name="code")  # noqa: PTH123
    return keras.saving.serialize_keras_object(made)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", ["Lambda", "lambda"])
@pytest.mark.parametrize("module", ["keras.layers", "keras.src.layers.core.lambda_layer", None])
def test_code_is_refused_under_every_name(
    plain: Path, tmp_path: Path, module: str | None, name: str, suffix: str
) -> None:
    mark = tmp_path / "mark"
    code = lambda_layer(mark) | {"class_name": name, "module": module}
    message = refusal(changed(plain / f"plain{suffix}", tmp_path / f"evil{suffix}", with_layer(code)))
    assert "in the Lambda layers code, and loading it would run that code" in message or "class 'lambda'" in message
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_registered_name_does_not_hide_another_class(plain: Path, tmp_path: Path, suffix: str) -> None:
    # `tests.models` has registered ClassToken; Keras goes by one name or the other, as the format has it.
    name = keras.saving.get_registered_name(nets.ClassToken)
    assert keras.saving.get_registered_object(name) is nets.ClassToken
    code = lambda_layer(tmp_path / "mark") | {"registered_name": name}
    assert "holds Python code" in refusal(
        changed(plain / f"plain{suffix}", tmp_path / f"evil{suffix}", with_layer(code))
    )
    gadget = function("keras.utils", "get_file", registered=name)
    path = changed(plain / f"plain{suffix}", tmp_path / f"gadget{suffix}", with_activation(gadget))
    assert "function 'get_file'" in refusal(path)


def test_a_file_is_looked_into_as_the_format_that_keras_reads_it_as(plain: Path, tmp_path: Path) -> None:
    # An HDF5 file with a harmless archive behind it: is_zipfile says yes, and Keras goes by the suffix.
    mark = tmp_path / "mark"
    evil = changed(plain / "plain.h5", tmp_path / "evil.h5", with_layer(lambda_layer(mark)))
    evil.write_bytes(evil.read_bytes() + (plain / "plain.keras").read_bytes())
    assert zipfile.is_zipfile(evil)
    assert "holds Python code, in the Lambda layers code" in refusal(evil)
    assert not mark.exists()


def test_the_version_that_saved_a_file_is_told_with_a_class_that_this_one_lacks(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.keras"
    with zipfile.ZipFile(plain / "plain.keras") as old, zipfile.ZipFile(path, "w") as new:
        config = json.loads(old.read("config.json"))
        with_layer(layer("keras.layers", "Telepathy"))(config)
        new.writestr("metadata.json", json.dumps({"keras_version": "99.0.0"}))
        new.writestr("config.json", json.dumps(config))
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
    message = refusal(path)
    assert (
        f"(Keras 99.0.0 saved it, and this is Keras {keras.__version__}) has a layer 'evil' that is of the class"
        in message
    )
    assert "'Telepathy' of the module 'keras.layers', which is neither Keras's own nor registered here" in message


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_name_in_a_message_is_short_and_printable(plain: Path, tmp_path: Path, suffix: str) -> None:
    name = "\x1b[2J\u202e\n" + "x" * 5000
    evil = with_layer(layer("os", "Popen", name=name))
    message = refusal(changed(plain / f"plain{suffix}", tmp_path / f"evil{suffix}", evil))
    assert message.isprintable()
    assert len(message) < 800
    code = lambda_layer(tmp_path / "mark")
    code["config"]["name"] = name
    message = refusal(changed(plain / f"plain{suffix}", tmp_path / f"code{suffix}", with_layer(code)))
    assert message.isprintable()
    assert len(message) < 800


def test_training_that_is_passed_over_may_name_anything(plain: Path, tmp_path: Path) -> None:
    own = {"compile_config": {"loss": function("my.losses", "focal")}}
    screen_model(changed(plain / "plain.keras", tmp_path / "own.keras", lambda config: config.update(own)), "own")


@given(
    parts=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["class_name", "config", "module", "registered_name", "name", "layers", "dtype", "x"]),
                inner
                | st.sampled_from(["Lambda", "function", "__numpy__", "__lambda__", "Dense", "keras.layers", "os"]),
                max_size=5,
            )
        ),
        max_leaves=30,
    )
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_configuration_breaks_the_screening(parts: Any) -> None:
    refusals = list(screening._refusals(parts))
    text = json.dumps(parts)
    if '"class_name": "__lambda__"' in text:
        assert any(reason is None or "no class" in reason for _, reason in refusals)


# How a configuration is written


@pytest.mark.parametrize("key", ["class_name", "config", "layers"])
def test_a_name_that_is_given_twice_is_refused(plain: Path, tmp_path: Path, key: str) -> None:
    with zipfile.ZipFile(plain / "plain.keras") as archive:
        text = archive.read("config.json").decode()
    path = tmp_path / "twice.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", text.replace(f'"{key}": ', f'"{key}": "Lambda", "{key}": ', 1))
    assert "has a configuration that gives a name twice" in refusal(path)


@pytest.mark.parametrize(("depth", "words"), [(150, ""), (250, "more than 200 levels"), (500_000, "nested too deeply")])
def test_depth_is_bounded(tmp_path: Path, depth: int, words: str) -> None:
    path = tmp_path / "deep.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", '{"a":' * depth + "1" + "}" * depth)
    if words:
        assert words in refusal(path)
    else:
        screen_model(path, "deep")


def test_a_configuration_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "MAX_CONFIG", 1000)
    path, folder = tmp_path / "long.keras", tmp_path / "long"
    folder.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", " " * 1001)
    (folder / "config.json").write_text(" " * 1001)
    with h5py.File(tmp_path / "long.h5", "w") as file:
        file.attrs["model_config"] = " " * 1001
    for long in (path, folder, tmp_path / "long.h5"):
        assert "has a configuration of 1001 bytes, and 1000 are the most" in refusal(long)


def test_many_references_to_one_long_configuration_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file.attrs["model_config"] = ["{}", "{}"]
    assert "has more than one configuration" in refusal(tmp_path / "many.h5")


def test_a_configuration_that_is_no_json_is_told(tmp_path: Path) -> None:
    for text in (b"\xff{}", b"{'a': 1}", b""):
        with zipfile.ZipFile(tmp_path / "no.keras", "w") as archive:
            archive.writestr("config.json", text)
        assert "no.keras' cannot be loaded: ValueError: its configuration is no JSON: " in refusal(
            tmp_path / "no.keras"
        )


# Archives


def archive_with(path: Path, plain: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    path.write_bytes((plain / "plain.keras").read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["../mark", "assets/../../mark", "/tmp/mark", "C:/mark", "assets\\..\\mark", "assets/../../../../etc/mark"]
)
def test_members_that_would_lie_elsewhere_are_refused(plain: Path, tmp_path: Path, name: str) -> None:
    path = archive_with(tmp_path / "evil.keras", plain, (name, b"x"))
    assert "which would lie outside of the model's folder" in refusal(path)


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o020644, 0o060644, 0o140644])
def test_members_that_are_links_or_devices_are_refused(plain: Path, tmp_path: Path, mode: int) -> None:
    member = zipfile.ZipInfo("assets/vocabulary.txt")
    member.external_attr = mode << 16
    path = archive_with(tmp_path / "evil.keras", plain, (member, b"/etc/passwd"))
    assert "holds 'assets/vocabulary.txt', which is a link or no file" in refusal(path)


def test_two_members_of_one_name_are_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive_with(tmp_path / "evil.keras", plain, ("config.json", b"{}"))
    assert "holds two files of one name" in refusal(path)


def test_weights_that_are_not_looked_into_are_refused(plain: Path, tmp_path: Path) -> None:
    path = archive_with(tmp_path / "evil.keras", plain, ("model.weights.npz", b"x"))
    assert "keeps its weights in 'model.weights.npz', which is not looked into" in refusal(path)


def test_archives_that_grow_out_of_proportion_are_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "ALWAYS_FINE", 1_000_000)
    path = tmp_path / "bomb.keras"
    path.write_bytes((plain / "plain.keras").read_bytes())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(10_000_000))
    assert "bytes that would become 10" in refusal(path)
    monkeypatch.setattr(screening, "MAX_EXPANSION", 10_000)
    screen_model(path, "bomb")
    monkeypatch.setattr(screening, "MAX_BYTES", 9_000_000)
    assert "bytes that would become 10" in refusal(path)


def test_a_declared_size_that_is_a_lie_takes_no_more_than_was_declared(plain: Path, tmp_path: Path) -> None:
    # 50 MB of zeros whose entry says 100 bytes: what is read past that is an error of the archive.
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b"{}")
        archive.writestr("model.weights.h5", bytes(50_000_000))
    data = packed.getvalue().replace(struct.pack("<I", 50_000_000), struct.pack("<I", 100))
    (tmp_path / "lie.keras").write_bytes(data)
    assert "lie.keras' cannot be loaded: BadZipFile" in refusal(tmp_path / "lie.keras")


def test_the_number_of_members_is_bounded(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "MAX_MEMBERS", 5)
    path = archive_with(tmp_path / "many.keras", plain, ("a", b""), ("b", b""), ("c", b""))
    assert "holds 6 files, and 5 are the most" in refusal(path)


# HDF5


def h5_with(path: Path, plain: Path, change: Callable[[h5py.File], object]) -> Path:
    """A .h5 file, or a .keras archive whose weights are changed."""
    weights = path.with_name("weights.h5")
    if path.suffix == ".h5":
        weights.write_bytes((plain / "plain.h5").read_bytes())
    else:
        with zipfile.ZipFile(plain / "plain.keras") as archive:
            weights.write_bytes(archive.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        change(file)
    if path.suffix == ".h5":
        return weights.rename(path)
    with zipfile.ZipFile(plain / "plain.keras") as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("config.json", old.read("config.json"))
        new.writestr("metadata.json", old.read("metadata.json"))
        new.write(weights, "model.weights.h5")
    weights.unlink()
    return path


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("evil", layout)


H5_ATTACKS = {
    "a link to another file": (
        lambda file: file.__setitem__("evil", h5py.ExternalLink("/etc/other.h5", "/")),
        "holds 'evil', a link to weights that lie elsewhere",
    ),
    "a link inside a group": (
        lambda file: file.create_group("a/b").__setitem__("evil", h5py.ExternalLink("//host/share/x.h5", "/")),
        "holds 'evil', a link to weights that lie elsewhere",
    ),
    "a soft link": (
        lambda file: file.__setitem__("evil", h5py.SoftLink("/elsewhere")),
        "holds 'evil', a link to weights that lie elsewhere",
    ),
    "values in another file, CVE-2026-1669": (
        lambda file: file.create_dataset("evil", (4,), np.uint8, external=[("/etc/passwd", 0, 4)]),
        "holds the array '/evil', whose values lie in another file",
    ),
    "a virtual array": (virtual, "holds the array '/evil', whose values lie in another file"),
    "an array without values, CVE-2026-0897": (
        lambda file: file.create_dataset("evil", (1 << 40,), np.float32, chunks=(1 << 20,), compression="gzip"),
        "bytes that would become 4398046511",
    ),
}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("attack", H5_ATTACKS)
def test_weights_must_lie_in_the_file_itself(plain: Path, tmp_path: Path, attack: str, suffix: str) -> None:
    change, words = H5_ATTACKS[attack]
    message = refusal(h5_with(tmp_path / f"evil{suffix}", plain, change))
    assert words in message
    assert message.endswith("say --allow-unsafe-model; better, save it anew with Keras")


def test_a_filter_that_hdf5_would_look_for_is_refused(plain: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4,))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # Zstandard, a plug-in
        space, kind = h5py.h5s.create_simple((4,)), h5py.h5t.IEEE_F32LE
        h5py.h5d.create(file.id, b"evil", kind, space, properties)

    words = "holds the array '/evil', which another library would have to read"
    assert words in refusal(h5_with(tmp_path / "evil.h5", plain, change))


def test_groups_that_hold_each_other_do_not_go_on_for_ever(plain: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        group = file.create_group("a/b")
        group["back"] = file["a"]

    screen_model(h5_with(tmp_path / "ring.h5", plain, change), "ring")


# Folders


def unzipped(plain: Path, folder: Path) -> Path:
    with zipfile.ZipFile(plain / "plain.keras") as archive:
        archive.extractall(folder)
    return folder


def test_a_folder_with_a_link_that_leads_out_of_it_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = unzipped(plain, tmp_path / "net")
    (folder / "assets").mkdir()
    (folder / "assets" / "vocabulary.txt").symlink_to("/etc/passwd")
    assert "holds 'assets/vocabulary.txt', which lies outside of it: copy all of it into one folder" in refusal(folder)


def test_a_folder_whose_subfolder_lies_elsewhere_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = unzipped(plain, tmp_path / "net")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "letter.txt").write_text("x")
    (folder / "assets").symlink_to(tmp_path / "private")
    assert "holds 'assets/letter.txt', which lies outside of it" in refusal(folder)


@pytest.mark.usefixtures("keras_may_load")
def test_a_folder_with_links_inside_it_is_loaded(plain: Path, tmp_path: Path) -> None:
    folder = unzipped(plain, tmp_path / "net")
    (folder / "blob").write_bytes((folder / "config.json").read_bytes())
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("blob")
    assert load_model(str(folder))[0].count_params() == 10


@pytest.mark.parametrize("name", ["../../escaped", "assets/../../../escaped"])
def test_objects_whose_names_climb_out_of_their_folder_are_not_copied(
    plain: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    base = "memory:///climbing/net"
    storage.write_bytes(f"{base}/config.json", b"{}")
    monkeypatch.setattr(storage, "list_files", lambda uri, recursive=False: [f"{base}/config.json", f"{base}/{name}"])
    assert f"holds {name!r}, which lies outside of it" in refusal(base)
    storage.remove_folder("memory:///climbing")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.keras")
    assert "is neither a file nor a folder" in refusal(tmp_path / "model.keras")
    (tmp_path / "net").mkdir()
    os.mkfifo(tmp_path / "net" / "config.json")
    assert "holds 'config.json', which lies outside of it" in refusal(tmp_path / "net")


def test_what_is_screened_is_what_is_loaded(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file that changes between the look and the loading: Keras gets the bytes that were looked at.
    path = tmp_path / "model.keras"
    path.write_bytes((plain / "plain.keras").read_bytes())
    given: list[bytes] = []
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])

    def load(file: Path, **_: Any) -> keras.Model:
        path.write_bytes(b"something else")
        given.append(Path(file).read_bytes())
        return model

    monkeypatch.setattr(keras.saving, "load_model", load)
    load_model(str(path))
    assert given == [(plain / "plain.keras").read_bytes()]


# What is no attack


def legitimate() -> dict[str, keras.Model]:
    """Models with all that Keras puts into its files."""
    layers = keras.layers
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(
        4, 3, activation=keras.ops.relu, kernel_regularizer="l2", kernel_constraint="max_norm", dtype="mixed_float16"
    )(x)
    x = layers.Flatten()(keras.ops.sum(x * 2 + 1, axis=-1)[:, 1:])
    x = layers.Dense(3, activation=keras.activations.gelu, kernel_initializer=keras.initializers.Orthogonal(seed=1))(x)
    compiled = keras.Model(inputs, x)
    compiled.compile("adam", loss="mse", metrics=["acc"])
    words = keras.Input((1,), dtype="string")
    steps = keras.Input((5, 4))
    recurrent = layers.Bidirectional(layers.LSTM(3))(layers.TimeDistributed(layers.Dense(3))(steps))
    small = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of inputs, which have nothing to quantize
        small.quantize("int8")
    return {
        "operations, regularizers and training": compiled,
        "a vocabulary in the file": keras.Model(words, layers.StringLookup(vocabulary=["a", "b"])(words)),
        "wrappers and cells": keras.Model(steps, recurrent),
        "augmentation": keras.Sequential(
            [keras.Input((8, 8, 3)), layers.Pipeline([layers.RandomFlip(), layers.RandomZoom(0.1)]), layers.PReLU()]
        ),
        "spectral norm": keras.Sequential([keras.Input((8, 8, 3)), layers.SpectralNormalization(layers.Conv2D(2, 3))]),
        "numbers of few bits": small,
        "registered layers": nets.vit(),
        "a model in a model": nets.doubly_nested(),
        "operations as layers": nets.gap_dense_softmax_operation(),
        "preprocessing": nets.augmented(),
        "half precision": nets.mixed_bfloat16(),
    }


@pytest.mark.usefixtures("keras_may_load")
def test_all_that_keras_saves_is_screened_without_complaint(tmp_path: Path) -> None:
    refused = {}
    for name, model in legitimate().items():
        for suffix in (".keras",) if "operations" in name else (".keras", ".h5"):  # .h5 has no operations, says Keras
            path = tmp_path / f"model{suffix}"
            model.save(path)
            try:
                screen_model(path, name)
            except ConfigError as error:
                refused[name + suffix] = str(error)
    assert refused == {}


OLD_LAYERS = [  # as Keras 2 wrote them: no modules, names of old
    {"class_name": "InputLayer", "config": {"batch_input_shape": [None, 4], "dtype": "float32", "name": "in"}},
    {
        "class_name": "Dense",
        "config": {
            "name": "fc",
            "units": 2,
            "activation": "relu",
            "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}, "shared_object_id": 1},
            "bias_initializer": {"class_name": "zeros", "config": {}},
            "kernel_regularizer": {"class_name": "L2", "config": {"l2": 0.1}},
            "bias_regularizer": {"class_name": "l1_l2", "config": {"l1": 0.1, "l2": 0.1}},
            "dtype": {"class_name": "Policy", "config": {"name": "float32"}},
        },
    },
    {"class_name": "Activation", "config": {"name": "soft", "activation": "softmax"}},
]


@pytest.mark.parametrize("shape", ["dict", "list"])
def test_old_files_are_screened_without_complaint(tmp_path: Path, shape: str) -> None:
    inner = OLD_LAYERS if shape == "list" else {"name": "net", "layers": OLD_LAYERS}
    nested = {"class_name": "Sequential", "config": inner}
    for config in (nested, {"class_name": "Model", "config": {"name": "outer", "layers": [nested]}}):
        with h5py.File(tmp_path / "old.h5", "w") as file:
            file.attrs["model_config"] = json.dumps(config).encode()  # bytes, as Keras 2 did
            file.attrs["training_config"] = json.dumps({"loss": {"class_name": "function", "config": "my_loss"}})
        screen_model(tmp_path / "old.h5", "old")


@pytest.mark.shared
def test_the_pretrained_models_are_screened_without_complaint(shared_data: Path) -> None:
    paths = sorted((shared_data / "models").glob("*.keras"))
    assert len(paths) >= 3
    for path in paths:
        screen_model(path, path.name)


@pytest.mark.usefixtures("keras_may_load")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_what_was_refused_is_loaded_if_the_user_says_so(plain: Path, tmp_path: Path, suffix: str) -> None:
    code = lambda_layer(tmp_path / "mark")
    path = changed(plain / f"plain{suffix}", tmp_path / f"code{suffix}", with_layer(code))
    model, _ = load_model(str(path), allow_unsafe=True)
    model(np.ones((1, 4), np.float32))
    assert (tmp_path / "mark").exists(), "the mark would have shown it"


@pytest.mark.usefixtures("keras_may_load")
def test_a_file_that_holds_a_layer_alone_is_told(plain: Path, tmp_path: Path) -> None:
    def flatten(config: dict[str, Any]) -> None:
        config.clear()
        config.update(layer("keras.layers", "Flatten", name="flat"))

    message = refusal(changed(plain / "plain.keras", tmp_path / "layer.keras", flatten))
    assert message == f"{str(tmp_path / 'layer.keras')!r} holds no Keras model, but one Flatten"


def test_a_dotted_name_does_not_hide_where_it_leads(plain: Path, tmp_path: Path) -> None:
    # Keras joins module and name before it looks: `keras` and `layers.Lambda` are found.
    for place, change in {
        "layer": with_layer(lambda_layer(tmp_path / "mark") | {"module": "keras", "class_name": "layers.Lambda"}),
        "function": with_activation(function("keras", "utils.get_file")),
    }.items():
        message = refusal(changed(plain / "plain.keras", tmp_path / f"{place}.keras", change))
        assert "has a layer " in message or "holds Python code" in message
        assert not (tmp_path / "mark").exists()
