"""Maps of a run as pre-annotations for labelling tools: regions, formats, and which images to choose."""

from pipeline.exports.choosing import Choice
from pipeline.exports.exporting import ExportConfig, ExportSummary, export_run
from pipeline.exports.formats import EXPORTERS
from pipeline.exports.regions import Cut, Region, find_regions

__all__ = [
    "EXPORTERS",
    "Choice",
    "Cut",
    "ExportConfig",
    "ExportSummary",
    "Region",
    "export_run",
    "find_regions",
]
