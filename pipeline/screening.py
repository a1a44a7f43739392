"""What a model file would make Keras do, found out before Keras sees it: files that would run code are refused.

Keras has a safe mode of its own, which has been got round again and again. This is an allow-list instead: objects that
a configuration names must be Keras's own or registered in this process, and weights must lie in the file itself.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import h5py

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"

MAX_CONFIG = 32_000_000  # bytes; NASNetLarge has 2 million
MAX_DEPTH = 200  # of nested lists and objects; a model in a model adds four
MAX_MEMBERS = 10_000
MAX_BYTES = 50_000_000_000  # of an archive's members or a file's arrays together
ALWAYS_FINE = 256_000_000  # bytes, however well they were compressed
MAX_EXPANSION = 100  # times the size of the file; Keras compresses nothing

_FUNCTIONS = ("keras.activations", "keras.losses", "keras.metrics", "keras.ops")
_NO_FUNCTIONS = ("deserialize", "get", "serialize")  # of these modules, but none that a model computes with

_PLAIN_VALUES = ("__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__", "__tuple__")
_DTYPES = re.compile(r"(?:b?float|u?int|bool|complex|str|string|bytes)\d{0,3}(?:_?e\dm\d\w*)?")

_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # of HDF5 and h5py themselves; others are libraries that HDF5 would look for


class _RefusedError(Exception):
    """What is wrong with a model file, as the second half of a sentence, and what would be better."""

    def __init__(self, message: str, better: str = "save it anew with Keras"):
        super().__init__(message)
        self.better = better


def screen_model(path: Path, spec: str) -> None:
    """Looks through a model file without loading it.

    Args:
        path: a `.keras` or `.h5` file, or the folder of an unzipped `.keras` file; on this machine.
        spec: what the user calls it.

    Raises:
        ConfigError: loading it could run code, reach other files or the network, or take memory out of all proportion
            to its size; or it cannot be read.
    """
    try:
        if path.is_dir():
            _screen_folder(path)
        elif path.suffix == ".keras":  # as Keras does: a file can be an archive and an HDF5 file at once
            _screen_archive(path)
        else:
            _screen_h5_model(path)
    except _RefusedError as error:
        raise ConfigError(
            f"the model {spec!r}{saved_by(path)} {error}: if you trust where it comes from, say --allow-unsafe-model; "
            f"better, {error.better}"
        ) from error
    except Exception as error:  # whatever a file that is no whole model makes of itself
        reason = f"{type(error).__name__}: {error}".replace(str(path), spec).splitlines()[0]
        raise ConfigError(f"the model {spec!r} cannot be loaded: {reason}") from error


def saved_by(path: Path) -> str:
    """What tells that a `.keras` file was saved by another Keras than this one; empty if it was not."""
    import keras

    try:
        with zipfile.ZipFile(path) as archive, archive.open("metadata.json") as file:
            version = str(json.loads(file.read(1000))["keras_version"])
    except Exception:  # noqa: BLE001 - it is only a hint
        return ""
    known = version if len(version) < 20 else f"{version[:20]}..."
    return "" if version == keras.__version__ else f" (Keras {known} saved it, and this is Keras {keras.__version__})"


# Files and archives


def _screen_folder(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            raise _RefusedError(f"holds {_quoted(file.name)}, which is a link or no file")
    config = path / CONFIG
    if config.stat().st_size > MAX_CONFIG:
        raise _RefusedError(f"has a configuration of {config.stat().st_size} bytes, and {MAX_CONFIG} are the most")
    _screen_names([file.relative_to(path).as_posix() for file in path.rglob("*")])
    _screen_config(config.read_bytes())
    with contextlib.suppress(FileNotFoundError), (path / WEIGHTS).open("rb") as weights:
        _screen_h5(weights)


def _screen_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _screen_names([member.filename for member in members])
        for member in members:
            # The upper half of the attributes is the mode that Unix knows: 0 where another system made the archive.
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _RefusedError(f"holds {_quoted(member.filename)}, which is a link or no file")
        _screen_size(sum(member.file_size for member in members), path.stat().st_size)
        if archive.getinfo(CONFIG).file_size > MAX_CONFIG:
            raise _RefusedError(
                f"has a configuration of {archive.getinfo(CONFIG).file_size} bytes, and {MAX_CONFIG} are the most"
            )
        _screen_config(archive.read(CONFIG))
        if WEIGHTS in archive.namelist():
            with archive.open(WEIGHTS) as weights, tempfile.TemporaryFile() as copy:
                shutil.copyfileobj(weights, copy, 1 << 20)  # no more than the archive declares, and that was checked
                _screen_h5(copy)


def _screen_names(names: list[str]) -> None:
    if len(names) > MAX_MEMBERS:
        raise _RefusedError(f"holds {len(names)} files, and {MAX_MEMBERS} are the most")
    if len(set(names)) < len(names):
        raise _RefusedError("holds two files of one name")
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name or "\0" in name:
            raise _RefusedError(f"holds a file {_quoted(name)}, which would lie outside of the model's folder")
        if name.endswith(".npz"):
            raise _RefusedError(f"keeps its weights in {_quoted(name)}, which is not looked into")


def _screen_size(size: int, stored: int) -> None:
    if size > MAX_BYTES or size > max(ALWAYS_FINE, MAX_EXPANSION * stored):
        raise _RefusedError(f"holds {stored} bytes that would become {size} in memory")


# HDF5


def _screen_h5_model(path: Path) -> None:
    import h5py

    with path.open("rb") as file:
        _screen_h5(file)
    with h5py.File(path) as opened:
        if "model_config" not in opened.attrs:
            return
        if opened.attrs.get_id("model_config").shape != ():  # many references to one long text
            raise _RefusedError("has more than one configuration")
        config = opened.attrs["model_config"]
        _screen_config(config if isinstance(config, bytes) else str(config).encode(errors="surrogateescape"))


def _screen_h5(file: IO[bytes]) -> None:
    """All of an HDF5 file's groups and arrays must lie in the file itself."""
    import h5py

    stored = file.seek(0, 2)
    with h5py.File(file, "r") as opened:
        _screen_size(sum(map(_screen_array, _arrays(opened))), stored)


def _arrays(opened: h5py.File) -> Iterator[h5py.Dataset]:
    import h5py

    waiting, seen = [opened["/"]], set()
    while waiting:
        group = waiting.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _RefusedError(f"holds {_quoted(name)}, a link to weights that lie elsewhere")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:  # groups may hold each other
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                yield item


def _screen_array(array: h5py.Dataset) -> int:
    """The bytes of an array in memory."""
    properties = array.id.get_create_plist()
    if array.external or array.is_virtual:
        raise _RefusedError(f"holds the array {_quoted(array.name)}, whose values lie in another file")
    if {properties.get_filter(i)[0] for i in range(properties.get_nfilters())} - _FILTERS:
        raise _RefusedError(f"holds the array {_quoted(array.name)}, which another library would have to read")
    return int(array.size or 0) * array.dtype.itemsize


# Configurations


def _screen_config(text: bytes) -> None:
    if len(text) > MAX_CONFIG:
        raise _RefusedError(f"has a configuration of {len(text)} bytes, and {MAX_CONFIG} are the most")
    try:
        config = json.loads(text, object_pairs_hook=_without_repetitions)
    except RecursionError as error:
        raise _RefusedError("has a configuration that is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"its configuration is no JSON: {error}") from error
    if isinstance(config, dict):
        config.pop("compile_config", None)  # of the training, which Keras is told to pass over
    refusals = list(_refusals(config))
    code = ", ".join(dict.fromkeys(_bare(name) for name, reason in refusals if reason is None))
    if code:
        raise _RefusedError(
            f"holds Python code, in the Lambda layers {code}, and loading it would run that code on this machine",
            better="replace them by layers of a class",
        )
    if refusals:
        name, reason = refusals[0]
        raise _RefusedError(
            f"has a layer {_quoted(name)} that {reason}",
            better="make the model by a function of yours, --model module:factory",
        )


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _RefusedError("has a configuration that gives a name twice, which readers understand in different ways")
    return values


def _refusals(config: Any) -> Iterator[tuple[str, str | None]]:
    """The layers that are not to be loaded, each with the reason; None if it is Python code."""
    waiting: list[tuple[Any, str, int]] = [(config, "?", 0)]  # with the name of the layer around it, and the depth
    while waiting:
        value, layer, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _RefusedError(f"has a configuration of more than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            layer = _name_of(value) or layer
            if "class_name" in value:
                yield from ((layer, reason) for reason in _reasons(value))
        inner: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += reversed([(part, layer, depth + 1) for part in inner])


def _name_of(value: dict[str, Any]) -> str | None:
    names = [value.get("name")]
    if isinstance(value.get("config"), dict):
        names.insert(0, value["config"].get("name"))
    return next((name for name in names if isinstance(name, str)), None)


def _reasons(value: dict[str, Any]) -> Iterator[str | None]:
    """Why one object of a configuration is not to be made; nothing if it may be."""
    import keras

    name, module, config = value["class_name"], value.get("module"), value.get("config")
    registered = keras.saving.get_custom_objects()
    if not isinstance(name, str) or not isinstance(module, str | None):
        yield "is of no class that could be named"
    elif name == "__lambda__":
        yield None
    elif name in ("TypeSpec", "CompositeTensor", "__typespec__"):
        yield f"holds a {name} of TensorFlow, which may be of any class"
    elif name in _PLAIN_VALUES:
        if isinstance(config, dict) and not _DTYPES.fullmatch(str(config.get("dtype", "float32"))):
            yield f"holds numbers of the type {_quoted(config['dtype'])}"
    elif "config" not in value:
        return  # no object
    elif name == "function":
        names = [n for n in (config, value.get("registered_name")) if n not in (None, "function")]
        if not all(isinstance(n, str) and (n in registered or _is_own_function(n, module)) for n in names):
            yield f"calls the function {_quoted(config)} of {_quoted(module)}, which is none that Keras computes with"
    elif not _is_registered(name, module, value.get("registered_name")):
        yield from _reasons_of_class(name, module, config if isinstance(config, dict) else {})


def _is_registered(name: str, module: str | None, registered_name: Any) -> bool:
    """Whether Keras takes a class from those that code in this process has registered."""
    import keras

    registered = keras.saving.get_custom_objects()
    # Which of the two names counts depends on the format; so that it does not matter, they must mean the same class.
    by_name = registered.get(registered_name) if isinstance(registered_name, str) else None
    return getattr(by_name, "__name__", None) == name or (module is None and name in registered)


def _reasons_of_class(name: str, module: str | None, config: dict[str, Any]) -> Iterator[str | None]:
    import keras

    classes = _own_classes(name, module)
    if not classes:
        where = f" of the module {_quoted(module)}" if module else ""
        yield f"is of the class {_quoted(name)}{where}, which is neither Keras's own nor registered here"
    elif issubclass(classes[0], keras.layers.Lambda):
        yield None
    elif issubclass(
        classes[0],
        (keras.layers.TFSMLayer, keras.layers.TorchModuleWrapper, keras.layers.JaxLayer, keras.layers.FlaxLayer),
    ):
        yield f"is a {name}, which runs a program that Keras does not know"
    elif isinstance(config.get("vocabulary"), str):
        yield f"reads the file {_quoted(config['vocabulary'])}"


def _own_classes(name: str, module: str | None) -> list[type]:
    """The classes of Keras that a name means; without a module, as in .h5 files, those of all its public modules."""
    import keras

    makes = (
        keras.Operation,  # layers and models too
        keras.Initializer,
        keras.Regularizer,
        keras.constraints.Constraint,
        keras.Loss,
        keras.Metric,
        keras.Optimizer,
        keras.optimizers.schedules.LearningRateSchedule,
        keras.Quantizer,
        getattr(keras.quantizers, "QuantizationConfig", keras.Quantizer),  # from Keras 3.13 on
        keras.DTypePolicy,
        keras.random.SeedGenerator,
    )
    if module is None:
        found = [getattr(part, spelling, None) for part in _public_modules() for spelling in _spellings(name)]
    else:
        # What Keras has not imported of itself it is not to import now.
        is_own = module == "keras" or module.startswith("keras.")
        found = [getattr(sys.modules.get(module), name, None) if is_own else None]
    return [part for part in found if isinstance(part, type) and issubclass(part, makes)]


def _public_modules() -> list[Any]:
    import keras

    return [
        keras.layers,
        keras.models,
        sys.modules["keras.src.models"],  # has Functional, which is public nowhere
        keras.initializers,
        keras.regularizers,
        keras.constraints,
        keras.losses,
        keras.metrics,
        keras.optimizers,
        keras.optimizers.schedules,
        keras.dtype_policies,
        keras.quantizers,
        keras.random,
    ]


def _spellings(name: str) -> tuple[str, ...]:
    """A class's name, also where an old file has it as `glorot_uniform`, or `Policy` for what is DTypePolicy today."""
    old = {"Model": "Functional", "Policy": "DTypePolicy", "PolicyV1": "DTypePolicy", "l1_l2": "L1L2"}
    camel = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    return name, camel, old.get(name, name)


def _is_own_function(name: str, module: str | None) -> bool:
    if name in _NO_FUNCTIONS:
        return False
    places = _FUNCTIONS if module in (None, "builtins") else [module] if f"{module}.".startswith(_dotted()) else []
    return any(callable(getattr(sys.modules.get(place), name, None)) for place in places)


def _dotted() -> tuple[str, ...]:
    return tuple(f"{name}." for name in _FUNCTIONS)


def _quoted(text: object) -> str:
    """Part of a file, short and without anything that a terminal would obey."""
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


def _bare(name: str) -> str:
    return "without a name" if name == "?" else _quoted(name)[1:-1]
