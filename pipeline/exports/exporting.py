"""`beamcam export`: the images of a run that were chosen, written for a labelling tool; each other one, counted."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.errors import ConfigError, RunError, as_config_errors
from pipeline.exports.choosing import Choice, choose
from pipeline.exports.folder import Folder, open_folder
from pipeline.exports.formats import EXPORTERS, Format
from pipeline.exports.items import ExportFacts, Item, Labels, common_root, file_name, name_below
from pipeline.exports.regions import DEFAULT_CUT, Cut, find_regions
from pipeline.reading import Run
from pipeline.records import MapRecord, Record
from pipeline.wording import without_secrets

_LARGEST_IMAGE = 1 << 30  # bytes of an image that is copied

_MOST_PIXELS = 200_000_000
"""Of an image: its regions then take 3 GB. Records may come from anybody, and tell any size."""


@dataclass(frozen=True)
class ExportConfig:
    """What to write, where."""

    to: str  # of `EXPORTERS`
    output: str  # a file's uri, or a folder's, as the format has it
    choice: Choice
    cut: Cut = DEFAULT_CUT
    shapes: frozenset[str] | None = None  # of `items.SHAPES`; None for the format's own choice
    per_file: int | None = None  # images a file; None for all in one
    root: str | None = None  # what images' names leave out of their uris; None for the folder common to all
    prefix: str | None = None  # what Label Studio's addresses of images begin with
    copy_images: bool = False
    overwrite: bool = False

    @property
    def format(self) -> Format:
        """How it is written."""
        return EXPORTERS[self.to]

    def check(self) -> None:
        """Refuses what does not go together.

        Raises:
            ConfigError: with the rule that is broken, and the way out.
        """
        if self.to not in EXPORTERS:
            raise ConfigError(f"--to is one of {', '.join(EXPORTERS)}, not {self.to!r}")
        form, cut = self.format, self.cut
        if self.shapes is not None and (not self.shapes <= form.shapes or not self.shapes):
            raise ConfigError(
                f"--shapes of {self.to} are of {', '.join(sorted(form.shapes)) or 'no kind'}, "
                f"not {', '.join(sorted(self.shapes)) or 'empty'}"
            )
        if form.suffix is None and self.per_file is not None:
            raise ConfigError(f"--per-file is for formats of one file, and {self.to} is a folder: leave it out")
        if form.suffix is not None and self.copy_images:
            raise ConfigError(f"--copy-images needs a format that is a folder, and {self.to} is a file: leave it out")
        if form.suffix is not None and not self.output.lower().endswith(form.suffix):
            raise ConfigError(f"--output of {self.to} is a file whose name ends in {form.suffix}, not {self.output!r}")
        if self.per_file is not None and self.per_file < 1:
            raise ConfigError(f"--per-file is at least 1, not {self.per_file}")
        if not 0 < cut.threshold < 1:
            raise ConfigError(f"--threshold is a share of the map's maximum between 0 and 1, not {cut.threshold:g}")
        for name, value in (("--min-area", cut.min_area), ("--min-energy", cut.min_energy)):
            if not 0 <= value < 1:
                raise ConfigError(f"{name} is a share from 0 to below 1, not {value:g}")
        if cut.most is not None and cut.most < 1:
            raise ConfigError(f"--regions is all, or how many of the strongest, from 1; not {cut.most}")
        sample = self.choice.sample
        if sample is not None and not (0 < sample < 1 or (sample >= 1 and sample == int(sample))):
            raise ConfigError(f"--sample is a share between 0 and 1, or a whole number of images, not {sample:g}")
        if not 0 <= self.choice.min_score <= 1:
            raise ConfigError(f"--min-score is a probability from 0 to 1, not {self.choice.min_score:g}")


@dataclass(frozen=True)
class ExportSummary:
    """What became of the run's images: written + left out = records."""

    written: int
    regions: int
    left_out: Counter[str]  # by reason
    failures: int  # images that the run itself could not explain
    files: int
    renamed: int  # images whose names no file can have
    hints: tuple[str, ...] = ()  # what the user will have to do

    def lines(self, output: str) -> list[str]:
        """For the end of the terminal's output."""
        total = self.written + self.left_out.total()
        lines = [f"{self.written} of {total} images with {self.regions} regions, in {output}"]
        lines += [f"  {count} left out: {reason}" for reason, count in sorted(self.left_out.items())]
        if self.failures:
            lines.append(f"  {self.failures} images have no map: they failed in the run")
        if self.renamed:
            lines.append(f"  {self.renamed} files have the image's id as their name, since its own is none for a file")
        if not self.written:
            lines.append(
                "warning: no image was written: the choice or the regions' limits leave out every one of the run"
            )
        return lines + [f"  {hint}" for hint in self.hints]


def export_run(run: Run, config: ExportConfig) -> ExportSummary:
    """Writes an export, image by image; nothing but the names of images stays in memory.

    Raises:
        ConfigError: options do not go together, or the output is there already.
        RunError: the run's records are damaged.
        OSError: something cannot be written.
    """
    config.check()
    room = _find_room(config)
    choice = config.choice
    chosen = sorted(choice.classes) if choice.classes is not None else None
    root = common_root(entry.uri for entry in run.manifest()) if config.root is None else config.root
    facts = ExportFacts(
        run.path, _model_name(run.summary), choice.method, config.cut.threshold, Labels(run.class_names, chosen),
        config.format.shown if config.shapes is None else config.shapes, root, config.prefix,
        _shows_overlays(run, root),
    )  # fmt: skip
    with as_config_errors(f"--output {config.output!r} cannot be written"):
        room.clear()
    export = _Export(run, config, facts, room)
    try:
        for record, shown in choose(lambda: iter(run), choice, run.class_names, export.left_out):
            export.take(record, shown)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise RunError(f"{run.path!r} is damaged: {error}; `beamcam verify` tells where") from error
    else:
        return export.finish()
    finally:
        room.close()


class _Export:
    """An export under way."""

    def __init__(self, run: Run, config: ExportConfig, facts: ExportFacts, room: Folder | _Files):
        self.left_out: Counter[str] = Counter()
        self._run, self._config, self._facts, self._room = run, config, facts, room
        self._names: set[bytes] = set()
        self._written = self._regions = self._files = self._renamed = 0
        self._file = self._new_file()
        make_folder = config.format.make_folder
        self._folder = make_folder(facts, room) if make_folder is not None and isinstance(room, Folder) else None

    def take(self, record: Record, shown: MapRecord) -> None:
        """Writes an image, or counts why not."""
        item = self._make_item(record, shown)
        if isinstance(item, str):
            self.left_out[item] += 1
            return
        if self._folder is not None:
            self._folder.add(item)
            self._renamed += file_name(item) != item.name
        else:
            if self._config.per_file is not None and self._written and self._written % self._config.per_file == 0:
                self._close_file()
                self._file = self._new_file()
            assert self._file is not None
            self._file.add(item)
        self._written += 1
        self._regions += len(item.regions)

    def finish(self) -> ExportSummary:
        """Writes what is left."""
        if self._folder is not None:
            self._folder.finish()
        else:
            self._close_file()
        if isinstance(self._room, _Files):
            self._room.remove_others()
        hints = []
        if kept := self._room.kept:
            hints.append(f"{len(kept)} files stay as they were, made or changed by somebody since: {kept[0]} first")
        if self._config.to == "fiftyone" and not self._config.copy_images and not storage.is_local(self._facts.root):
            hints.append("FiftyOne opens no buckets by itself: with --copy-images the images come along")
        return ExportSummary(self._written, self._regions, self.left_out, self._run.summary["failures"], self._files,
                             self._renamed, tuple(hints))  # fmt: skip

    def _make_item(self, record: Record, shown: MapRecord) -> Item | str:
        """An image to be written, or why it is not."""
        if record.geometry.width * record.geometry.height > _MOST_PIXELS:
            return f"of more than {_MOST_PIXELS:,} pixels"
        regions = find_regions(shown.array(), record.geometry, self._config.cut)
        if not regions:
            is_empty = not shown.array().max() > 0
            return "nothing in its map is positive" if is_empty else "no region of its map is large enough"
        label, name = self._facts.labels.name(shown.target), name_below(record.uri, self._facts.root)
        item = Item(self._written + 1, record, shown, label, name, tuple(regions))
        stem = file_name(item)
        if self._config.to == "yolo":  # which finds labels by the name without its ending
            stem = stem.rpartition(".")[0] or stem
        key = hashlib.blake2b(stem.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key in self._names:
            return "another image has the same name in this format"
        self._names.add(key)
        if not self._config.copy_images:
            return item
        try:
            return dataclasses.replace(item, content=storage.read_bytes(record.uri, limit=_LARGEST_IMAGE))
        except OSError:
            return "its file could not be read to be copied"

    def _new_file(self) -> Any:
        return None if self._config.format.make_file is None else self._config.format.make_file(self._facts)

    def _close_file(self) -> None:
        uri = part_uri(self._config, self._files)
        self._file.finish(uri)
        if isinstance(self._room, _Files):
            self._room.written.add(uri)
        self._files += 1


def part_uri(config: ExportConfig, number: int) -> str:
    """The uri of one file: `boxes.json`, or `boxes-00003.json` where there are several."""
    if config.per_file is None:
        return config.output
    stem, _, suffix = config.output.rpartition(".")
    return f"{stem}-{number:05d}.{suffix}"


class _Files:
    """Where one file goes, or several; and those that an earlier export of the same name left, of either naming."""

    def __init__(self, config: ExportConfig):
        self._output, self._first = config.output, part_uri(config, 0)
        self.kept: list[str] = []
        self.written: set[str] = set()
        if storage.is_folder(self._first):
            raise ConfigError(f"{self._first!r} is a folder: name another --output")
        there = self._of_this_name()
        if there and not config.overwrite:
            raise ConfigError(f"{there[0]!r} is there already: --overwrite replaces it")

    def clear(self) -> None:
        """Sees that a file can be written there, before hours of reading; replaces none yet."""
        probe = f"{self._output}.beamcam-probe"
        storage.write_bytes(probe, b"")
        with contextlib.suppress(PermissionError):  # of who may write to a bucket, but not remove
            storage.remove_file(probe)

    def remove_others(self) -> None:
        """Files of an earlier export, more or named otherwise, would be taken for some of this one."""
        written = {storage.canonical(uri) for uri in self.written}
        for uri in self._of_this_name():
            if storage.canonical(uri) not in written:
                storage.remove_file(uri)

    def close(self) -> None:
        """Nothing is left to do."""

    def _of_this_name(self) -> list[str]:
        """`boxes.json`, `boxes-00000.json` and so on: what exports of this name write, with --per-file or without."""
        folder, _, name = self._output.rpartition("/")
        stem, _, suffix = name.rpartition(".")
        own = re.compile(rf"{re.escape(stem)}(-[0-9]{{5}})?\.{re.escape(suffix)}")
        found = storage.list_files(folder or "/") if "/" in self._output else storage.list_files(".")
        return [uri for uri in found if own.fullmatch(uri.rpartition("/")[2])]


def _find_room(config: ExportConfig) -> Folder | _Files:
    """Sees that nothing is overwritten unasked, and never what is no export; changes nothing yet."""
    with as_config_errors(f"--output {config.output!r} cannot be written"):
        if config.format.suffix is not None:
            return _Files(config)
        return open_folder(config.output, _describe(config), config.format.common, config.overwrite)


def _describe(config: ExportConfig) -> dict[str, Any]:
    """What made a folder; without the hundreds of ids of findings."""
    return {"format": config.to, "method": config.choice.method, **dataclasses.asdict(config.cut)}


def _model_name(summary: dict[str, Any]) -> str:
    name = str(summary.get("model", "")).rstrip("/").rpartition("/")[2]
    return without_secrets(f"{name} {str(summary.get('model_digest', ''))[:12]}".strip())


def _shows_overlays(run: Run, root: str) -> bool:
    """Whether every map has an overlay that a tool can reach: in a bucket, or below the images' root."""
    made = run.summary.get("config", {})
    every = made.get("overlays", "none") != "none" and made.get("overlay_sample", 1) == 1
    return every and (not storage.is_local(run.path) or (root != "" and run.path.startswith(root)))


def methods_of(run: Run) -> list[str]:
    """The methods of a run's maps, in order, as the first record that has maps names them."""
    for record in _some(iter(run), 100):
        if record.maps:
            return list(dict.fromkeys(m.method for m in record.maps))
    return []


def _some(records: Iterator[Record], count: int) -> Iterator[Record]:
    for _, record in zip(range(count), records, strict=False):
        yield record
