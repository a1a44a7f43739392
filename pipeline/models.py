"""Load the user's model from wherever it is, without running code that came with it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import ConfigError, as_config_errors

if TYPE_CHECKING:
    import keras

APPLICATIONS = "keras.applications:"


def load_model(spec: str, allow_unsafe: bool = False) -> tuple[keras.Model, str]:
    """Loads a model, and says which one it is.

    Args:
        spec: a `.keras` or `.h5` file or an unzipped `.keras` folder on any store; `keras.applications:NAME`, with
            `?weights=...&classes=...` for other arguments than its defaults; or `module:factory`, a function of yours
            that returns the model.
        allow_unsafe: whether to run code that a file brings along, such as Lambda layers.

    Returns:
        The model, and a SHA-256 that changes with its architecture or weights.

    Raises:
        ConfigError: it is not there, is no Keras model, or holds code and that was not allowed.
    """
    if spec.startswith(APPLICATIONS):
        model = _load_application(spec.removeprefix(APPLICATIONS))
        return model, _digest_of(model)
    if ":" in spec and "://" not in spec and not storage.exists(spec):
        model = _make_model(spec)
        return model, _digest_of(model)
    return _load_file(spec, allow_unsafe)


def load_callable(spec: str, option: str) -> Callable[..., Any]:
    """The function that `module:name` means.

    Raises:
        ConfigError: there is no such module or function.
    """
    module, _, name = spec.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{option} {spec!r} means the function {name!r} of the Python module {module!r}: {error}"
        ) from error


def application_mode(spec: str) -> str | None:
    """The preprocessing that a model of `keras.applications` was trained with; None for other models."""
    if not spec.startswith(APPLICATIONS):
        return None
    name = spec.removeprefix(APPLICATIONS).split("?")[0].lower()
    modes = {
        "caffe": ("resnet50", "resnet101", "resnet152", "vgg"),
        "torch": ("densenet",),
        "none": ("efficientnet", "convnext", "mobilenetv3"),
    }
    if name.endswith("v2") and name.startswith("resnet"):
        return "tf"
    return next((mode for mode, starts in modes.items() if name.startswith(starts)), "tf")


def count_gpus() -> int:
    """How many accelerators the models of this process can use."""
    import keras

    return len(keras.distribution.list_devices("gpu"))


def _make_model(spec: str) -> keras.Model:
    import keras

    factory = load_callable(spec, "--model")
    try:
        model = factory()
    except Exception as error:
        raise ConfigError(f"--model {spec!r} could not make the model: {type(error).__name__}: {error}") from error
    if not isinstance(model, keras.Model):
        raise ConfigError(f"--model {spec!r} returns a Keras model, not {type(model).__name__}")
    return model


def _load_application(text: str) -> keras.Model:
    import keras

    name, _, query = text.partition("?")
    build = getattr(keras.applications, name, None)
    if build is None or not callable(build):
        models = [known for known in dir(keras.applications) if known[0].isupper()]
        raise ConfigError(f"keras.applications has no model {name!r}: it has {', '.join(models)}")
    arguments = dict(item.split("=", 1) for item in query.split("&") if "=" in item)
    values = {key: _literal(value) for key, value in arguments.items()}
    try:
        return build(**values)
    except Exception as error:
        raise ConfigError(f"keras.applications could not make {text!r}: {error}") from error


def _literal(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def _load_file(spec: str, allow_unsafe: bool) -> tuple[keras.Model, str]:
    import keras

    with as_config_errors(f"the model {spec!r} cannot be reached"):
        there = storage.exists(spec)
    if not there:
        raise ConfigError(
            f"there is no model at {spec!r}: give a .keras or .h5 file, keras.applications:NAME or module:factory"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(storage.download(spec, folder))
        _refuse_other_formats(path, spec)
        if not allow_unsafe:
            _refuse_code(path, spec)
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=not allow_unsafe)
        except Exception as error:
            raise ConfigError(f"the model {spec!r} cannot be loaded{_saved_by(path)}: {_first_line(error)}") from error
        return model, _digest_of_files(path)


def _refuse_other_formats(path: Path, spec: str) -> None:
    if (path / "saved_model.pb").exists():
        raise ConfigError(
            f"{spec!r} is a TensorFlow SavedModel, whose layers cannot be looked into: save it anew from Keras with "
            "model.save('model.keras')"
        )
    if path.is_file() and path.suffix.lower() not in (".keras", ".h5", ".hdf5"):
        raise ConfigError(f"a model file ends in .keras or .h5, and {spec!r} does not")


def _refuse_code(path: Path, spec: str) -> None:
    """Looks for Lambda layers before Keras does, to say plainly what would run."""
    parts = list(_layers(_read_config(path)))
    names = [part["config"].get("name", "?") for part in parts if part["class_name"] == "Lambda"]
    if any(part["class_name"] == "__lambda__" for part in parts):  # as an activation, or another argument
        names = names or ["without a name"]
    if names:
        raise ConfigError(
            f"the model {spec!r} holds Python code, in the Lambda layers {', '.join(names)}, and loading it would run "
            "that code on this machine: if you trust where it comes from, say --allow-unsafe-model; better, replace "
            "them by layers of a class"
        )


def _read_config(path: Path) -> Any:
    try:
        if path.is_dir():
            return json.loads((path / "config.json").read_text())
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("config.json"))
        import h5py

        with h5py.File(path) as file:
            return json.loads(file.attrs.get("model_config", "{}"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return {}  # not a model at all, which Keras says better


def _saved_by(path: Path) -> str:
    """What tells that a file is newer than the Keras that fails to read it."""
    import keras

    try:
        with zipfile.ZipFile(path) as archive:
            version = json.loads(archive.read("metadata.json"))["keras_version"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return ""
    return "" if version == keras.__version__ else f" (Keras {version} saved it, and this is Keras {keras.__version__})"


def _layers(config: Any) -> Iterator[dict[str, Any]]:
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str) and isinstance(config.get("config"), dict):
            yield config
        for value in config.values():
            yield from _layers(value)
    elif isinstance(config, list):
        for value in config:
            yield from _layers(value)


def _digest_of_files(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest_of(model: keras.Model) -> str:
    digest = hashlib.sha256(json.dumps(_without_names(json.loads(model.to_json()))).encode())
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()


def _without_names(config: Any) -> Any:
    """A model's configuration with every name replaced by its place: Keras numbers layers through a whole process."""
    places: dict[str, str] = {}

    def visit(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: visit(part, name) for name, part in sorted(value.items(), key=lambda item: item[0] != "name")}
        if isinstance(value, list):
            return [visit(part) for part in value]
        if isinstance(value, str) and (key == "name" or value in places):
            return places.setdefault(value, f"#{len(places)}")
        return value

    return visit(config)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
