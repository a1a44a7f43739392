"""Takes out of the Flink operator's definition of FlinkDeployment what the manifest is checked by.

python -m tests.infra.flink_schema flinkdeployments.flink.apache.org-v1.yml > tests/infra/flinkdeployment.json

Pod templates are left out: they are pods, and checked as such.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ABOUT = "names, types, choices of FlinkDeployment v1beta1: apache/flink-kubernetes-operator, commit 6e9caeb48118"

KEPT = ("type", "enum", "required", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string")


def prune(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema of the same names, that takes no others."""
    found: dict[str, Any] = {name: schema[name] for name in KEPT if name in schema}
    if found.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if "properties" in schema:
        found["properties"] = {name: {} if name == "podTemplate" else prune(inner)
                               for name, inner in sorted(schema["properties"].items())}  # fmt: skip
    if isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = prune(schema["additionalProperties"])
    elif not found.pop("x-kubernetes-preserve-unknown-fields", False) and "properties" in schema:
        found["additionalProperties"] = False
    if "items" in schema:
        found["items"] = prune(schema["items"])
    return found


def extract(definition: dict[str, Any]) -> dict[str, Any]:
    """The file's content."""
    (version,) = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return {"about": ABOUT, "apiVersion": f"{definition['spec']['group']}/{version['name']}", "spec": prune(spec)}


if __name__ == "__main__":
    json.dump(extract(yaml.safe_load(Path(sys.argv[1]).read_text())), sys.stdout, indent=1)
    sys.stdout.write("\n")
