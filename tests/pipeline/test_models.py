"""The user's model is loaded from wherever it is, runs no code that came with it, and is known by its digest."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.models import application_mode, load_callable, load_model

X = np.linspace(-1, 1, 2 * 8 * 8 * 3, dtype=np.float32).reshape(2, 8, 8, 3)


def _tiny(seed: int = 0, units: int = 3) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(2, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(units)(x))


def _with_lambda() -> keras.Model:
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: 2 * x, name="doubling")], name="inner")
    return keras.Sequential(
        [keras.Input((4,)), inner, keras.layers.Dense(2), keras.layers.Lambda(lambda x: x * x, name="square")]
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model as tiny.keras and tiny.h5, and one with Lambda layers as code.keras and code.h5."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("tiny", _tiny()), ("code", _with_lambda())):
        for suffix in (".keras", ".h5"):
            model.save(folder / (name + suffix))
    return folder


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of the user's that makes models."""
    name = f"factories_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(
        "import keras\n"
        "def make():\n"
        "    keras.utils.set_random_seed(0)\n"
        "    inputs = keras.Input((8, 8, 3))\n"
        "    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(inputs))\n"
        "    return keras.Model(inputs, keras.layers.Dense(3)(x))\n"
        "def make_text(): return 'no model'\n"
        "def fail(): raise RuntimeError('the weights are elsewhere')\n"
        "def needs(path): return path\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)


def _error(spec: object, **options: bool) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(str(spec), **options)
    return str(caught.value)


# Files


@pytest.mark.parametrize("name", ["tiny.keras", "tiny.h5"])
def test_a_saved_model_is_loaded_with_its_weights(saved: Path, name: str) -> None:
    model, digest = load_model(str(saved / name))
    np.testing.assert_allclose(model(X).numpy(), _tiny()(X).numpy(), rtol=1e-6)
    assert re.fullmatch("[0-9a-f]{64}", digest)


def test_an_object_and_an_unzipped_folder_are_loaded_as_a_file_is(saved: Path, tmp_path: Path) -> None:
    base = f"memory:///{uuid.uuid4().hex}"
    storage.write_bytes(f"{base}/my tiny.keras", (saved / "tiny.keras").read_bytes())
    with zipfile.ZipFile(saved / "tiny.keras") as archive:
        archive.extractall(tmp_path / "unzipped")
    expected = _tiny()(X).numpy()
    for spec in (f"{base}/my tiny.keras", str(tmp_path / "unzipped")):
        np.testing.assert_allclose(load_model(spec)[0](X).numpy(), expected, rtol=1e-6)
    storage.remove_folder(base)


def test_a_file_name_with_a_colon_is_a_file_and_no_function(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "run:1.keras").write_bytes((saved / "tiny.keras").read_bytes())
    assert load_model(str(tmp_path / "run:1.keras"))[0].count_params() == _tiny().count_params()


@pytest.mark.parametrize("spec", ["none.keras", "none.h5", "sub/none", "memory://nowhere/none.keras"])
def test_a_missing_model_is_told_with_what_may_be_given(spec: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _error(spec) == (
        f"there is no model at {spec!r}: give a .keras or .h5 file, keras.applications:NAME or module:factory"
    )


@pytest.mark.parametrize("name", ["model.pt", "model.onnx", "model.pb", "model"])
def test_a_file_with_another_suffix_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    assert "a model file ends in .keras or .h5, and " in _error(tmp_path / name)
    assert name in _error(tmp_path / name)


def test_a_saved_model_folder_is_told_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "old" / "variables").mkdir(parents=True)
    (tmp_path / "old" / "saved_model.pb").write_bytes(b"")
    message = _error(tmp_path / "old")
    assert "is a TensorFlow SavedModel" in message
    assert "model.save('model.keras')" in message


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    assert f"the model {str(tmp_path)!r} cannot be loaded: " in _error(tmp_path)


@pytest.mark.parametrize("name", ["tiny.keras", "tiny.h5"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "rubbish"])
def test_a_damaged_file_is_told(saved: Path, tmp_path: Path, name: str, damage: str) -> None:
    data = (saved / name).read_bytes()
    data = {"empty": b"", "truncated": data[: len(data) // 2], "rubbish": b"rubbish" * 100}[damage]
    (tmp_path / name).write_bytes(data)
    message = _error(tmp_path / name)
    assert f"{name}' cannot be loaded: " in message
    assert "\n" not in message


def test_a_keras_file_with_a_changed_byte_is_told(saved: Path, tmp_path: Path) -> None:
    data = bytearray((saved / "tiny.keras").read_bytes())
    data[data.find(b'"class_name"')] ^= 1  # inside config.json, whose checksum is then wrong
    (tmp_path / "tiny.keras").write_bytes(data)
    assert "cannot be loaded: " in _error(tmp_path / "tiny.keras")


def test_a_file_of_weights_alone_is_told(tmp_path: Path) -> None:
    _tiny().save_weights(tmp_path / "tiny.weights.h5")
    assert "No model config found" in _error(tmp_path / "tiny.weights.h5")


# Code in models


@pytest.mark.parametrize("name", ["code.keras", "code.h5"])
def test_lambda_layers_are_refused_by_name_at_any_depth(saved: Path, name: str) -> None:
    message = _error(saved / name)
    assert "holds Python code, in the Lambda layers doubling, square" in message
    assert "say --allow-unsafe-model" in message
    assert "replace them by layers of a class" in message


@pytest.mark.parametrize("name", ["code.keras", "code.h5"])
def test_lambda_layers_run_if_that_was_allowed(saved: Path, name: str) -> None:
    model, _ = load_model(str(saved / name), allow_unsafe=True)
    x = np.ones((1, 4), np.float32)
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(model(x).numpy(), (2 * x @ kernel + bias) ** 2, rtol=1e-5)


def test_lambda_layers_in_an_unzipped_folder_are_refused_too(saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved / "code.keras") as archive:
        archive.extractall(tmp_path / "unzipped")
    assert "Lambda layers doubling, square" in _error(tmp_path / "unzipped")


def test_a_function_hidden_in_an_activation_is_told_as_code_and_not_run(tmp_path: Path) -> None:
    # Byte code in place of an activation's name; it leaves a mark when it runs.
    with pytest.warns(UserWarning, match="includes a `lambda`"):
        code = keras.saving.serialize_keras_object(
            lambda x: (__import__("os").environ.__setitem__("BEAMCAM_MARK", "1"), x)[1]
        )
    plain, hidden = tmp_path / "plain.keras", tmp_path / "hidden.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="relu")]).save(plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(hidden, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                assert content.count(b'"relu"') == 1
                content = content.replace(b'"relu"', json.dumps(code).encode())
            target.writestr(name, content)
    message = _error(hidden)
    assert "BEAMCAM_MARK" not in os.environ
    model, _ = load_model(str(hidden), allow_unsafe=True)
    model(np.ones((1, 4), np.float32))
    assert os.environ.pop("BEAMCAM_MARK") == "1", "the mark would have shown it"
    assert "say --allow-unsafe-model" in message


def test_a_layer_that_loads_a_foreign_graph_is_refused(tmp_path: Path) -> None:
    _tiny().export(tmp_path / "graph", verbose=False)
    layer = keras.layers.TFSMLayer(str(tmp_path / "graph"), call_endpoint="serve", name="foreign")
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, layer(inputs)).save(tmp_path / "wrapped.keras")
    message = _error(tmp_path / "wrapped.keras")
    assert "has a layer 'foreign' that is a TFSMLayer, which runs a program that Keras does not know" in message
    assert "--model module:factory" in message
    model, _ = load_model(str(tmp_path / "wrapped.keras"), allow_unsafe=True)
    np.testing.assert_allclose(model(X), _tiny()(X), rtol=1e-5)


def test_a_layer_that_is_only_called_lambda_is_no_code(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="Lambda")])
    model.save(tmp_path / "named.keras")
    assert load_model(str(tmp_path / "named.keras"))[0].layers[-1].name == "Lambda"


# keras.applications


def test_an_application_is_built_with_the_arguments_given() -> None:
    model, _ = load_model("keras.applications:MobileNetV2?weights=none&classes=7")
    assert model.output_shape == (None, 7)
    assert model.input_shape == (None, 224, 224, 3)


@pytest.mark.parametrize("text", ["alpha=0.35", "alpha=0.5"])
def test_an_argument_may_be_a_fraction(text: str) -> None:
    model, _ = load_model(f"keras.applications:MobileNetV2?weights=none&classes=2&{text}")
    assert model.count_params() < 1_000_000


def test_an_argument_may_be_true_or_false() -> None:
    model, _ = load_model("keras.applications:MobileNetV2?weights=none&include_top=false&alpha=0.35")
    assert len(model.output_shape) == 4, "the top was to be left out"


@pytest.mark.parametrize("name", ["Resnet50", "resnet50", "", "load_model", "__name__"])
def test_an_unknown_application_is_told_with_those_there_are(name: str) -> None:
    message = _error(f"keras.applications:{name}")
    assert f"keras.applications has no model {name!r}: it has ConvNeXtBase, " in message
    assert "ResNet50V2" in message


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("weigths=none", "weigths"),
        ("weights=none&classes=many", ""),
        ("weights=nowhere.h5", "weights"),
        ("weights=imagenet&classes=4", "1000"),
    ],
)
def test_an_argument_that_does_not_fit_is_told(query: str, hint: str) -> None:
    message = _error(f"keras.applications:MobileNetV2?{query}")
    assert f"keras.applications could not make 'MobileNetV2?{query}': " in message
    assert hint in message.split("': ", 1)[1]


PIXEL = np.array([[[[10.0, 100.0, 200.0]]]], np.float32)
MEANS = np.array([103.939, 116.779, 123.68])  # BGR, of ImageNet, as Caffe's models subtract them
MODES = {
    "tf": PIXEL / 127.5 - 1,
    "caffe": PIXEL[..., ::-1] - MEANS,
    "torch": (PIXEL / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "none": PIXEL,
}
MODULES = {
    name: module
    for module in (importlib.import_module(f"keras.applications.{name}") for name in (
        "convnext", "densenet", "efficientnet", "efficientnet_v2", "inception_resnet_v2", "inception_v3", "mobilenet",
        "mobilenet_v2", "mobilenet_v3", "nasnet", "resnet", "resnet_v2", "vgg16", "vgg19", "xception"))
    for name in dir(module) if name[0].isupper()
} | dict.fromkeys(("MobileNetV3Large", "MobileNetV3Small"), keras.applications.mobilenet_v3)  # fmt: skip


def test_every_application_is_compared() -> None:
    assert {name for name in dir(keras.applications) if name[0].isupper()} <= set(MODULES)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_preprocessing_of_an_application_is_that_of_its_own_module(name: str) -> None:
    there = np.asarray(MODULES[name].preprocess_input(PIXEL.copy()))
    fitting = [mode for mode, pixel in MODES.items() if np.allclose(there, pixel, atol=1e-3)]
    assert fitting == [application_mode(f"keras.applications:{name}")]
    assert application_mode(f"keras.applications:{name}?weights=none&classes=3") == fitting[0]


def test_other_models_tell_no_preprocessing() -> None:
    assert application_mode("vgg16.keras") is None
    assert application_mode("my.applications:ResNet50") is None


# Functions


def test_a_function_of_the_users_makes_the_model(factories: str) -> None:
    model, digest = load_model(f"{factories}:make")
    assert model.output_shape == (None, 3)
    assert len(digest) == 64


def test_the_function_of_a_name_is_found() -> None:
    assert load_callable("os.path:join", "--preprocess") is __import__("os").path.join


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("json:nothing", "no attribute 'nothing'"),
        (":make", ""),
    ],
)
def test_a_function_that_is_not_there_is_told_with_the_option(spec: str, hint: str) -> None:
    module, _, name = spec.partition(":")
    with pytest.raises(ConfigError) as caught:
        load_callable(spec, "--preprocess")
    assert f"--preprocess {spec!r} means the function {name!r} of the Python module {module!r}: " in str(caught.value)
    assert hint in str(caught.value)
    assert "--model " in _error(spec)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("make_text", "str"), ("fail", "the weights are elsewhere"), ("needs", "path"), ("number", "not callable")],
)
def test_a_function_that_gives_no_model_is_told(factories: str, name: str, hint: str) -> None:
    message = _error(f"{factories}:{name}")
    assert f"--model '{factories}:{name}'" in message
    assert hint in message


# The digest


def test_a_file_has_the_same_digest_wherever_it_lies(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "other.keras").write_bytes((saved / "tiny.keras").read_bytes())
    storage.write_bytes("memory:///digest/x.keras", (saved / "tiny.keras").read_bytes())
    digests = {
        load_model(spec)[1]
        for spec in (str(saved / "tiny.keras"), str(tmp_path / "other.keras"), "memory:///digest/x.keras")
    }
    assert len(digests) == 1
    storage.remove_folder("memory:///digest")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_one_changed_weight_changes_the_digest(tmp_path: Path, suffix: str) -> None:
    model = _tiny()
    model.save(tmp_path / f"a{suffix}")
    weights = model.get_weights()
    weights[-1][0] += 1e-6
    model.set_weights(weights)
    model.save(tmp_path / f"b{suffix}")
    assert load_model(str(tmp_path / f"a{suffix}"))[1] != load_model(str(tmp_path / f"b{suffix}"))[1]


def test_an_h5_file_keeps_its_digest_when_saved_again_and_a_keras_file_does_not(saved: Path, tmp_path: Path) -> None:
    # The .keras format holds the time of saving: a digest of the file tells re-saved models apart, which errs on the
    # safe side.
    for suffix, same in ((".h5", True), (".keras", False)):
        model, digest = load_model(str(saved / f"tiny{suffix}"))
        while suffix == ".keras" and time.strftime("%Y-%m-%d@%H:%M:%S") <= _date_saved(saved / "tiny.keras"):
            time.sleep(0.05)
        model.save(tmp_path / f"again{suffix}")
        assert (load_model(str(tmp_path / f"again{suffix}"))[1] == digest) == same


def _date_saved(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("metadata.json"))["date_saved"]


def test_a_function_gives_the_same_digest_each_time_it_makes_the_same_model(factories: str) -> None:
    # Keras numbers its layers through a process (dense, dense_1, ...): the names must not count.
    first = load_model(f"{factories}:make")[1]
    _tiny()
    assert load_model(f"{factories}:make")[1] == first


def test_a_function_that_makes_another_model_gives_another_digest(tmp_path: Path, monkeypatch) -> None:
    name = f"factories_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(
        "import keras\n"
        "def make(seed, activation='relu', first='same', second='same'):\n"
        "    keras.utils.set_random_seed(seed)\n"
        "    x = inputs = keras.Input((8, 8, 3))\n"
        "    a = keras.layers.Conv2D(2, 3, padding='same')(inputs)\n"
        "    b = keras.layers.Conv2D(2, 3, padding='same')(inputs)\n"
        "    x = keras.layers.Concatenate()([a, b] if first == 'same' else [b, a])\n"
        "    x = keras.layers.Activation(activation)(x)\n"
        "    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))\n"
        "base = lambda: make(0)\n"
        "seed = lambda: make(1)\n"
        "activation = lambda: make(0, 'tanh')\n"
        "order = lambda: make(0, first='other')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    digests = {function: load_model(f"{name}:{function}")[1] for function in ("base", "seed", "activation", "order")}
    assert len(set(digests.values())) == 4
