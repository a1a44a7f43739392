"""Load the user's model from wherever it is, without running code that came with it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import ConfigError, as_config_errors
from pipeline.screening import MAX_MEMBERS, saved_by, screen_model

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
        ConfigError: it is not there, is no Keras model, or could run code and that was not allowed (`screening`).
    """
    if spec.startswith(APPLICATIONS):
        model = _load_application(spec.removeprefix(APPLICATIONS))
        return model, _digest_of(model)
    if ":" in spec and "://" not in spec and not storage.exists(spec):
        model = _make_model(spec)
        return model, _digest_of(model)
    return _load_file(spec, allow_unsafe)


def digest_of_file(spec: str) -> str | None:
    """The SHA-256 that `load_model` would tell, without loading anything; None if the model is no file."""
    if spec.startswith(APPLICATIONS) or not storage.exists(spec):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return _digest_of_files(Path(storage.download(spec, folder)))


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
    with tempfile.TemporaryDirectory(prefix="beamcam-") as folder:
        with as_config_errors(f"the model {spec!r} cannot be read"):
            path = _copy_model(spec, Path(folder))
        if not allow_unsafe:
            screen_model(path, spec)
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=not allow_unsafe)
        except Exception as error:
            reason = _first_line(error).replace(str(path), spec)
            raise ConfigError(f"the model {spec!r} cannot be loaded{saved_by(path)}: {reason}") from error
        if not isinstance(model, keras.Model):
            raise ConfigError(f"{spec!r} holds no Keras model, but one {type(model).__name__}")
        return model, _digest_of_files(path)


def _copy_model(spec: str, folder: Path) -> Path:
    """Copies a model to a folder of our own: what is looked through is what is loaded, even if the original changes."""
    if storage.is_folder(spec):
        return _copy_folder(spec, folder / "model")
    suffix = PurePosixPath(spec).suffix.lower()
    if suffix not in (".keras", ".h5", ".hdf5"):
        raise ConfigError(f"a model file ends in .keras or .h5, and {spec!r} does not")
    if storage.is_local(spec) and not Path(storage.absolute(spec)).is_file():
        raise ConfigError(f"{spec!r} is neither a file nor a folder")
    return _copy_file(spec, folder / f"model{suffix}")


def _copy_folder(spec: str, target: Path) -> Path:
    base = storage.open_store(spec)[1].rstrip("/") + "/"
    files = {uri: storage.open_store(uri)[1].removeprefix(base) for uri in storage.list_files(spec, recursive=True)}
    if "saved_model.pb" in files.values():
        raise ConfigError(
            f"{spec!r} is a TensorFlow SavedModel, whose layers cannot be looked into: save it anew from Keras with "
            "model.save('model.keras')"
        )
    if "config.json" not in files.values() or len(files) > MAX_MEMBERS:
        raise ConfigError(
            f"the model {spec!r} cannot be loaded: a folder is an unzipped .keras file with its config.json, and "
            f"this one holds {len(files)} other files"
        )
    for uri, name in files.items():
        # An object's name may hold anything; and a link may lead anywhere.
        if name.startswith("/") or ".." in name.split("/") or not _lies_inside(uri, spec):
            raise ConfigError(f"{spec!r} holds {name!r}, which lies outside of it: copy all of it into one folder")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _copy_file(uri, target / name)
    return target


def _lies_inside(uri: str, folder: str) -> bool:
    if not storage.is_local(folder):
        return True
    path = Path(uri).resolve()
    return path.is_file() and path.is_relative_to(Path(storage.absolute(folder)).resolve())


def _copy_file(uri: str, target: Path) -> Path:
    if storage.is_local(uri):
        shutil.copyfile(storage.absolute(uri), target)
        return target
    return Path(storage.download(uri, str(target.parent))).replace(target)


def _digest_of_files(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
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
