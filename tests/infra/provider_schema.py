"""Takes out of a provider's schema what Terraform files are checked by without it: the names that resources may have.

terraform -chdir=infra/terraform providers schema -json |
    python -m tests.infra.provider_schema > tests/infra/provider.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent.parent / "infra/terraform"

ABOUT = "names of hashicorp/google 7.46.0-dev (commit e03b7622a26c of its repository), by `terraform providers schema`"


def used_types() -> set[str]:
    """The resource types that the files name."""
    text = "".join(path.read_text() for path in FOLDER.glob("*.tf"))
    return set(re.findall(r'^resource "(\w+)"', text, re.MULTILINE))


def names_of(block: dict[str, Any]) -> dict[str, Any]:
    """A block's arguments and the blocks in it; what only the provider sets is left out."""
    settable = {name: spec for name, spec in block.get("attributes", {}).items()
                if spec.get("required") or spec.get("optional")}  # fmt: skip
    return {
        "required": sorted(name for name, spec in settable.items() if spec.get("required")),
        "optional": sorted(name for name, spec in settable.items() if not spec.get("required")),
        "blocks": {name: names_of(spec["block"]) for name, spec in sorted(block.get("block_types", {}).items())},
    }


def extract(schema: dict[str, Any]) -> dict[str, Any]:
    """The file's content."""
    (provider,) = schema["provider_schemas"].values()
    types = sorted(used_types())
    found = {name: names_of(provider["resource_schemas"][name]["block"]) for name in types}
    computed = {name: sorted(provider["resource_schemas"][name]["block"]["attributes"]) for name in types}
    return {"about": ABOUT, "resources": found, "attributes": computed}


if __name__ == "__main__":
    json.dump(extract(json.load(sys.stdin)), sys.stdout, indent=1)
    sys.stdout.write("\n")
