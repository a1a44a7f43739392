#!/bin/sh
# Pins every dependency with its hashes, for Python 3.10 to 3.13 at once: run it after a change of pyproject.toml.
# Needs uv (pip install uv).
set -eu
cd "$(dirname "$0")/.."
compile() {
    uv pip compile --universal --python-version 3.10 --generate-hashes --no-annotate --quiet \
        --custom-compile-command infra/lock.sh "$@"
}
compile pyproject.toml --output-file requirements.lock
compile pyproject.toml --extra gpu --extra dataflow --extra s3 --constraint requirements.lock \
    --output-file infra/dataflow/requirements.lock
compile pyproject.toml --extra dev --extra s3 --extra dataflow --constraint requirements.lock --output-file requirements-dev.lock
compile pyproject.toml --extra dev --extra s3 --extra dataflow --extra bench --constraint requirements-dev.lock \
    --override infra/bench-overrides.txt --output-file requirements-bench.lock
