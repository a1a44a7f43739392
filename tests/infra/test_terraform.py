"""infra/terraform: every name is one of the provider's, every reference leads somewhere, every right is a known one."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.infra import provider_schema
from tests.infra.programs import ROOT, program

FOLDER = ROOT / "infra/terraform"
FILES = sorted(FOLDER.glob("*.tf"))
TEXT = "\n".join(path.read_text() for path in FILES)
SCHEMA = json.loads((Path(__file__).parent / "provider.json").read_text())

ABOUT_ANY_RESOURCE = {"for_each", "count", "depends_on", "lifecycle", "dynamic"}

GET_TERRAFORM = "it is a single program, from its makers"


def load(path: Path) -> dict[str, Any]:
    hcl2 = pytest.importorskip("hcl2", reason="python-hcl2 is not installed")
    with path.open() as file:
        return hcl2.load(file)


def resources() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Type, name and body of every resource."""
    for path in FILES:
        for found in load(path).get("resource", []):
            for kind, named in found.items():
                for name, body in named.items():
                    yield kind.strip('"'), name.strip('"'), body


def is_block(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "__is_block__" in value[0]


def check(body: dict[str, Any], names: dict[str, Any], where: str, besides: set[str] = frozenset()) -> Iterator[str]:
    """Yields what the provider does not know about a block, or misses in it."""
    given = {name for name in body if not name.startswith("__")} - besides
    blocks = {name: body[name] for name in given if is_block(body[name])}
    for dynamic in body.get("dynamic", []):
        for name, content in dynamic.items():
            if not name.startswith("__"):
                blocks.setdefault(name.strip('"'), []).extend(content["content"])
    for name in given - set(blocks) - set(names["required"]) - set(names["optional"]):
        yield f"{where} has no argument {name}"
    for name in set(names["required"]) - given:
        yield f"{where} lacks {name}"
    for name, bodies in blocks.items():
        if name not in names["blocks"]:
            yield f"{where} has no block {name}"
            continue
        for inner in bodies:
            yield from check(inner, names["blocks"][name], f"{where}.{name}")


def test_every_argument_and_block_is_one_of_the_providers() -> None:
    found = list(resources())
    assert len(found) >= 20
    wrong = [word for kind, name, body in found
             for word in check(body, SCHEMA["resources"][kind], f"{kind}.{name}", ABOUT_ANY_RESOURCE)]  # fmt: skip
    assert wrong == []


def test_a_wrong_argument_a_wrong_block_and_a_missing_one_would_be_told() -> None:
    names = SCHEMA["resources"]["google_storage_bucket"]
    inner = [{"tipe": "x", "__is_block__": True}]
    body = {
        "location": "x",
        "nonsense": 1,
        "lifecycle_rule": [{"action": inner, "condition": [], "__is_block__": True}],
    }
    assert sorted(check(body, names, "b")) == [
        "b has no argument nonsense",
        "b lacks name",
        "b.lifecycle_rule has no argument condition",
        "b.lifecycle_rule.action has no argument tipe",
        "b.lifecycle_rule.action lacks type",
    ]


def test_the_provider_names_are_those_of_the_types_in_use() -> None:
    assert set(SCHEMA["resources"]) == provider_schema.used_types()


def test_every_reference_leads_to_something() -> None:
    defined = {f"var.{name}" for name in re.findall(r'^variable "(\w+)"', TEXT, re.MULTILINE)}
    for path in FILES:
        for block in load(path).get("locals", []):
            defined |= {f"local.{name}" for name in block if not name.startswith("__")}
    here = {(kind, name) for kind, name, _ in resources()}
    code = re.sub(r"#.*", "", TEXT)
    used = set(re.findall(r"\b((?:var|local)\.\w+)", code))
    assert used - defined == set()
    assert defined - used == set(), "nothing is defined in vain"
    named = re.findall(r"\b(google_\w+)\.(\w+)(?:\[[^]]*\])?(?:\.(\w+))?", code)
    assert named
    for kind, name, attribute in named:
        assert (kind, name) in here
        assert not attribute or attribute in SCHEMA["attributes"][kind], f"{kind} has no {attribute}"


def test_the_example_has_the_variables_that_are_needed_and_no_others() -> None:
    given = {name for name in load(FOLDER / "example.tfvars") if not name.startswith("__")}
    variables = {name.strip('"'): body for found in load(FOLDER / "variables.tf")["variable"]
                 for name, body in found.items()}  # fmt: skip
    assert {name for name, body in variables.items() if "default" not in body} <= given <= set(variables)
    assert all(body.get("description") for body in variables.values())


def test_the_parameters_are_those_of_the_template() -> None:
    known = {one["name"] for one in json.loads((ROOT / "infra/dataflow/metadata.json").read_text())["parameters"]}
    given = {name.strip('"') for name in load(FOLDER / "example.tfvars")["parameters"] if not name.startswith("__")}
    assert given | {"output", "since"} <= known


def test_overlays_stay_where_they_are_unless_one_says_otherwise_and_never_expire() -> None:
    variables = {name.strip('"'): body for found in load(FOLDER / "variables.tf")["variable"]
                 for name, body in found.items()}  # fmt: skip
    assert variables["overlay_cold_days"]["default"] == 0
    assert "overlay_cold_days" not in load(FOLDER / "example.tfvars")
    assert "overlay_expire_days" not in TEXT


def test_an_image_with_a_tag_is_not_cleaned_up() -> None:
    (body,) = (body for kind, _, body in resources() if kind == "google_artifact_registry_repository")
    deletes = [one for one in body["cleanup_policies"] if one["action"].strip('"') == "DELETE"]
    assert [one["condition"][0]["tag_state"].strip('"') for one in deletes] == ["UNTAGGED"]


def test_the_workflow_reads_the_variables_that_it_is_given_and_no_others() -> None:
    workflow = (FOLDER / "night.yaml").read_text()
    (body,) = (body for kind, _, body in resources() if kind == "google_workflows_workflow")
    given = {name for name in body["user_env_vars"] if not name.startswith("__")}
    assert set(re.findall(r"sys\.get_env\(\\?\"(\w+)", workflow)) == given
    assert len(given) <= 20  # as many as Workflows allows
    assert not [name for name in given if name.startswith(("GOOGLE", "WORKFLOWS"))]


def test_the_files_are_formatted() -> None:
    terraform = program("terraform", GET_TERRAFORM)
    result = subprocess.run([terraform, "fmt", "-check", "-recursive", "-diff", FOLDER], capture_output=True, text=True,
                            check=False)  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "")


# With the provider itself


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs Terraform with a provider that is built already, which needs neither `terraform init` nor a network."""
    found = program("terraform", GET_TERRAFORM)
    provider = Path(program("terraform-provider-google", "Google's provider, as terraform init would fetch it")).parent
    folder = tmp_path_factory.mktemp("terraform")
    settings = folder / "rc"
    settings.write_text(
        f'provider_installation {{\n dev_overrides {{ "hashicorp/google" = "{provider}" }}\n direct {{}}\n}}'
    )
    # No request is made with the token: nothing exists yet, so nothing is asked for.
    environment = {**os.environ, "TF_CLI_CONFIG_FILE": str(settings), "TF_DATA_DIR": str(folder / "data"),
                   "GOOGLE_OAUTH_ACCESS_TOKEN": "none"}  # fmt: skip

    def run(*words: str) -> subprocess.CompletedProcess:
        command = [found, f"-chdir={FOLDER}", *words, "-no-color"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)

    return run


@pytest.fixture(scope="module")
def plan(terraform: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What would be made, with the variables of the example."""
    folder = tmp_path_factory.mktemp("plan")
    words = (f"-state={folder}/state", "-var-file=example.tfvars", "-var=overlay_cold_days=30", f"-out={folder}/plan",
             "-lock=false")  # fmt: skip
    result = terraform("plan", "-refresh=false", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(terraform("show", "-json", f"{folder}/plan").stdout)["planned_values"]["root_module"]["resources"]


@pytest.mark.slow
def test_the_provider_finds_the_files_valid(terraform: Any) -> None:
    result = terraform("validate", "-json")
    told = json.loads(result.stdout)
    assert (told["valid"], [one for one in told["diagnostics"] if one["severity"] == "error"]) == (True, [])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["max_failures", "since", "output"])
def test_what_does_not_belong_in_a_night_is_refused(terraform: Any, tmp_path: Path, name: str) -> None:
    words = (f"-state={tmp_path}/state", "-var-file=example.tfvars", "-lock=false", f'-var=parameters={{{name}="1"}}')
    result = terraform("plan", "-refresh=false", *words)
    assert result.returncode == 1
    assert "Invalid value for variable" in result.stderr
    assert name in result.stderr.split("Invalid value for variable")[1]


@pytest.mark.slow
def test_the_names_in_the_test_are_the_providers_own(terraform: Any) -> None:
    schema = json.loads(terraform("providers", "schema", "-json").stdout)
    assert provider_schema.extract(schema)["resources"] == SCHEMA["resources"]


@pytest.mark.slow
def test_nobody_may_do_more_than_the_table_says(plan: list[dict[str, Any]]) -> None:
    rights = set()
    for one in plan:
        if one["type"].endswith("_iam_member"):
            values = one["values"]
            where = values.get("bucket") or values.get("name") or values.get("project")
            where = where or one["name"]  # what is not known before it is made
            rights.add((values["member"].split(":")[1].split("@")[0], values["role"], where))
    assert rights == {
        ("beamcam-worker", "roles/dataflow.worker", "my-project"),
        ("beamcam-worker", "roles/dataflow.developer", "my-project"),
        ("beamcam-worker", "roles/iam.serviceAccountUser", "worker_as_itself"),
        ("beamcam-worker", "roles/storage.objectViewer", "my-photographs"),
        ("beamcam-worker", "roles/storage.objectViewer", "my-project-beamcam-assets"),
        ("beamcam-worker", "roles/storage.objectUser", "my-project-beamcam-runs"),
        ("beamcam-worker", "roles/storage.objectUser", "my-project-beamcam-scratch"),
        ("beamcam-worker", "roles/storage.legacyBucketReader", "my-project-beamcam-scratch"),
        ("beamcam-worker", "roles/artifactregistry.reader", "worker"),
        ("beamcam-audit", "roles/storage.objectViewer", "my-photographs"),
        ("beamcam-audit", "roles/storage.objectViewer", "my-project-beamcam-assets"),
        ("beamcam-audit", "roles/storage.objectUser", "my-project-beamcam-runs"),
        ("beamcam-night", "roles/dataflow.developer", "my-project"),
        ("beamcam-night", "roles/logging.logWriter", "my-project"),
        ("beamcam-night", "roles/iam.serviceAccountUser", "night_as_worker"),
        ("beamcam-night", "roles/run.jobsExecutorWithOverrides", "beamcam-audit"),
        ("beamcam-night", "roles/run.viewer", "beamcam-audit"),
        ("beamcam-night", "roles/storage.objectViewer", "my-project-beamcam-assets"),
        ("beamcam-scheduler", "roles/workflows.invoker", "my-project"),
    }


@pytest.mark.slow
def test_no_bucket_is_open_and_no_record_expires(plan: list[dict[str, Any]]) -> None:
    buckets = {one["values"]["name"].rpartition("-")[2]: one["values"]
               for one in plan if one["type"] == "google_storage_bucket"}  # fmt: skip
    assert set(buckets) == {"assets", "runs", "scratch"}
    for values in buckets.values():
        assert (values["uniform_bucket_level_access"], values["public_access_prevention"]) == (True, "enforced")
    rules = [(rule["action"][0]["type"], rule["condition"][0]["matches_suffix"])
             for rule in buckets["runs"]["lifecycle_rule"]]  # fmt: skip
    assert rules == [("SetStorageClass", [".png"])]
    assert [one for one in buckets["runs"]["lifecycle_rule"] if one["action"][0]["type"] == "Delete"] == []
