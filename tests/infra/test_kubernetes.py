"""infra/kubernetes: what `kubectl apply -k` would send, Kubernetes and Flink's operator know, and it fits together."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.cli import make_parser
from pipeline.commands import read_config_file
from pipeline.graph import parse_beam_options
from tests.infra.programs import ROOT, program

FOLDER = ROOT / "infra/kubernetes"
VERSIONS = ("1.31", "1.34")

FLINK = json.loads((Path(__file__).parent / "flinkdeployment.json").read_text())


def resources() -> list[dict[str, Any]]:
    """What the files of the kustomization hold, as they are."""
    names = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return [one for name in names for one in yaml.safe_load_all((FOLDER / name).read_text())]


def find(kind: str) -> dict[str, Any]:
    (found,) = (one for one in resources() if one["kind"] == kind)
    return found


def pod_of_taskmanager() -> dict[str, Any]:
    return find("FlinkDeployment")["spec"]["taskManager"]["podTemplate"]


def pod_of_night() -> dict[str, Any]:
    return find("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    own = [one for one in resources() if not one["apiVersion"].startswith("flink.apache.org/")]
    assert len(own) == 6
    for one in own:
        kubernetes_validate.validate(one, version, strict=True)
    # Flink brings the image of its own container.
    pod = json.loads(json.dumps(pod_of_taskmanager()))
    pod["spec"]["containers"][0]["image"] = find("FlinkDeployment")["spec"]["image"]
    kubernetes_validate.validate(pod, version, strict=True)
    pod["spec"]["tolerance"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="tolerance"):
        kubernetes_validate.validate(pod, version, strict=True)


def test_the_operator_knows_every_field_of_the_cluster() -> None:
    cluster = find("FlinkDeployment")
    assert cluster["apiVersion"] == FLINK["apiVersion"]
    jsonschema.validate(cluster["spec"], FLINK["spec"])
    for wrong in ({"flinkVersion": "v1_9"}, {"taskmanager": {}}, {"jobManager": {"resource": {"ram": "1g"}}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(cluster["spec"] | wrong, FLINK["spec"])


def test_kubectl_renders_them_with_the_images_and_the_options_of_the_night() -> None:
    kubectl = program("kubectl", "it is a single program, from the makers of Kubernetes")
    result = subprocess.run([kubectl, "kustomize", FOLDER], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    rendered = {one["kind"]: one for one in yaml.safe_load_all(result.stdout)}
    assert {one["metadata"].get("namespace", "beamcam") for one in rendered.values()} == {"beamcam"}
    night = rendered["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (volume,) = night["volumes"]
    assert volume["configMap"]["name"] == rendered["ConfigMap"]["metadata"]["name"]
    assert night["containers"][0]["image"] == "registry.example.com/beamcam-night:latest"
    workers = rendered["FlinkDeployment"]["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][1]
    assert workers["image"] == "registry.example.com/beamcam:latest"
    assert list(rendered["ConfigMap"]["data"]) == ["options.yaml"]


def test_the_night_and_the_cluster_speak_of_the_same_ports_paths_and_accounts() -> None:
    (night,), cluster = pod_of_night()["containers"], find("FlinkDeployment")
    options = dict(word[2:].split("=") for word in night["args"] if "=" in word)
    assert options["flink_master"] == f"{cluster['metadata']['name']}-rest:8081"
    (workers,) = (one for one in pod_of_taskmanager()["spec"]["containers"] if one["name"] == "workers")
    port = options["environment_config"].removeprefix("localhost:")
    assert f"--service_port={port}" in workers["command"]
    assert port in str(workers["readinessProbe"])
    assert night["volumeMounts"][0]["mountPath"] == str(Path(options["config"]).parent)
    accounts = {pod_of_night()["serviceAccountName"], cluster["spec"]["serviceAccount"],
                find("ServiceAccount")["metadata"]["name"], find("RoleBinding")["subjects"][0]["name"]}  # fmt: skip
    assert accounts == {"beamcam"}
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert f"COPY infra/night.sh {night['command'][0]}\n" in dockerfile
    assert f" {options['flink_job_server_jar']}\n" in dockerfile
    flink = re.search(r"<flink.version>(.*)</flink.version>", (ROOT / "infra/flink/pom.xml").read_text())
    assert flink is not None
    assert cluster["spec"]["image"] == f"flink:{flink[1]}-java17"
    assert cluster["spec"]["flinkVersion"] == "v" + "_".join(flink[1].split(".")[:2])


def test_every_option_of_the_night_is_beamcams_or_beams() -> None:
    (night,) = pod_of_night()["containers"]
    words = night["args"][1:]
    run, audit = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = make_parser()
    _, rest = parser.parse_known_args(["run", "--since", "latest", *run, "--output", "x"])
    parse_beam_options(rest)
    assert parser.parse_known_args(["audit", "x", *audit])[1] == []
    assert read_config_file(str(FOLDER / "options.yaml"))["images"]


def test_the_pool_of_workers_is_reached_by_pods_of_the_namespace_alone() -> None:
    policy = find("NetworkPolicy")["spec"]
    # The labels that Flink gives TaskManagers; the JobManager is asked by the operator, which lives elsewhere.
    assert policy["podSelector"] == {"matchLabels": {"app": find("FlinkDeployment")["metadata"]["name"],
                                                     "component": "taskmanager"}}  # fmt: skip
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"from": [{"podSelector": {}}]}]
    assert "to its own pod alone" not in (FOLDER / "flink.yaml").read_text()


def test_what_a_person_must_look_at_is_not_tried_again() -> None:
    rules = find("CronJob")["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [3, 4]
    said = subprocess.run([ROOT / "infra/night.sh", "--help"], capture_output=True, text=True, check=True).stdout
    told = dict(re.findall(r"^  (\d)  (.*)$", said, re.MULTILINE))
    assert {code for code, words in told.items() if "the same night again changes nothing" in words} == {"3", "4"}
