#!/bin/sh
# Launches the template: a job that needs no machine of yours, neither to start it nor to wait for it.
#
#   infra/dataflow/launch.sh gs://BUCKET/templates/beamcam.json NAME=VALUE...
#   infra/dataflow/launch.sh gs://my-bucket/templates/beamcam.json images=gs://photos/2026-11-22/ \
#       model=gs://my-bucket/model.keras preprocess=tf output=gs://my-bucket/runs/2026-11-22 since=latest
#
# NAME is a parameter of metadata.json. Of the environment: PROJECT, REGION, TEMP (gs://BUCKET/temp); and, if they are
# set, ACCOUNT (the service account of launcher and workers), SUBNETWORK (private addresses only), MAX_WORKERS,
# LAUNCHER (its type of machine: the launcher loads TensorFlow and the model, and keeps 16 bytes for each image).
set -eu
template=${1:?the place of the template, such as gs://BUCKET/templates/beamcam.json}
shift
project=${PROJECT:?the project}
region=${REGION:?the region, such as europe-west4}
temp=${TEMP:?a folder in a bucket for what is temporary, such as gs://BUCKET/temp}

# Values hold commas and semicolons, so that parameters are parted by what no value holds.
parameters=
for parameter in "$@"; do
    case $parameter in
        *~*) echo "launch.sh: no parameter may hold a ~, as $parameter does" >&2; exit 2 ;;
        ?*=*) parameters=${parameters:+$parameters~}$parameter ;;
        *) echo "launch.sh: parameters are NAME=VALUE, not $parameter" >&2; exit 2 ;;
    esac
done

set -- --project "$project" --region "$region" --template-file-gcs-location "$template" \
    --temp-location "$temp" --staging-location "$temp/staging" \
    --launcher-machine-type "${LAUNCHER:-n1-standard-4}" --max-workers "${MAX_WORKERS:-10}"
[ -z "${ACCOUNT:-}" ] || set -- "$@" --service-account-email "$ACCOUNT"
[ -z "${SUBNETWORK:-}" ] || set -- "$@" --subnetwork "$SUBNETWORK" --disable-public-ips
[ -z "$parameters" ] || set -- "$@" --parameters "^~^$parameters"
exec gcloud dataflow flex-template run "beamcam-$(date -u +%Y%m%d-%H%M%S)" "$@"
