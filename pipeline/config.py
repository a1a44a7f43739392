"""The whole configuration of a job: one frozen object, complete and valid before anything is started."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.codec import MAP_DTYPES
from pipeline.errors import ConfigError, without_secrets
from pipeline.geometry import RESIZES
from pipeline.listing import LABEL_SOURCES
from pipeline.options import split_names
from pipeline.overlay import STYLES, color_table
from pipeline.records import METRICS

PREPROCESSES = ("tf", "caffe", "torch", "unit", "none")

PREDICTED = -1  # a target that stands for the next of the model's best classes

NOT_PART_OF_A_RESULT = (
    "output",
    "images",
    "batch_size",
    "jit",
    "max_failures",
    "allow_unsafe_model",
    "since",
    "storage_options",
    "storage_timeout",
)
"""Options that may change between a run and its resumption; its manifest holds `images` and `since` fast."""


@dataclass(frozen=True)
class Targets:
    """Which classes of an image to explain."""

    kind: str  # "top", "label", "predicted+label", "ids" or "all"
    count: int = 1  # K of top:K
    ids: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Targets:
        """Reads `top:K`, `label`, `predicted+label`, `ids:3,17` or `all`."""
        text = str(text)  # YAML reads 5 as a number
        kind, _, rest = text.partition(":")
        try:
            if kind == "top" and int(rest) > 0:
                return cls("top", count=int(rest))
            if kind == "ids":
                ids = tuple(int(number) for number in rest.split(","))
                if min(ids) >= 0:
                    return cls("ids", ids=ids)
        except ValueError:
            pass
        if text in ("label", "predicted+label", "all"):
            return cls(text)
        raise ConfigError(f"--targets is top:K, label, predicted+label, ids:3,17 or all, not {text!r}")

    @property
    def need_labels(self) -> bool:
        """Whether the manifest must have labels."""
        return self.kind in ("label", "predicted+label")

    def columns(self, n_classes: int) -> int:
        """How many classes of each image the program explains."""
        sizes = {"top": self.count, "label": 1, "predicted+label": 2, "ids": len(self.ids), "all": n_classes}
        return sizes[self.kind]

    def row(self, label: int | None, n_classes: int) -> list[int]:
        """The program's targets for one image; `PREDICTED` where the model chooses, or where there is no label."""
        if self.kind == "ids":
            return list(self.ids)
        if self.kind == "all":
            return list(range(n_classes))
        labelled = PREDICTED if label is None else label
        return {"top": [PREDICTED] * self.count, "label": [labelled], "predicted+label": [PREDICTED, labelled]}[
            self.kind
        ]


@dataclass(frozen=True)
class RunConfig:
    """What `beamcam run` was asked to do."""

    images: tuple[str, ...]  # folders, globs, images or manifests
    model: str  # .keras or .h5 file, keras.applications:NAME, or module:factory
    output: str  # the run's folder
    layer: str | None = None  # the spatial signal; None for the last one
    logits_layer: str | None = None  # None for the model's only output
    reshape: str | None = None  # "tokens" or HxW: a transformer's signal as a grid
    class_names: str | None = None  # a file with one name a line, or JSON
    methods: tuple[str, ...] = ("gradcam",)
    targets: str = "top:1"
    metrics: tuple[str, ...] = ()  # of METRICS
    labels_from: str = "column"  # where labels come from: "column", "folder" or "none"
    label_column: str = "label"
    preprocess: str | None = None  # one of PREPROCESSES, or module:function; None where the model tells
    resize: str = "stretch"
    input_size: tuple[int, int] | None = None  # (height, width), where the model leaves it open
    batch_size: int = 32
    shard_size: int = 256  # images
    overlays: str = "blend"
    overlay_size: int | None = None  # longest side, pixels; None for the original's
    overlay_sample: float = 1.0  # share of the images that get overlays, in [0, 1]
    colormap: str = "inferno"
    logits: str = "all"  # or "top:K"
    map_dtype: str = "float16"
    max_pixels: int = 100_000_000
    max_bytes: int = 200_000_000  # of an image's file
    max_failures: int | None = None  # None for any number
    allow_unsafe_model: bool = False
    jit: str = "auto"  # "auto", "on" or "off"
    precision: str = "auto"  # or "float32", "bfloat16", "float16"
    since: str | None = None  # an earlier run, whose records of unchanged images are carried over
    storage_options: tuple[str, ...] = ()  # SCHEME.NAME=VALUE, for fsspec's file systems
    storage_timeout: float = 300.0  # seconds; how long one read or write is tried

    def __post_init__(self) -> None:
        self._check_types()
        if not self.images or not all(self.images):
            raise ConfigError("nothing to explain: give --images a folder, a glob or a manifest")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(f"--methods names at least one method, and none twice, not {','.join(self.methods)!r}")
        self._check_choices()
        self._check_numbers()
        _ = self.parsed_targets, self.top_logits  # both raise on nonsense
        try:
            color_table(self.colormap)
        except ValueError as error:
            raise ConfigError(f"--colormap: {error}") from error

    def _check_types(self) -> None:
        for option in dataclasses.fields(self):
            value, kind = getattr(self, option.name), str(option.type).split(" | ")[0]
            if value is None and "None" in str(option.type):
                continue
            is_right, words = _KINDS[kind]
            if not is_right(value):
                raise ConfigError(f"{_option(option.name)} is {words}, not {value!r}")

    def _check_choices(self) -> None:
        choices = {
            "resize": RESIZES,
            "overlays": STYLES,
            "map_dtype": tuple(MAP_DTYPES),
            "jit": ("auto", "on", "off"),
            "precision": ("auto", "float32", "bfloat16", "float16"),
            "labels_from": LABEL_SOURCES,
        }
        if self.reshape not in (None, "tokens") and not re.fullmatch(r"\d+x\d+", str(self.reshape)):
            raise ConfigError(f"--reshape is tokens, or the height and width of a grid of them, not {self.reshape!r}")
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown:
            raise ConfigError(f"--metrics are of {', '.join(METRICS)}, not {unknown[0]!r}")
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise ConfigError(f"{_option(name)} is one of {', '.join(valid)}, not {getattr(self, name)!r}")
        if self.preprocess is not None and self.preprocess not in PREPROCESSES and ":" not in self.preprocess:
            raise ConfigError(
                f"--preprocess is one of {', '.join(PREPROCESSES)} or module:function, not {self.preprocess!r}"
            )

    def _check_numbers(self) -> None:
        for name in ("batch_size", "shard_size", "max_pixels", "max_bytes", "overlay_size"):
            value = getattr(self, name)
            if value is not None and not _is_count(value, 1):
                raise ConfigError(f"{_option(name)} is at least 1, not {value!r}")
        if self.max_failures is not None and not _is_count(self.max_failures, 0):
            raise ConfigError(f"--max-failures is at least 0, not {self.max_failures!r}")
        if not isinstance(self.overlay_sample, int | float) or not 0 <= self.overlay_sample <= 1:
            raise ConfigError(f"--overlay-sample is a share between 0 and 1, not {self.overlay_sample!r}")
        if not 0 < self.storage_timeout < math.inf:
            raise ConfigError(f"--storage-timeout is a number of seconds above 0, not {self.storage_timeout!r}")
        size = self.input_size
        if size is not None and not (len(size) == 2 and all(_is_count(side, 1) for side in size)):
            raise ConfigError(f"--input-size is a height and a width of at least 1, not {size!r}")

    @property
    def parsed_reshape(self) -> Any:
        """`reshape` as `expose` takes it: None, "tokens" or a pair of integers."""
        if self.reshape in (None, "tokens"):
            return self.reshape
        return tuple(int(side) for side in str(self.reshape).split("x"))

    @property
    def parsed_targets(self) -> Targets:
        """`targets`, parsed."""
        return Targets.parse(self.targets)

    @property
    def top_logits(self) -> int | None:
        """How many of the best logits to keep; None for all."""
        if self.logits == "all":
            return None
        kind, _, count = str(self.logits).partition(":")
        if kind != "top" or not count.isdecimal() or int(count) < 1:
            raise ConfigError(f"--logits is all or top:K, not {self.logits!r}")
        return int(count)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The inverse of `to_dict`."""
        tuples = {name: tuple(values[name]) for name in _TUPLES if values.get(name) is not None}
        return cls(**{**values, **tuples})

    def identity(self) -> dict[str, Any]:
        """The options that decide what is written: a run is resumed only by a job that agrees in all of them."""
        values = {name: value for name, value in self.to_dict().items() if name not in NOT_PART_OF_A_RESULT}
        # Options that came later are part of a run only where they are used, so that older runs can go on.
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}

    def without_secrets(self) -> dict[str, Any]:
        """The options as they may be written down: of stores' options the names alone."""
        values = {
            name: without_secrets(value) if isinstance(value, str) else value for name, value in vars(self).items()
        }
        values["images"] = [without_secrets(spec) for spec in self.images]
        values["storage_options"] = [f"{option.partition('=')[0]}=***" for option in self.storage_options]
        return values

    def digest(self) -> str:
        """A hash of `identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def parse_options(content: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The fields of a configuration, from options as people write them in YAML.

    Args:
        content: names as on the command line, with or without dashes, and their values.
        where: what says so, for messages.

    Raises:
        ConfigError: there is no such option, or a value cannot be read.
    """
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    values = {}
    for name, value in content.items():
        key = str(name).lstrip("-").replace("-", "_")
        if key not in fields:
            nearest = difflib.get_close_matches(key, sorted(fields), n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigError(f"{where} has an unknown option {name!r}{hint}")
        values[key] = _parse_option(key, value)
    return values


def _parse_option(name: str, value: Any) -> Any:
    if name in ("images", "methods", "metrics", "storage_options"):
        return tuple(value) if isinstance(value, list | tuple) else split_names(str(value or ""))
    if name == "jit" and isinstance(value, bool):
        return "on" if value else "off"  # YAML's own reading of the two words
    if name == "input_size" and isinstance(value, list | tuple):
        return tuple(value)
    if name == "input_size" and value is not None:
        height, _, width = str(value).partition("x")
        if not (height.isdecimal() and (width or height).isdecimal()):
            raise ConfigError(f"input_size is 224 or 224x320, not {value!r}")
        return int(height), int(width or height)
    return value


def configure_storage(options: Sequence[str], timeout: float) -> None:
    """Makes the options of stores those of this process.

    Raises:
        ConfigError: one of them is not understood, or gives a secret.
    """
    try:
        storage.configure(options, timeout)
    except ValueError as error:
        raise ConfigError(f"--storage-option: {error}") from error


def describe_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two configurations, option by option, in one line."""
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return "; ".join(f"{_option(name)} was {old.get(name)!r} and is {new.get(name)!r}" for name in names)


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


LATER: dict[str, Any] = {"metrics": [], "reshape": None, "precision": "float32", "max_bytes": 200_000_000}
"""Options that older runs do not have, with what these did."""

_TUPLES = ("images", "methods", "metrics", "input_size", "storage_options")

_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "a word"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (lambda value: _is_number(value, int), "a whole number"),
    "float": (lambda value: _is_number(value, int, float), "a number"),
    "tuple[str, ...]": (
        lambda value: isinstance(value, tuple) and all(isinstance(part, str) for part in value),
        "a list of words",
    ),
    "tuple[int, int]": (
        lambda value: isinstance(value, tuple) and len(value) == 2 and all(_is_number(part, int) for part in value),
        "a height and a width",
    ),
}
"""What a field of each type takes, and how that is called."""


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
