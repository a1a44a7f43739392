"""`ExplainImages` for Beam YAML, whose elements are rows of named columns; `infra/yaml` shows it."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.typehints.arrow_type_compatibility import beam_schema_from_arrow_schema
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_from_element_type, named_fields_from_schema

from pipeline import parquet
from pipeline.composable import FAILURES, RECORDS, ExplainImages
from pipeline.errors import ConfigError
from pipeline.records import METRICS, Entry, Failure, Record
from pipeline.steps import step_config


def _tuple_class(name: str, columns: Iterable[str]) -> Any:
    # Beam's coders ask the rows in a row for attributes, and its sinks hand them to Arrow, which takes tuples.
    return collections.namedtuple(name, list(columns))


MapRow = _tuple_class("MapRow", (column.name for column in parquet.RECORDS.field("maps").type.value_type))
MetricsRow = _tuple_class("MetricsRow", METRICS)
ViewRow = _tuple_class("ViewRow", (column.name for column in parquet.RECORDS.field("view").type))


class ExplainRows(beam.PTransform):
    """Rows that name images to rows of their records, and to rows of failures, with the columns of a run's files.

    Args:
        uri_column: of the image's uri, or of its name where the bytes come along.
        data_column: of the bytes of the image's file, if they do.
        error_handling: Beam YAML's own: {"output": NAME} names the output of the failures, which is "failures" else.
            A row without a name or, where there is a `data_column`, without bytes is one of them.
        check_model: see `ExplainImages`.
        options: see `step_config`. Of `label_column` labels are taken, if the rows have it.

    Raises:
        ConfigError: see `ExplainImages`; or the rows have no such column, or `error_handling` is something else.
    """

    def __init__(
        self,
        *,
        uri_column: str = "uri",
        data_column: str | None = None,
        error_handling: Mapping[str, str] | None = None,
        check_model: bool = True,
        **options: Any,
    ):
        super().__init__()
        self.config = step_config(**options)
        self.needed = [uri_column] if data_column is None else [uri_column, data_column]
        self.failures = _name_failures(error_handling or {})
        self.check_model = check_model

    def expand(self, rows: beam.PCollection) -> dict[str, beam.PCollection]:
        """Rows become images, and what becomes of these becomes rows again."""
        columns = [name for name, _ in named_fields_from_element_type(rows.element_type)]  # type: ignore[arg-type]
        if missing := [name for name in self.needed if name not in columns]:
            raise ConfigError(
                f"the rows have no column {missing[0]!r}, and {', '.join(columns)}: name yours with uri_column or "
                "data_column"
            )
        label = self.config.label_column if self.config.label_column in columns else None
        images = rows | "ToImages" >> beam.Map(to_image, label, *self.needed).with_output_types(Entry)
        explained = images | ExplainImages(self.config, check_model=self.check_model)
        records = beam.Map(record_to_row).with_output_types(_row_type(parquet.RECORDS))
        failures = beam.Map(failure_to_row).with_output_types(_row_type(parquet.FAILURES))
        return {
            RECORDS: explained[RECORDS] | "ToRecordRows" >> records,
            self.failures: explained[FAILURES] | "ToFailureRows" >> failures,
        }


def to_image(row: Any, label: str | None, uri: str, data: str | None = None) -> Entry:
    """The image that a row names.

    Args:
        row: its columns are its attributes; a null is a name or a file that is empty, which comes out as a failure.
        label: the name of the column of the label, if there is one; likewise the others.
        uri: of the image's uri, or name.
        data: of its file's bytes.
    """
    told = None if label is None else getattr(row, label)
    return Entry(
        _or_empty(getattr(row, uri), ""),
        label=None if told is None else str(told),
        data=None if data is None else _or_empty(getattr(row, data), b""),
    )


def record_to_row(record: Record) -> beam.Row:
    """A record with the columns that are stored."""
    columns = record.to_row()
    nothing = dict.fromkeys(METRICS)
    maps = [MapRow(**values | {"metrics": MetricsRow(**nothing | values["metrics"])}) for values in columns["maps"]]
    return beam.Row(**columns | {"maps": maps, "view": ViewRow(**columns["view"])})


def failure_to_row(failure: Failure) -> beam.Row:
    """A failure with the columns that are stored."""
    return beam.Row(**failure.to_row())


def _or_empty(cell: Any, empty: Any) -> Any:
    return empty if cell is None else cell


def _name_failures(spec: Mapping[str, str]) -> str:
    unknown = sorted(set(spec) - {"output"})
    if unknown:
        raise ConfigError(f"error_handling is {{output: NAME}}, and has no option {unknown[0]!r}: leave it out")
    name = spec.get("output", FAILURES)
    if not isinstance(name, str) or name in ("", RECORDS):
        raise ConfigError(f"error_handling's output is a name other than {RECORDS!r}, the records' own, not {name!r}")
    return name


def _row_type(schema: Any) -> RowTypeConstraint:
    return RowTypeConstraint.from_fields(list(named_fields_from_schema(beam_schema_from_arrow_schema(schema))))
