"""Ways to damage a run of `FakeRun`, each with the sentences that `beamcam verify` says of it, as patterns."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import image_id
from pipeline.verify.columns import ANYWHERE, SHARES
from tests.runs import (
    METHODS,
    FakeRun,
    change_json,
    change_rows,
    change_table,
    encode_table,
    make_png,
    put_file,
    rows_of,
)

Damage = Callable[[Path], object]


def marker(**changes: object) -> Damage:
    return lambda run: change_json(run / "shards/00000.json", **changes)


def summary(**changes: object) -> Damage:
    return lambda run: change_json(run / "run.json", **changes)


def write(path: str, data: bytes | str) -> Damage:
    return lambda run: (run / path).write_bytes(data if isinstance(data, bytes) else data.encode())


def remove(path: str) -> Damage:
    return lambda run: (run / path).unlink()


def rows(change: Callable[[list[dict[str, Any]]], object], shard: int = 0, **options: Any) -> Damage:
    return lambda run: change_rows(run, shard, change, **options)


def image(**changes: object) -> Damage:
    """Changes the first record of shard 0."""
    return rows(lambda found: found[0].update(changes))


def view(**changes: object) -> Damage:
    return rows(lambda found: found[0]["view"].update(changes))


def values(**changes: object) -> Damage:
    """Changes the first map of the first record of shard 0."""
    return rows(lambda found: found[0]["maps"][0].update(changes))


def table(change: Callable[[pa.Table], pa.Table], **options: Any) -> Damage:
    return lambda run: change_table(run, 0, change, **options)


def retyped(column: str, kind: pa.DataType) -> Damage:
    def change(found: pa.Table) -> pa.Table:
        i = found.schema.get_field_index(column)
        return found.set_column(i, column, found[column].cast(kind))

    return table(change)


def retyped_scale(found: pa.Table) -> pa.Table:
    struct = found.schema.field("maps").type.value_type
    fields = [pa.field(f.name, pa.float64() if f.name == "scale" else f.type) for f in struct]
    schema = found.schema.set(found.schema.get_field_index("maps"), pa.field("maps", pa.list_(pa.struct(fields))))
    return pa.Table.from_pylist(found.to_pylist(), schema=schema)


def manifest(change: Callable[[list[dict[str, Any]]], object], **metadata: str) -> Damage:
    def damage(run: Path) -> None:
        old = pq.read_table(run / "manifest.parquet")
        found = {k.decode().removeprefix("beamcam."): v.decode() for k, v in old.schema.metadata.items()}
        listed = old.to_pylist()
        change(listed)
        data = encode_table(pa.Table.from_pylist(listed, schema=old.schema), found | metadata)
        (run / "manifest.parquet").write_bytes(data)

    return damage


def truncate(path: str, agreeing: bool) -> Damage:
    def damage(run: Path) -> None:
        data = (run / path).read_bytes()[:-40]
        if agreeing:
            put_file(run, 0, path.split("/", maxsplit=1)[0], data)
        else:
            (run / path).write_bytes(data)

    return damage


def flip_a_byte(run: Path) -> None:
    path = run / "records/part-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def swap_shards(run: Path) -> None:
    """Shard 1's files under shard 0's name, with a marker that agrees: only the manifest can tell."""
    other = json.loads((run / "shards/00001.json").read_text())
    for name in ("records", "failures"):
        put_file(run, 0, name, (run / f"{name}/part-00001.parquet").read_bytes())
    kept = json.loads((run / "shards/00000.json").read_text())["files"]
    (run / "shards/00000.json").write_text(json.dumps({**other, "shard": 0, "files": kept}))
    change_json(run / "run.json", records=8, failures=2, overlays=16, failures_by_type={"decode:BrokenImage": 2})


def overlay_of(run: Path, shard: int = 0, row: int = 0) -> Path:
    return run / rows_of(run / f"records/part-{shard:05d}.parquet")[row]["maps"][0]["overlay"]


def with_overlay(change: Callable[[Path], object]) -> Damage:
    return lambda run: change(overlay_of(run))


def nan_data(run: Path, value: float) -> bytes:
    data = np.zeros((2, 3), "<f2")
    data[1, 2] = value
    return data.tobytes()


def twice(found: list[dict[str, Any]]) -> None:
    found[1] = dict(found[0])


def to_failure(run: Path) -> None:
    """The last image of shard 1 is a record and a failure, and the one before it is neither."""
    records = rows_of(run / "records/part-00001.parquet")
    uris = [records[-1]["uri"], records[-2]["uri"]]

    def change(found: list[dict[str, Any]]) -> None:
        found.append({**found[0], "uri": uris[0], "id": image_id(uris[0])})

    change_rows(run, 1, change, "failures", failures=2, failures_by_type={"decode:BrokenImage": 2})
    change_rows(run, 1, lambda found: found.pop(-2), records=len(records) - 1)
    change_json(run / "run.json", records=8, failures=2, failures_by_type={"decode:BrokenImage": 2})


def many_rows(run: Path) -> None:
    found = pa.table({"id": pa.array([None] * 3_000_000, pa.string())})
    put_file(run, 0, "records", encode_table(found, {}))


def pipe(path: str) -> Damage:
    def damage(run: Path) -> None:
        (run / path).unlink()
        os.mkfifo(run / path)

    return damage


def folder(path: str) -> Damage:
    def damage(run: Path) -> None:
        (run / path).unlink()
        (run / path).mkdir()

    return damage


FIRST, SECOND = "/photos/0000000.jpg", "/photos/0000001.jpg"
AGAIN = r"the same `beamcam run` makes that shard again"
REMAKE = rf"remove shards/0000\d\.json, and {AGAIN}"
FINISH = r"the same `beamcam run` writes it once all shards are committed"
LOST = r"it lists the run's images, and without it nothing can be said of them"
OF_FIRST = rf"the {METHODS[0]} map of {FIRST} for class \d "
HUGE = 10**4000

DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    # run.json
    "no summary": (remove("run.json"), [rf"run\.json cannot be read: FileNotFoundError: {FINISH}"]),
    "a summary that is a list": (
        write("run.json", "[]"),
        [rf"run\.json is damaged: it holds \[\], and not values by name: {FINISH}"],
    ),
    "a summary cut off": (
        write("run.json", '{"a": '),
        [rf"run\.json is damaged: it is no JSON \(JSONDecodeError: .*\): {FINISH}"],
    ),
    "a summary of brackets": (
        write("run.json", "[" * 200_000),
        [r"run\.json is damaged: it is no JSON \(RecursionError: .*"],
    ),
    "a summary that is not UTF-8": (
        write("run.json", b"\xff\xfe\xff"),
        [r"run\.json is damaged: it is no JSON \(Unicode.*"],
    ),
    "a summary without shards": (summary(shards=None), [rf"run\.json is damaged: it lacks shards: {FINISH}"]),
    "a summary with words for numbers": (
        summary(inputs="10"),
        [r"run\.json is damaged: its inputs is a whole number of at least 0, not '10': .*"],
    ),
    "a summary with a negative count": (
        summary(records=-9),
        [r"run\.json is damaged: its records is a whole .*, not -9: .*"],
    ),
    "a summary with true for a number": (
        summary(failures=True),
        [r"run\.json is damaged: its failures is a whole .*, not True: .*"],
    ),
    "a summary with a gigantic number": (
        summary(shards=HUGE),
        [r"run\.json is damaged: its shards is a whole .*, not 10{79}\.\.\.: .*"],
    ),
    "a summary of another schema": (
        summary(schema_version=2),
        [r"run\.json is damaged: its schema_version is 1 for this program, not 2: .*"],
    ),
    "a summary with names that are none": (
        summary(class_names=[1]),
        [r"run\.json is damaged: its class_names is a list .*, not \[1\]: .*"],
    ),
    "a summary without options": (
        summary(config=[]),
        [r"run\.json is damaged: its config is values by name, not \[\]: .*"],
    ),
    "a summary with other inputs": (
        summary(inputs=11),
        [r"run\.json counts 11 inputs, and manifest\.parquet lists 10"],
    ),
    "a summary with other shards": (summary(shards=4), [r"run\.json counts 4 shards, and manifest\.parquet lists 3"]),
    "a summary with other records": (summary(records=8), [r"run\.json counts 8 records, and the shards' markers 9"]),
    "a summary with other failures": (summary(failures=2), [r"run\.json counts 2 failures, and the shards' markers 1"]),
    "a summary with other overlays": (
        summary(overlays=17),
        [r"run\.json counts 17 overlays, and the shards' markers 18"],
    ),
    "a summary with other carried": (summary(carried=1), [r"run\.json counts 1 carried, and the shards' markers 0"]),
    "a summary with other types": (
        summary(failures_by_type={"read:BrokenImage": 1}),
        [r"run\.json counts \{'read:Bro.*': 1\} failures_by_type, and the shards' markers \{'decode:Broken.*': 1\}"],
    ),
    # markers
    "no marker": (remove("shards/00001.json"), [rf"shards/00001\.json cannot be read: FileNotFoundError: {AGAIN}"]),
    "a marker that is a list": (
        write("shards/00001.json", "[]"),
        [rf"shards/00001\.json is damaged: it holds \[\], .*: {AGAIN}"],
    ),
    "an empty marker": (write("shards/00001.json", ""), [r"shards/00001\.json is damaged: it is no JSON .*"]),
    "a marker of brackets": (
        write("shards/00001.json", "[" * 200_000),
        [r"shards/00001\.json is damaged: it is no JSON \(Recur.*"],
    ),
    "a marker without its digests": (
        marker(overlays_sha256=None, config_digest=None),
        [rf"shards/00000\.json is damaged: it lacks config_digest, overlays_sha256: {AGAIN}"],
    ),
    "a marker with a negative count": (
        marker(records=-4),
        [r"shards/00000\.json is damaged: its records is a whole .*, not -4: .*"],
    ),
    "a marker with a fraction": (
        marker(overlays=1.5),
        [r"shards/00000\.json is damaged: its overlays is a whole .*, not 1\.5: .*"],
    ),
    "a marker with infinity": (
        marker(inputs=math.inf),
        [r"shards/00000\.json is damaged: its inputs is a whole .*, not inf: .*"],
    ),
    "a marker with a gigantic number": (
        marker(inputs=HUGE),
        [r"shards/00000\.json is damaged: its inputs is .*, not 10{79}\.\.\.: .*"],
    ),
    "a marker with files as a list": (
        marker(files=["a"]),
        [r"shards/00000\.json is damaged: its files is the bytes .*, not \['a'\]: .*"],
    ),
    "a marker with counts of types in words": (
        marker(failures_by_type={"a": "b"}),
        [r"shards/00000\.json is damaged: its failures_by_type is whole numbers by name, not \{'a': 'b'\}: .*"],
    ),
    "a marker of another shard": (marker(shard=2), [r"shards/00000\.json is the marker of shard 2: remove it, and .*"]),
    "a marker of another model": (
        marker(model_digest="?"),
        [rf"shard 0 was written with another model than run\.json says: {REMAKE}"],
    ),
    "a marker of another configuration": (
        marker(config_digest="?"),
        [rf"shard 0 was written with another config than run\.json says: {REMAKE}"],
    ),
    "a marker with other inputs": (
        marker(inputs=5),
        [
            r"shards/00000\.json counts 5 inputs, and the manifest has 4 in that shard",
            r"shards/00000\.json counts 5 inputs, but 4 records and 0 failures",
        ],
    ),
    "a marker that does not add up": (
        marker(failures=1),
        [
            r"shards/00000\.json counts 4 inputs, but 4 records and 1 failures",
            r"failures/part-00000\.parquet holds 0 rows, and its shard's marker counts 1",
            r"run\.json counts 1 failures, and the shards' markers 2",
        ],
    ),
    "a marker with more carried than records": (
        marker(carried=5),
        [r"shards/00000\.json counts 5 records carried over, of 4 in all", r"run\.json counts 0 carried, .* 5"],
    ),
    "a marker with carried in words": (
        marker(carried="all"),
        [r"shards/00000\.json is damaged: its carried is .*, not 'all': .*"],
    ),
    "a marker that names a foreign file": (
        marker(files={"../../etc/passwd": {"bytes": 1, "sha256": "x"}}),
        [r"shards/00000\.json does not name the files of its shard, and them alone: see '\.\./\.\./etc/passwd'"],
    ),
    "a marker that names one file more": (
        lambda run: change_json(
            run / "shards/00000.json",
            files=json.loads((run / "shards/00000.json").read_text())["files"]
            | {"records/part-00001.parquet": {"bytes": 1, "sha256": "x"}},
        ),
        [r"shards/00000\.json does not name the files .*: see 'records/part-00001\.parquet'"],
    ),
    "a marker that is a folder": (
        folder("shards/00001.json"),
        [rf"shards/00001\.json cannot be read: IsADirectoryError.*: {AGAIN}"],
    ),
    "a marker that is a pipe": (pipe("shards/00001.json"), [r"shards/00001\.json cannot be read: OSError: .*pipe.*"]),
    # files
    "no records": (
        remove("records/part-00002.parquet"),
        [rf"records/part-00002\.parquet cannot be read: FileNotFoundError: {REMAKE}"],
    ),
    "no failures": (
        remove("failures/part-00001.parquet"),
        [rf"failures/part-00001\.parquet cannot be read: FileNotFoundError: {REMAKE}"],
    ),
    "records cut off": (
        truncate("records/part-00000.parquet", False),
        [rf"records/part-00000\.parquet is damaged: \d+ bytes of another checksum .* says of \d+: {REMAKE}"],
    ),
    "records with a bit flipped": (
        flip_a_byte,
        [r"records/part-00001\.parquet is damaged: (\d+) bytes of another .* says of \1: .*"],
    ),
    "failures damaged": (
        write("failures/part-00001.parquet", "x"),
        [r"failures/part-00001\.parquet is damaged: 1 bytes .*"],
    ),
    "a marker with another size": (
        lambda run: change_json(
            run / "shards/00000.json",
            files={
                path: {**of, "bytes": 7} if path.startswith("rec") else of
                for path, of in json.loads((run / "shards/00000.json").read_text())["files"].items()
            },
        ),
        [r"records/part-00000\.parquet is damaged: \d+ bytes of another .* says of 7: .*"],
    ),
    "records cut off, and the marker agrees": (
        truncate("records/part-00000.parquet", True),
        [rf"records/part-00000\.parquet cannot be read: ArrowInvalid: .*: {REMAKE}"],
    ),
    "failures that are no Parquet": (
        lambda run: put_file(run, 1, "failures", b"PAR1"),
        [r"failures/part-00001\.parquet cannot be read: ArrowInvalid: .*"],
    ),
    "records with millions of rows": (
        many_rows,
        [r"records/part-00000\.parquet cannot be read: ValueError: it holds 3000000 rows, and should hold 4: .*"],
    ),
    "a record too few": (
        lambda run: put_file(
            run,
            0,
            "records",
            encode_table(pq.read_table(run / "records/part-00000.parquet").slice(1), FakeRun(str(run)).metadata),
        ),
        [r"records/part-00000\.parquet holds 3 rows, and its shard's marker counts 4"],
    ),
    # columns and footers
    "columns in another order": (
        table(lambda found: found.select([found.schema.names[i] for i in (1, 0, *range(2, 10))])),
        [r"records/part-00000\.parquet has its columns in another order: uri, id, .*"],
    ),
    "a column less": (
        table(lambda found: found.drop_columns("label")),
        [r"records/part-00000\.parquet has the column label as none, and should have it as string"],
    ),
    "a column more": (
        table(lambda found: found.append_column("more", found["id"])),
        [r"records/part-00000\.parquet has the column more as string, and should have it as none"],
    ),
    "a column of another type": (
        retyped("width", pa.int64()),
        [r"records/part-00000\.parquet has the column width as int64, and should have it as int32"],
    ),
    "an inner column of another type": (
        table(retyped_scale),
        [r"records/part-00000\.parquet has the column maps\[\]\.scale as double, and should have it as float"],
    ),
    "a column of failures less": (
        table(lambda found: found.drop_columns("message"), name="failures"),
        [r"failures/part-00000\.parquet has the column message as none, and should have it as string"],
    ),
    "another schema version": (
        table(lambda found: found, metadata={"schema_version": "7"}),
        [r"records/part-00000\.parquet has the schema version 7, and this program reads 1"],
    ),
    "a footer of another configuration": (
        table(lambda found: found, metadata={"config_digest": "?"}),
        [r"records/part-00000\.parquet was written with another config than run\.json says"],
    ),
    "a footer of another model": (
        table(lambda found: found, name="failures", metadata={"model_digest": "?"}),
        [r"failures/part-00000\.parquet was written with another model than run\.json says"],
    ),
    "a record without a uri": (image(uri=None), [r"records/part-00000\.parquet has 1 rows without a value of uri"]),
    "a record without logits": (
        image(logits=None),
        [r"records/part-00000\.parquet has 1 rows without a value of logits"],
    ),
    "a record without a list of maps": (
        image(maps=None),
        [r"records/part-00000\.parquet has 1 rows without a value of maps"],
    ),
    "a logit that is null": (
        image(logits=[1.0, None, 3.0, 4.0, 5.0]),
        [r".* has 1 rows without a value of logits\[\]"],
    ),
    "a map that is null": (
        rows(lambda found: found[0]["maps"].insert(0, None)),
        [r".* has 1 rows without a value of maps\[\]"],
    ),
    "a map without a scale": (values(scale=None), [r".* has 1 rows without a value of maps\[\]\.scale"]),
    "a map with half a box": (
        values(box=[1.0, None, 2.0, 3.0]),
        [r".* has 1 rows without a value of maps\[\]\.box\[\]"],
    ),
    "a view without a scale": (view(scale_x=None), [r".* has 1 rows without a value of view\.scale_x"]),
    "a failure without a stage": (
        rows(lambda found: found[0].update(stage=None), 1, name="failures"),
        [r"failures/part-00001\.parquet has 1 rows without a value of stage"],
    ),
    # images
    "an image lost": (
        lambda run: (change_rows(run, 0, lambda found: found.pop(0), records=3, inputs=4),),
        [
            r"shards/00000\.json counts 4 inputs, but 3 records and 0 failures",
            rf"shard 0 lost {FIRST}, which is neither a record nor a failure",
            r"run\.json counts 9 records, and the shards' markers 8",
        ],
    ),
    "an image instead of another": (
        image(uri="/other.jpg", id=image_id("/other.jpg")),
        [
            rf"shard 0 lost {FIRST}, which is neither a record nor a failure",
            r"shard 0 holds /other\.jpg, which is not in its part of the manifest",
        ],
    ),
    "an image twice": (
        rows(twice),
        [rf"shard 0 lost {SECOND}, which .*", rf"shard 0 holds {FIRST} 2 times, as a record or a failure"],
    ),
    "an image as a record and a failure": (
        to_failure,
        [r"shard 1 lost /photos/0000006\.jpg, which .*", r"shard 1 holds /photos/0000007\.jpg 2 times, .*"],
    ),
    "a shard's records under another's name": (
        swap_shards,
        [rf"shard 0 lost /photos/000000{i}\.jpg, which is neither a record nor a failure" for i in range(4)]
        + [rf"shard 0 holds /photos/000000{i}\.jpg, which is not in its part of the manifest" for i in (4, 6, 7, 5)],
    ),
    "an image under another id": (
        image(id="0" * 32),
        [rf"shard 0: the id of {FIRST} is '0{{32}}', and should be {image_id(FIRST)}"],
    ),
    "a failure under another id": (
        rows(lambda found: found[0].update(id="../../x"), 1, name="failures"),
        [r"shard 1: the id of /photos/0000005\.jpg is '\.\./\.\./x', and should be [0-9a-f]{32}"],
    ),
    "another label": (image(label="dog"), [rf"shard 0: the label of {FIRST} is 'dog', and in the manifest None"]),
    "no label": (
        rows(lambda found: found[1].update(label=None)),
        [rf"shard 0: the label of {SECOND} is None, and in the manifest 'cat'"],
    ),
    "a size of no pixels": (
        image(width=0),
        [
            rf"the size of {FIRST} is not of a pixel or more",
            rf"{OF_FIRST}has its peak outside of the image",
            r"the scorecam.* has its peak outside of the image",
            rf"{OF_FIRST}has a box that does not lie in the image",
            r"the scorecam.* has a box that does not lie in the image",
            rf"{OF_FIRST}has its centre of mass outside of the image",
            r"the scorecam.* has its centre of mass outside of the image",
        ],
    ),
    "a negative height": (
        image(height=-48),
        [
            rf"the size of {FIRST} is not of a pixel or more",
            *(rf".*{what} .* the image" for what in ("peak", "peak", "box", "box", "centre", "centre")),
        ],
    ),
    "a checksum that is none": (image(content_sha256=""), [rf"the content_sha256 of {FIRST} is no SHA-256"]),
    "a view of an unknown kind": (view(mode="zoom"), [rf"the view of {FIRST} is none that an image can have"]),
    "a view of no size": (view(scale_y=0.0), [rf"the view of {FIRST} is none that an image can have"]),
    "a view from nowhere": (view(offset_x=math.nan), [rf"the view of {FIRST} is none that an image can have"]),
    # failures
    "a failure at no stage": (
        rows(
            lambda found: found[0].update(stage="lunch"), 1, name="failures", failures_by_type={"lunch:BrokenImage": 1}
        ),
        [
            r"the failure of /photos/0000005\.jpg does not say what failed: stage 'lunch', error type 'Broken.*",
            r"run\.json counts .* failures_by_type, .*",
        ],
    ),
    "a failure without words": (
        rows(lambda found: found[0].update(message=""), 1, name="failures"),
        [r"the failure of /photos/0000005\.jpg does not say what failed: .* message ''"],
    ),
    "a failure without a type": (
        rows(lambda found: found[0].update(error_type=""), 1, name="failures", failures_by_type={"decode:": 1}),
        [r"the failure of /photos/0000005\.jpg does not say what failed: .* error type '', .*", r"run\.json counts .*"],
    ),
    "a failure of another type": (
        rows(lambda found: found[0].update(error_type="Other"), 1, name="failures"),
        [r"shard 1 holds the failures \{'decode:Other': 1\}, and its marker counts \{'decode:BrokenImage': 1\}"],
    ),
    # logits
    "a logit that is not finite": (
        image(logits=[1.0, 2.0, math.nan, 0.0, 0.0]),
        [rf"the logits of {FIRST} are not finite numbers"],
    ),
    "a logit too few": (
        image(logits=[1.0, 2.0]),
        [rf"the logits of {FIRST} are not one a class, nor the best ones .*"],
    ),
    "best logits where all were asked for": (
        image(logit_classes=[0, 1, 2, 3, 4]),
        [rf"the logits of {FIRST} are not one a class, nor the best ones .*"],
    ),
    # maps
    "a map twice": (
        rows(lambda found: found[0]["maps"].append({**found[0]["maps"][0], "overlay": None})),
        [rf"{OF_FIRST}is there twice", rf"{OF_FIRST}has no overlay, and the run's options ask for one"],
    ),
    "a class that there is not": (
        values(target=5),
        [
            rf"the {METHODS[0]} map of {FIRST} for class 5 is of a class that the model does not have",
            r".* names the overlay .*, which is not its own",
        ],
    ),
    "a rank below -1": (values(rank=-2), [rf"{OF_FIRST}has a rank that no class can have"]),
    "a rank beyond the classes": (values(rank=5), [rf"{OF_FIRST}has a rank that no class can have"]),
    "a score that is not finite": (values(score=math.inf), [rf"{OF_FIRST}has a score that is not a finite number"]),
    "a probability beyond 1": (values(probability=1.01), [rf"{OF_FIRST}has a probability outside of \[0, 1\]"]),
    "a negative probability": (values(probability=-0.01), [rf"{OF_FIRST}has a probability outside of \[0, 1\]"]),
    "a probability that is no number": (
        values(probability=math.nan),
        [rf"{OF_FIRST}has a probability outside of \[0, 1\]"],
    ),
    "a negative total": (values(total=-1.0), [rf"{OF_FIRST}has a total that is not a finite number of at least 0"]),
    "a total without end": (
        values(total=math.inf),
        [rf"{OF_FIRST}has a total that is not a finite number of at least 0"],
    ),
    "a share beyond 1": (values(negative_share=1.5), [rf"{OF_FIRST}has a negative share outside of \[0, 1\]"]),
    "a peak outside": (values(peak_x=65.0), [rf"{OF_FIRST}has its peak outside of the image"]),
    "a peak above": (values(peak_y=-1.0), [rf"{OF_FIRST}has its peak outside of the image"]),
    "a box outside": (values(box=[40.0, 0.0, 30.0, 10.0]), [rf"{OF_FIRST}has a box that does not lie in the image"]),
    "a box below": (values(box=[40.0, 20.0, 10.0, 30.0]), [rf"{OF_FIRST}has a box that does not lie in the image"]),
    "a box of no width": (values(box=[40.0, 0.0, 0.0, 10.0]), [rf"{OF_FIRST}has a box that does not lie in the image"]),
    "a box of three numbers": (values(box=[1.0, 2.0, 3.0]), [rf"{OF_FIRST}has a box that does not lie in the image"]),
    "a box that is no number": (
        values(box=[math.nan, 0.0, 1.0, 1.0]),
        [rf"{OF_FIRST}has a box that does not lie in the image"],
    ),
    "a negative scale": (values(scale=-1.0), [rf"{OF_FIRST}has a scale that is not a finite number of at least 0"]),
    "a scale that is no number": (
        values(scale=math.nan),
        [rf"{OF_FIRST}has a scale that is not a finite number of at least 0"],
    ),
    "another type of map": (values(dtype="u1"), [rf"{OF_FIRST}is stored as another type than the run's --map-dtype"]),
    "an unknown type of map": (values(dtype="O"), [rf"{OF_FIRST}is stored as another type than the run's --map-dtype"]),
    "a map of absurd size": (
        values(height=32767, width=32767),
        [rf"{OF_FIRST}has not as many values as its size says"],
    ),
    "a map of negative size": (values(height=-2, width=-3), [rf"{OF_FIRST}has not as many values as its size says"]),
    "a map without values": (
        values(height=0, width=0, data=b""),
        [rf"{OF_FIRST}has not as many values as its size says"],
    ),
    "a map with half a value": (values(data=b"\0" * 11), [rf"{OF_FIRST}has not as many values as its size says"]),
    "a map with NaN": (
        lambda run: values(data=nan_data(run, math.nan))(run),
        [rf"{OF_FIRST}holds values that are not finite numbers"],
    ),
    "a map with infinity": (
        lambda run: values(data=nan_data(run, -math.inf))(run),
        [rf"{OF_FIRST}holds values that are not finite numbers"],
    ),
    "a map beyond its scale": (
        lambda run: values(data=nan_data(run, -1.01))(run),
        [rf"{OF_FIRST}holds values beyond its scale"],
    ),
    "a map with NaN beside one of no size": (
        rows(
            lambda found: (
                found[0]["maps"][0].update(data=nan_data(Path(), math.nan)),
                found[1]["maps"][0].update(data=b""),
            )
        ),
        [
            rf"the {METHODS[0]} map of {SECOND} .* has not as many values as its size says",
            rf"{OF_FIRST}holds values that are not finite numbers",
        ],
    ),
    # attention
    "a centre outside": (values(com_x=65.0), [rf"{OF_FIRST}has its centre of mass outside of the image"]),
    "a centre above": (values(com_y=-1.0), [rf"{OF_FIRST}has its centre of mass outside of the image"]),
    **{
        f"a {name} beyond 1": (values(**{name: 1.01}), [rf"{OF_FIRST}has a {name} outside of \[0, 1\]"])
        for name in SHARES
    },
    "a share that is no number": (values(gini=math.nan), [rf"{OF_FIRST}has a gini outside of \[0, 1\]"]),
    "a ratio without end": (
        values(border_ratio=math.inf),
        [rf"{OF_FIRST}has a border_ratio that is not a finite number of at least 0"],
    ),
    "a correlation beyond 1": (values(top2_cc=-1.01), [rf"{OF_FIRST}has a top2_cc outside of \[-1, 1\]"]),
    "a fifth corner": (values(corner=4), [rf"{OF_FIRST}has a corner that is none of the four"]),
    "a peak beyond the cells": (values(peak_cell=6), [rf"{OF_FIRST}has a peak or regions beyond its cells"]),
    "a map of no region": (values(components50=0), [rf"{OF_FIRST}has a peak or regions beyond its cells"]),
    "more regions than cells": (values(components50=7), [rf"{OF_FIRST}has a peak or regions beyond its cells"]),
    "half a centre": (values(com_y=None), [rf"{OF_FIRST}has only a part of the numbers that tell where .*"]),
    "a centre without a peak": (
        values(**dict.fromkeys(ANYWHERE)),
        [rf"{OF_FIRST}has only a part of the numbers that tell where .*"],
    ),
    "attention of an empty map": (values(total=0.0), [rf"{OF_FIRST}is nowhere positive, and has numbers that tell .*"]),
    # predictions
    "another prediction": (
        rows(lambda found: found[0].update(predicted=int(np.argmin(found[0]["logits"])))),
        [rf"the class that {FIRST} is predicted to be is not the one with the highest logit"],
    ),
    "a prediction that there is not": (
        rows(lambda found: found[0].update(predicted=5)),
        [rf"the class that {FIRST} is predicted to be is not the one with the highest logit"],
    ),
    "two best classes that are one": (
        rows(lambda found: found[0].update(runner_up=found[0]["predicted"])),
        [rf"the second best class of {FIRST} is the best one, or one that the model does not have"],
    ),
    "a second best class that there is not": (
        image(runner_up=5),
        [rf"the second best class of {FIRST} is the best one, or one that the model does not have"],
    ),
    "a confidence beyond 1": (
        image(confidence=1.01),
        [rf"the confidence of {FIRST} is outside of \[0, 1\], or below .*"],
    ),
    "a confidence that is no number": (
        image(runner_up_confidence=math.nan),
        [rf"the confidence of {FIRST} is outside of \[0, 1\], or below .*"],
    ),
    "a second best class that is surer": (
        rows(lambda found: found[0].update(runner_up_confidence=found[0]["confidence"] + 0.01)),
        [rf"the confidence of {FIRST} is outside of \[0, 1\], or below that of the second best class"],
    ),
    "an entropy beyond that of chance": (
        image(entropy=math.log(5) + 0.01),
        [rf"the entropy of {FIRST} is not between 0 and the logarithm of the number of classes"],
    ),
    "a negative entropy": (image(entropy=-0.01), [rf"the entropy of {FIRST} is not between 0 and .*"]),
    "an entropy without a confidence": (
        image(confidence=None, runner_up=None, runner_up_confidence=None),
        [rf"of {FIRST} only a part is known of how sure the model is"],
    ),
    "a metric that is no number": (
        rows(lambda found: found[0]["maps"][0]["metrics"].update(drop=math.nan)),
        [rf"{OF_FIRST}has a metric drop that is not a finite number"],
    ),
    # overlays
    "an overlay lost": (with_overlay(Path.unlink), [r"overlays/../[0-9a-f]{32}-gradcam-\d\.png is missing"]),
    "an overlay of other content": (
        with_overlay(lambda path: path.write_bytes(make_png("another"))),
        [rf"shard 0 has overlays of other content than its marker says; the smallest is overlays/.*\.png: {REMAKE}"],
    ),
    "an empty overlay": (
        with_overlay(lambda path: path.write_bytes(b"")),
        [r"overlays/.*\.png is no whole PNG: 0 bytes"],
    ),
    "an overlay cut off": (
        with_overlay(lambda path: path.write_bytes(path.read_bytes()[:-1])),
        [r"overlays/.*\.png is no whole PNG: \d+ bytes"],
    ),
    "an overlay with a damaged header": (
        with_overlay(lambda path: path.write_bytes(path.read_bytes()[:18] + b"\xff" + path.read_bytes()[19:])),
        [r"overlays/.*\.png is no whole PNG: \d+ bytes"],
    ),
    "an overlay that is a page": (
        with_overlay(lambda path: path.write_text("<html>")),
        [r"overlays/.*\.png is no whole PNG: 6 bytes"],
    ),
    "an overlay that is a folder": (
        with_overlay(lambda path: (path.unlink(), path.mkdir())),
        [r"overlays/.*\.png cannot be read: IsADirectoryError.*"],
    ),
    "a stranger among the overlays": (
        write("overlays/zz.png", b"x"),
        [r"overlays/zz\.png belongs to no record: remove it"],
    ),
    "an overlay of a failure": (
        lambda run: (
            (run / f"overlays/{image_id('/photos/0000005.jpg')[:2]}").mkdir(exist_ok=True)
            or (
                run / f"overlays/{image_id('/photos/0000005.jpg')[:2]}/{image_id('/photos/0000005.jpg')}-gradcam-1.png"
            ).write_bytes(b"")
        ),
        [rf"overlays/../{image_id('/photos/0000005.jpg')}-gradcam-1\.png belongs to no record: remove it"],
    ),
    "an overlay that is not the map's": (
        values(overlay="overlays/../../../etc/passwd"),
        [rf"{OF_FIRST}names the overlay 'overlays/\.\./\.\./\.\./etc/passwd', which is not its own"],
    ),
    "an overlay somewhere else": (
        values(overlay="/etc/passwd"),
        [rf"{OF_FIRST}names the overlay '/etc/passwd', which is not its own"],
    ),
    "an overlay on a web server": (
        lambda run: values(overlay=f"http://169.254.169.254/{overlay_of(run).relative_to(run)}")(run),
        [rf"{OF_FIRST}names the overlay 'http://169\.254.*', which is not its own"],
    ),
    "an overlay of another image": (
        rows(lambda found: found[0]["maps"][0].update(overlay=found[1]["maps"][0]["overlay"])),
        [rf"{OF_FIRST}names the overlay .*, which is not its own"],
    ),
    "a map without an overlay": (
        lambda run: (overlay_of(run).unlink(), values(overlay=None)(run)),
        [
            rf"{OF_FIRST}has no overlay, and the run's options ask for one",
            r"shard 0 names 7 overlays of its own, and its marker counts 8",
        ],
    ),
    "a marker with another count of overlays": (
        lambda run: (change_json(run / "shards/00000.json", overlays=9), change_json(run / "run.json", overlays=19)),
        [r"shard 0 names 8 overlays of its own, and its marker counts 9"],
    ),
    "a marker with another digest of overlays": (
        marker(overlays_sha256="0" * 64),
        [r"shard 0 has overlays of other content than its marker says; .*"],
    ),
    # folders
    "a file of no shard": (
        write("records/part-00003.parquet", b"x"),
        [r"records/part-00003\.parquet belongs to no shard: remove it"],
    ),
    "a file in another spelling": (
        write("records/part-000001.parquet", b"x"),
        [r"records/part-000001\.parquet belongs to no shard: remove it"],
    ),
    "notes among the failures": (
        write("failures/notes.txt", b"x"),
        [r"failures/notes\.txt belongs to no shard: remove it"],
    ),
    "a marker of no shard": (write("shards/00003.json", b"{}"), [r"shards/00003\.json belongs to no shard: remove it"]),
    "a marker set aside": (
        write("shards/00000.json.bak", b"{}"),
        [r"shards/00000\.json\.bak belongs to no shard: remove it"],
    ),
    "half a file of records": (
        write("records/.tmp-host-1-" + "0" * 32, b"x"),
        [r"records/\.tmp-host-1-0{32} is what a writer leaves .*: remove it, unless a job is running there"],
    ),
    "half an overlay": (
        write("overlays/.tmp-host-1-" + "0" * 32, b"x"),
        [r"overlays/\.tmp-host-1-0{32} is what a writer leaves .*"],
    ),
    "a name that a terminal obeys": (
        write("shards/\x1b[2Jx\n.json", b"x"),
        [r"shards/\\x1b\[2Jx\\n\.json belongs to no shard: remove it"],
    ),
    # the manifest
    "no manifest": (remove("manifest.parquet"), [rf"manifest\.parquet cannot be read: FileNotFoundError: {LOST}"]),
    "a manifest that is none": (
        write("manifest.parquet", b"x"),
        [rf"manifest\.parquet cannot be read: ArrowInvalid: .*: {LOST}"],
    ),
    "a manifest cut off": (
        lambda run: (run / "manifest.parquet").write_bytes((run / "manifest.parquet").read_bytes()[:-9]),
        [rf"manifest\.parquet cannot be read: ArrowInvalid: .*: {LOST}"],
    ),
    "a manifest under another id": (
        manifest(lambda listed: listed[0].update(id=listed[1]["id"])),
        [rf"manifest\.parquet: the id of {FIRST} is '{image_id(SECOND)}', and should be {image_id(FIRST)}"],
    ),
    "an image twice in the manifest": (
        manifest(lambda listed: listed[9].update(uri=FIRST, id=image_id(FIRST), label=None)),
        [
            rf"manifest\.parquet lists {FIRST} more than once",
            r"shard 2 lost /photos/0000000\.jpg, which .*",
            r"shard 2 holds /photos/0000009\.jpg, which is not .*",
        ],
    ),
    "shards out of order": (
        manifest(lambda listed: listed[6].update(shard=0)),
        [r"manifest\.parquet has shard 0 where shard 2 should begin, at /photos/0000006\.jpg: nothing behind it .*"],
    ),
    "a shard left out": (
        manifest(lambda listed: [row.update(shard=3) for row in listed[8:]]),
        [r"manifest\.parquet has shard 3 where shard 2 should begin, at /photos/0000008\.jpg: nothing behind it .*"],
    ),
    "a first shard that is not 0": (
        manifest(lambda listed: [row.update(shard=row["shard"] - 1) for row in listed]),
        [r"manifest\.parquet has shard -1 where shard 0 should begin, at /photos/0000000\.jpg: nothing behind it .*"],
    ),
    "a manifest with an image without a uri": (
        manifest(lambda listed: listed[4].update(uri=None)),
        [r"manifest\.parquet has 1 rows without a value of uri"],
    ),
    "a manifest with another label": (
        manifest(lambda listed: listed[4].update(label="dog")),
        [r"shard 1: the label of /photos/0000004\.jpg is 'cat', and in the manifest 'dog'"],
    ),
    "a manifest that counts other images": (
        manifest(lambda listed: None, n_images="11"),
        [r"manifest\.parquet says n_images 11 in its footer, and lists 10"],
    ),
    "a manifest that counts other shards": (
        manifest(lambda listed: None, n_shards="2"),
        [r"manifest\.parquet says n_shards 2 in its footer, and lists 3"],
    ),
    "a manifest of another configuration": (
        manifest(lambda listed: None, config_digest="?"),
        [r"manifest\.parquet was written with another config than run\.json says"],
    ),
    "a manifest of another model": (
        manifest(lambda listed: None, model_digest="?"),
        [r"manifest\.parquet was written with another model than run\.json says"],
    ),
    "a manifest of another schema": (
        manifest(lambda listed: None, schema_version="0"),
        [r"manifest\.parquet has the schema version 0, and this program reads 1"],
    ),
    "a manifest without labels": (
        lambda run: (run / "manifest.parquet").write_bytes(
            encode_table(pq.read_table(run / "manifest.parquet").drop_columns("label"), {})
        ),
        [r"manifest\.parquet has the column label as none, and should have it as string"],
    ),
}
