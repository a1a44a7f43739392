"""The import rules of ARCHITECTURE.md, executed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("explainers/**/*.py"), *ROOT.glob("pipeline/**/*.py")])
PIPELINE = [path for path in ROOT.glob("pipeline/**/*.py") if path != ROOT / "pipeline/__init__.py"]

# Who may import what, beside the standard library, numpy and the project's own lower floors.
EXPLAINERS_MAY = {"tensorflow", "keras", "numpy", "explainers"}
ONLY_IN = {
    "apache_beam": {
        "pipeline/transforms.py",
        "pipeline/graph.py",
        "pipeline/composable.py",
        "pipeline/model_handler.py",
        "pipeline/beam_yaml.py",
    },
    "pyarrow": {"pipeline/parquet.py"},
    "fsspec": {"pipeline/stores.py"},
    "gcsfs": {"pipeline/stores.py"},
    "s3fs": {"pipeline/stores.py"},
    "stamina": {"pipeline/patience.py"},
    "explainers": {"pipeline/worker.py"},
    "tensorflow": {"pipeline/quiet.py"},  # with its start-up notes kept off the terminal
    "keras": {"pipeline/models.py", "pipeline/demo_model.py", "pipeline/screening.py"},
    "h5py": {"pipeline/screening.py"},
    "isal": {"pipeline/png.py"},
    "cmap": {"pipeline/overlay.py"},
    "tqdm": {"pipeline/progress.py"},
    "yaml": {"pipeline/commands.py"},
    "jinja2": {"pipeline/audit/report.py"},
    "scipy": {"pipeline/audit/inference.py", "pipeline/exports/regions.py"},
}

# The pipeline's floors: a module imports only from floors below its own.
FLOORS = [
    {"wording", "patience"},
    {"stores", "logs"},
    {
        "errors",
        "defaults",
        "options",
        "idset",
        "lifetime",
        "npz",
        "codec",
        "geometry",
        "storage",
        "png",
        "progress",
        "quiet",
        "sheet",
        "stream",
        "timing",
        "demo_data",
    },
    {"precheck"},
    {
        "attention",
        "counting",
        "prediction",
        "decode",
        "overlay",
        "paging",
        "screening",
        "layout",
        "class_names",
        "demo_model",
    },
    {"notebook"},
    {"records"},
    {"parquet", "models", "walking", "locking"},
    {"manifests"},
    {"listing"},
    {"config"},
    {"carrying", "dataflow", "summary", "worker"},
    {"engines", "observations"},
    {"class_sums"},
    {"sums"},
    {"totals"},
    {"shard", "running"},
    {"flow"},
    {"run", "nights", "steps"},
    {"reading", "transforms", "verify", "watching"},
    {"graph", "exports", "audit", "composable", "model_handler"},
    {"job", "beam_yaml"},
    {"demo", "planning"},
    {"commands"},
    {"cli"},
]


def imported_modules(path: Path) -> set[str]:
    """Dotted names of all that a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [p for p in SOURCES if name_of(p).startswith("explainers")], ids=name_of)
def test_explainers_import_only_tensorflow_keras_and_numpy(path: Path) -> None:
    packages = {name.split(".")[0] for name in imported_modules(path)}
    assert packages - EXPLAINERS_MAY - set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize("path", [p for p in SOURCES if name_of(p).startswith("pipeline")], ids=name_of)
def test_each_foreign_package_has_its_own_door(path: Path) -> None:
    packages = {name.split(".")[0] for name in imported_modules(path)}
    trespassers = {package for package in packages & set(ONLY_IN) if name_of(path) not in ONLY_IN[package]}
    assert trespassers == set()


def test_pipeline_imports_run_from_upper_floors_to_lower_ones() -> None:
    floor = {module: level for level, modules in enumerate(FLOORS) for module in modules}
    # A package stands on one floor as a whole.
    files = {path: path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py") for path in PIPELINE}
    assert set(files.values()) == set(floor), "every module of the pipeline stands on one floor of this table"
    upwards = []
    for path, module in files.items():
        for name in imported_modules(path):
            parts = name.split(".")
            lower = parts[1] if parts[0] == "pipeline" and len(parts) > 1 else None
            if lower in floor and lower != module and floor[lower] >= floor[module]:
                upwards.append(f"{module} imports {lower}")
    assert upwards == []


def run_blocked(blocked: list[str], code: str) -> subprocess.CompletedProcess:
    """Runs code in a fresh interpreter in which some packages cannot be imported."""
    prelude = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_readers_import_without_beam_and_tensorflow() -> None:
    blocked = ["apache_beam", "tensorflow", "keras"]
    result = run_blocked(blocked, "import pipeline.records, pipeline.codec; from pipeline import open_run, Record")
    assert result.returncode == 0, result.stderr


def test_explainers_import_without_beam_storage_parquet_and_pillow() -> None:
    result = run_blocked(["apache_beam", "fsspec", "gcsfs", "pyarrow", "PIL", "pipeline"], "import explainers")
    assert result.returncode == 0, result.stderr


def test_help_imports_nothing_heavy() -> None:
    code = "import pipeline.cli\nprint(sorted({'numpy', 'pyarrow', 'PIL', 'tensorflow', 'fsspec'} & set(sys.modules)))"
    result = run_blocked([], code)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("package", ["explainers", "pipeline"])
def test_public_names_are_unique_and_importable(package: str) -> None:
    module = __import__(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_no_option_of_ours_hides_one_of_beams() -> None:
    from pipeline.cli import make_parser
    from pipeline.graph import beam_option_names

    parser = make_parser()._subparsers._group_actions[0].choices["run"]
    ours = {name for action in parser._actions for name in action.option_strings}
    assert ours & set(beam_option_names()) <= {"--help", "-h"}
