"""Records, failures and manifests as Parquet, schema version 1: the one user of pyarrow."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.codec import EncodedMap
from pipeline.records import METRICS, SURENESS, Entry, Failure, Geometry, MapRecord, Record, View

METADATA_PREFIX = "beamcam."

GROUP_ROWS = 4096
"""Rows in a row group of a manifest: whole shards, and several of them, since with a row group a shard the footer of a
million images would be a tenth of the file, and every shard reads it."""

MANIFEST_GROUPS = 2000
"""Row groups of a manifest, at the most: its footer, which grows with them, is read several times for every shard."""

BATCH_ROWS = 1024
"""Rows of a file from anybody that are unpacked before their size is looked at."""

Table = pa.Table

_VIEW = pa.struct(
    [
        ("mode", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("scale_x", pa.float64()),
        ("scale_y", pa.float64()),
        ("offset_x", pa.float64()),
        ("offset_y", pa.float64()),
    ]
)

_MAP = pa.struct(
    [
        ("method", pa.string()),
        ("target", pa.int32()),
        ("rank", pa.int16()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
        ("height", pa.int16()),
        ("width", pa.int16()),
        ("dtype", pa.string()),
        ("scale", pa.float32()),
        ("data", pa.binary()),
        ("box", pa.list_(pa.float32())),
        ("peak_x", pa.float32()),
        ("peak_y", pa.float32()),
        ("total", pa.float32()),
        ("negative_share", pa.float32()),
        ("overlay", pa.string()),
        ("metrics", pa.struct([(name, pa.float32()) for name in METRICS])),
        ("com_x", pa.float32()),
        ("com_y", pa.float32()),
        ("peak_cell", pa.int32()),
        ("spread", pa.float32()),
        ("eff_area", pa.float32()),
        ("gini", pa.float32()),
        ("coverage50", pa.float32()),
        ("border_energy", pa.float32()),
        ("border_ratio", pa.float32()),
        ("corner_energy", pa.float32()),
        ("corner", pa.int8()),
        ("components50", pa.int16()),
        ("largest_share50", pa.float32()),
        ("top2_cc", pa.float32()),
    ]
)

RECORDS = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("content_sha256", pa.string()),
        ("label", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("logits", pa.list_(pa.float32())),
        ("logit_classes", pa.list_(pa.int32())),
        ("maps", pa.list_(_MAP)),
        ("view", _VIEW),
        ("predicted", pa.int32()),
        ("confidence", pa.float32()),
        ("runner_up", pa.int32()),
        ("runner_up_confidence", pa.float32()),
        ("entropy", pa.float32()),
    ]
)

FAILURES = pa.schema([(name, pa.string()) for name in ("id", "uri", "stage", "error_type", "message")])

MANIFEST = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("label", pa.string()),
        ("boxes", pa.list_(pa.list_(pa.float32()))),
        ("shard", pa.int32()),
    ]
)


FINDINGS = pa.schema(
    [
        ("key", pa.string()),  # of the finding
        ("rule", pa.string()),
        ("id", pa.string()),
        ("uri", pa.string()),
        ("label", pa.int32()),  # class index; -1: none
        ("predicted", pa.int32()),
        ("confidence", pa.float32()),
        ("score", pa.float32()),  # how much the image shows the finding
    ]
)

EARLIER = pa.field("earlier_shard", pa.int32())  # only where there is an earlier run


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    """A file to be read; what Arrow says of damage is a ValueError, though to Arrow some of it is an OSError."""
    with storage.open_file(uri) as file, _damage():
        yield pq.ParquetFile(file)


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is not None or isinstance(error, storage.UnavailableError):
            raise
        raise ValueError(f"damaged: {error}") from error


def encode_records(records: Iterable[Record], metadata: dict[str, str]) -> bytes:
    """The Parquet file of a shard's records."""
    return _encode([record.to_row() for record in records], RECORDS, metadata)


def encode_failures(failures: Iterable[Failure], metadata: dict[str, str]) -> bytes:
    """The Parquet file of a shard's failures."""
    return _encode([failure.to_row() for failure in failures], FAILURES, metadata)


def write_manifest(
    target: str | io.BytesIO, entries: Iterable[Entry], shard_size: int, metadata: dict[str, str]
) -> None:
    """Writes the resolved input to a local file; entries come one by one, since they may be more than memory holds."""
    rows = max(1, GROUP_ROWS // shard_size) * shard_size
    waiting = iter(entries)
    with _manifest_writer(target, metadata) as writer:
        for first in itertools.count(0, rows):
            group = list(itertools.islice(waiting, rows))
            if not group:
                return
            writer.write_table(_manifest_table(group, first, shard_size), row_group_size=rows)


def copy_manifest(
    source: str,
    target: str,
    metadata: dict[str, str],
    find_earlier: Callable[[Sequence[Entry]], list[int | None]] | None = None,
) -> None:
    """Writes a local manifest once more, with what is known of the run by now; a long one in larger row groups.

    Args:
        source: the local file.
        target: another.
        metadata: what to say of the run.
        find_earlier: tells the shard of an earlier run that has each image; None if there is no such run.
    """
    schema = MANIFEST if find_earlier is None else MANIFEST.append(EARLIER)
    with pq.ParquetFile(source) as file, _manifest_writer(target, metadata, schema) as writer:
        together = max(1, -(-file.num_row_groups // MANIFEST_GROUPS))
        for first in range(0, file.num_row_groups, together):
            table = file.read_row_groups(range(first, min(first + together, file.num_row_groups)))
            if find_earlier is not None:
                shards = find_earlier([_entry(row) for row in table.to_pylist()])
                table = table.append_column(EARLIER, pa.array(shards, EARLIER.type))
            writer.write_table(table, row_group_size=len(table))


@contextlib.contextmanager
def findings_writer(target: str, metadata: dict[str, str]) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Writes the images of an audit's findings to a local file, as many rows at a time as it is called with."""
    schema = FINDINGS.with_metadata(_prefixed(metadata))
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        yield lambda rows: writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def read_manifest_shard(uri: str, shard: int) -> list[Entry]:
    """The entries of one shard, read from its row group alone."""
    with _opened(uri) as parquet:
        table = parquet.read_row_group(_group_of(shard, parquet))
        return [_entry(row) for row in table.filter(pc.equal(table["shard"], shard)).to_pylist()]


def read_manifest(uri: str) -> Iterator[Entry]:
    """All entries, a few shards at a time."""
    for _, entries in read_manifest_shards(uri):
        yield from entries


def read_manifest_shards(uri: str) -> Iterator[tuple[int, list[Entry]]]:
    """All entries by shard, with its number, a few shards in memory at a time."""
    with _opened(uri) as parquet:
        for group in range(parquet.num_row_groups):
            rows = parquet.read_row_group(group).to_pylist()
            for shard, of_shard in itertools.groupby(rows, key=operator.itemgetter("shard")):
                yield shard, [_entry(row) for row in of_shard]


def count_rows(uri: str) -> int:
    """How many rows a file has."""
    with _opened(uri) as parquet:
        return parquet.metadata.num_rows


def read_metadata(uri: str) -> dict[str, str]:
    """What this project wrote into a file's footer, without the prefix."""
    with _opened(uri) as parquet:
        return own_metadata(parquet.schema_arrow)


def own_metadata(schema: pa.Schema) -> dict[str, str]:
    """What this project wrote beside a file's columns, without the prefix."""
    decoded = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    return {
        key.removeprefix(METADATA_PREFIX): value for key, value in decoded.items() if key.startswith(METADATA_PREFIX)
    }


def read_records(uri: str, ids: Collection[str] | None = None, with_logits: bool = True) -> Iterator[Record]:
    """The records of one file, in order; those with these ids, or all.

    Without logits, which are most of a file, records hold the predicted class's alone, as NaN; files that do not say
    beside them what the model predicted are read whole all the same.
    """
    table = read_table(uri) if with_logits else _read_without_logits(uri)
    if ids is not None:
        table = table.filter(pc.is_in(table["id"], pa.array(ids, pa.string())))
    for batch in table.to_batches(BATCH_ROWS):
        for row in batch.to_pylist():
            yield _record(row)


def _read_without_logits(uri: str) -> pa.Table:
    with _opened(uri) as parquet:
        names = parquet.schema_arrow.names
        if not {"predicted", "confidence"} <= set(names):
            return parquet.read()
        # The schema's own names: a nested column is asked for by its first.
        table = parquet.read(columns=[name for name in names if name not in ("logits", "logit_classes")])
        if table["predicted"].null_count or table["confidence"].null_count:  # some were carried over from an older run
            return parquet.read()
    lists = [pa.array([[value] for value in values], pa.list_(kind)) for values, kind in (
        ([math.nan] * len(table), pa.float32()), (table["predicted"].to_pylist(), pa.int32()))]  # fmt: skip
    return table.append_column("logits", lists[0]).append_column("logit_classes", lists[1])


def read_boxes(uri: str, shard: int) -> dict[str, list[list[float]]]:
    """The boxes of a shard's images in a manifest, by the image's id; images without any are left out."""
    with _opened(uri) as parquet:
        table = parquet.read_row_group(_group_of(shard, parquet), columns=["id", "boxes", "shard"])
        table = table.filter(pc.and_(pc.equal(table["shard"], shard), pc.is_valid(table["boxes"])))
        return dict(zip(table["id"].to_pylist(), table["boxes"].to_pylist(), strict=True))


def read_columns(uri: str, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Some flat columns of one file, as far as it has them."""
    with _opened(uri) as parquet:
        there = [name for name in columns if name in parquet.schema_arrow.names]
        table = parquet.read(columns=there)
    return {name: table[name].to_pylist() for name in there}


def read_uris(uri: str, ids: Collection[str]) -> dict[str, str]:
    """Id -> uri of those of one file's records that have these ids."""
    with _opened(uri) as parquet:
        table = parquet.read(columns=["id", "uri"])
    table = table.filter(pc.is_in(table["id"], pa.array(ids, pa.string())))
    return dict(zip(table["id"].to_pylist(), table["uri"].to_pylist(), strict=True))


def read_overlay_names(uri: str) -> list[str]:
    """The overlays that the records of one file name, as they name them."""
    with _opened(uri) as parquet:
        maps = parquet.read(columns=["maps.list.element.overlay"])["maps"]
    return pc.drop_null(pc.struct_field(pc.list_flatten(maps), "overlay")).to_pylist()


def read_failures(uri: str) -> Iterator[Failure]:
    """The failures of one file, in order."""
    for row in read_table(uri).to_pylist():
        yield Failure(**row)


def read_table(uri: str) -> pa.Table:
    """A Parquet file as an Arrow table."""
    with _opened(uri) as parquet:
        return parquet.read()


def parse_table(data: bytes, max_rows: int, max_bytes: int) -> pa.Table:
    """A Parquet file that was read already, from anybody: nothing is unpacked that is larger than it should be.

    Raises:
        ValueError: it has more rows, or its columns need more bytes than that, or it is damaged.
    """
    file = pq.ParquetFile(io.BytesIO(data))
    if file.metadata.num_rows > max_rows:
        raise ValueError(f"it holds {file.metadata.num_rows} rows, and should hold {max_rows}")
    # Of the groups alone: a damaged footer lets pyarrow abort the process where it is asked for a group's column.
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    if any(not 0 <= group.num_rows <= max_rows for group in groups):
        raise ValueError("its row groups have other numbers of rows than the file")
    if sum(group.total_byte_size for group in groups) > max_bytes:
        raise ValueError(f"it unpacks to more than {max_bytes} bytes")
    batches, unpacked = [], 0
    for batch in file.iter_batches(BATCH_ROWS):
        batches.append(batch)
        unpacked += batch.nbytes
        if unpacked > max_bytes:  # repeated values take no room in the file, but do here
            raise ValueError(f"it unpacks to more than {max_bytes} bytes")
    table = pa.Table.from_batches(batches, file.schema_arrow).combine_chunks()
    table.validate(full=True)
    return table


@contextlib.contextmanager
def open_batches(uri: str) -> Iterator[tuple[pa.Schema, Iterator[pa.Table]]]:
    """A Parquet file's schema, with all that its footer says, and its rows, some thousand at a time."""
    with storage.open_file(uri) as file:
        parquet = pq.ParquetFile(file)
        yield parquet.schema_arrow, (pa.Table.from_batches([batch]) for batch in parquet.iter_batches(GROUP_ROWS))


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of records, one after the other, as `complete_records` gives them; no table gives an empty one."""
    return pa.concat_tables([complete_records(table) for table in tables]) if tables else RECORDS.empty_table()


def complete_records(table: pa.Table) -> pa.Table:
    """A table of records with all columns that there are by now, of nulls where an older file lacks one."""
    if table.schema.equals(RECORDS):
        return table
    lists = table["maps"].combine_chunks()
    maps = _complete({field.name: lists.flatten().field(field.name) for field in lists.type.value_type}, _MAP)
    structs = pa.StructArray.from_arrays([*maps.values()], [*maps])
    columns = dict(zip(table.schema.names, table.columns, strict=True))
    columns["maps"] = pa.ListArray.from_arrays(pc.subtract(lists.offsets, lists.offsets[0]), structs)
    return pa.table(_complete(columns, RECORDS), metadata=table.schema.metadata)


def _complete(columns: dict[str, Any], fields: Iterable[pa.Field]) -> dict[str, Any]:
    """Columns in the order of fields, of nulls where there is none, and whatever else there is behind them."""
    count = len(next(iter(columns.values())))
    known = {field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in fields}
    return known | {name: column for name, column in columns.items() if name not in known}


def read_rows(file: IO[bytes], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of any Parquet file, such as a user's own manifest.

    Args:
        file: its bytes.
        columns: which ones to read, as far as they are there. If the first is not, a single row tells which are.
    """
    # A text that comes a million times is there once, in the file and so in memory, until its length is known.
    metadata = pq.read_metadata(file)
    leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    texts = [leaf.path for leaf in leaves if leaf.path in columns and leaf.physical_type == "BYTE_ARRAY"]
    parquet = pq.ParquetFile(file, metadata=metadata, read_dictionary=texts)
    there = [name for name in columns if name in parquet.schema_arrow.names]
    _refuse_large_groups(metadata)
    if columns[0] not in there:
        yield from [dict.fromkeys(parquet.schema_arrow.names)][: metadata.num_rows]
        return
    for batch in parquet.iter_batches(GROUP_ROWS, columns=there):
        longest = max((_longest_text(column) for column in batch.columns), default=0)
        if longest * batch.num_rows > MAX_BATCH or batch.nbytes > MAX_BATCH:
            raise ValueError(f"some cells are far too large: the longest text has {longest} bytes")
        names, lists = batch.schema.names, [_plain(column).to_pylist() for column in batch.columns]
        yield from (dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True))


MAX_BATCH = 1 << 28
"""Bytes of some thousand rows of a user's manifest."""

MAX_GROUP = 1 << 31
"""Bytes, unpacked, of a row group of a user's manifest."""


def _refuse_large_groups(metadata: pq.FileMetaData) -> None:
    # Of the groups alone: a damaged footer lets pyarrow abort the process where it is asked for a group's column.
    for group in range(metadata.num_row_groups):
        needed, rows = metadata.row_group(group).total_byte_size, metadata.row_group(group).num_rows
        if not 0 <= rows <= metadata.num_rows:  # of which pyarrow would make as many, and abort
            raise ValueError(f"row group {group} has {rows} of {metadata.num_rows} rows: the file is damaged")
        if needed > MAX_GROUP:
            raise ValueError(f"row group {group} unpacks to {needed} bytes: write smaller row groups")


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _longest_text(column: pa.Array) -> int:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary
    is_text = pa.types.is_string(column.type) or pa.types.is_binary(column.type)
    return pc.max(pc.binary_length(column)).as_py() or 0 if is_text else 0


def _encode(rows: list[dict[str, Any]], schema: pa.Schema, metadata: dict[str, str]) -> bytes:
    return _write(pa.Table.from_pylist(rows, schema=schema), metadata)


def _write(table: pa.Table, metadata: dict[str, str]) -> bytes:
    table = table.replace_schema_metadata(_prefixed(metadata))
    buffer = pa.BufferOutputStream()
    # Dictionaries would be built for maps and logits that never repeat; small batches keep pages of maps small.
    repeated = [
        name
        for name in ("label", "view.mode", "stage", "error_type", "maps.list.element.method", "maps.list.element.dtype")
        if _has_leaf(table.schema, name)
    ]
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        use_dictionary=repeated,
        write_batch_size=64,
        store_schema=True,
    )
    return buffer.getvalue().to_pybytes()


def _manifest_writer(
    target: str | io.BytesIO, metadata: dict[str, str], schema: pa.Schema = MANIFEST
) -> pq.ParquetWriter:
    schema = schema.with_metadata(_prefixed(metadata))
    return pq.ParquetWriter(target, schema, compression="zstd", use_dictionary=["label"], write_batch_size=64)


def _manifest_table(entries: Sequence[Entry], first: int, shard_size: int) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "id": [entry.id for entry in entries],
        "uri": [entry.uri for entry in entries],
        "label": [entry.label for entry in entries],
        "boxes": [entry.boxes for entry in entries],
        "shard": [i // shard_size for i in range(first, first + len(entries))],
    }
    return pa.table(columns, schema=MANIFEST)


def _group_of(shard: int, parquet: pq.ParquetFile) -> int:
    """The row group that holds a shard: all have as many shards as the first, but for the last."""
    # Not by the footer's statistics: a damaged footer lets pyarrow abort the process where it is asked for them.
    last = parquet.read_row_group(0, columns=["shard"])["shard"][-1].as_py()
    return min(shard // (last + 1), parquet.num_row_groups - 1)


def _prefixed(metadata: dict[str, str]) -> dict[str, str]:
    return {METADATA_PREFIX + key: value for key, value in metadata.items()}


def _has_leaf(schema: pa.Schema, path: str) -> bool:
    return path.split(".", 1)[0] in schema.names


def _entry(row: dict[str, Any]) -> Entry:
    boxes = row["boxes"]
    boxes = None if boxes is None else tuple(tuple(box) for box in boxes)
    return Entry(row["uri"], row["label"], boxes, row.get("earlier_shard"))


def _record(row: dict[str, Any]) -> Record:
    geometry = Geometry(row["width"], row["height"], View(**row["view"]))
    logits, classes = pa.array(row["logits"], pa.float32()), row["logit_classes"]
    return Record(
        row["id"],
        row["uri"],
        row["content_sha256"],
        row["label"],
        geometry,
        logits.to_numpy(),
        None if classes is None else pa.array(classes, pa.int32()).to_numpy(),
        tuple(_map_record(values, geometry) for values in row["maps"]),
        **{name: row.get(name) for name in SURENESS},  # files of before there were these lack the columns
    )


def _map_record(row: dict[str, Any], geometry: Geometry) -> MapRecord:
    encoded = EncodedMap(*(row.pop(name) for name in ("height", "width", "dtype", "scale", "data")))
    box = row.pop("box")
    # Files of before there were metrics lack the column.
    metrics = {name: value for name, value in (row.pop("metrics", None) or {}).items() if value is not None}
    return MapRecord(
        encoded=encoded, geometry=geometry, box=None if box is None else tuple(box), metrics=metrics, **row
    )
