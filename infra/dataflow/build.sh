#!/bin/sh
# Builds the image, pushes it, and writes the template that starts it.
#
#   infra/dataflow/build.sh REPOSITORY gs://BUCKET/templates/beamcam.json
#   infra/dataflow/build.sh europe-west4-docker.pkg.dev/my-project/beamcam gs://my-bucket/templates/beamcam.json
#
# Tells the image, and nothing else, on its standard output: image=$(infra/dataflow/build.sh ...) has it, or has failed.
# PYTHON (default: 3.11) is the image's version of Python; jobs are to be launched with the same. Needs docker and gcloud.
set -eu
repository=${1:?the repository of images, such as europe-west4-docker.pkg.dev/PROJECT/beamcam}
template=${2:?the place of the template, such as gs://BUCKET/templates/beamcam.json}
python=${PYTHON:-3.11}
cd "$(dirname "$0")/../.."

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
beam=$(sed -n 's/^apache-beam==\([^ ]*\).*$/\1/p' infra/dataflow/requirements.lock)
# A tag is never written twice: a job that is under way goes on with the image that it began with.
image=$repository/beamcam:$version-py$python-$(git rev-parse --short=12 HEAD)
if [ -n "$(git status --porcelain -- explainers pipeline infra/dataflow pyproject.toml)" ]; then
    echo "build.sh: there are changes that are not committed, and the image's name would not tell of them" >&2
    exit 1
fi

docker build --platform linux/amd64 --file infra/dataflow/Dockerfile --tag "$image" \
    --build-arg PYTHON="$python" --build-arg BEAM="$beam" --build-arg IMAGE="$image" . >&2
docker push "$image" >&2
gcloud dataflow flex-template build "$template" --image "$image" --sdk-language PYTHON \
    --metadata-file infra/dataflow/metadata.json >&2
echo "$image"
