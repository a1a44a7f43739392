#!/bin/sh
# A look at the GPU, before a night depends on it: starts a machine as Dataflow's workers are (Container-Optimized OS,
# its driver, our image), shows what the image sees of the GPU, runs the demo on it, and removes the machine.
#
#   infra/dataflow/gpu.sh IMAGE [MACHINE]
#   infra/dataflow/gpu.sh europe-west4-docker.pkg.dev/my-project/beamcam/beamcam:0.1.0-py3.11-0123456789ab g2-standard-8
#
# Of the environment: PROJECT, ZONE, and ACCOUNT if it is set. A machine of another family than G2 gets a T4. It costs
# what a quarter of an hour of the machine costs.
set -eu
image=${1:?the image that build.sh has told}
machine=${2:-g2-standard-8}
project=${PROJECT:?the project}
zone=${ZONE:?a zone that has such machines, such as europe-west4-a}
name=beamcam-look-$(date -u +%H%M%S)

set -- --machine-type "$machine" --image-family cos-stable --image-project cos-cloud --boot-disk-size 50GB \
    --maintenance-policy TERMINATE --scopes cloud-platform
case $machine in
    g2-*) ;;
    *) set -- "$@" --accelerator type=nvidia-tesla-t4,count=1 ;;
esac
[ -z "${ACCOUNT:-}" ] || set -- "$@" --service-account "$ACCOUNT"
gcloud compute instances create "$name" --project "$project" --zone "$zone" "$@"
remove() { gcloud compute instances delete "$name" --project "$project" --zone "$zone" --quiet; }
trap remove EXIT
trap 'exit 1' INT TERM

on_machine() { gcloud compute ssh "$name" --project "$project" --zone "$zone" --command "$1"; }
until on_machine true 2>/dev/null; do sleep 5; done
on_machine "sudo cos-extensions install gpu"
on_machine "sudo mount --bind /var/lib/nvidia /var/lib/nvidia && sudo mount -o remount,exec /var/lib/nvidia"
on_machine "docker-credential-gcr configure-docker --registries ${image%%/*}"
look="nvidia-smi && python -c 'import tensorflow as tf; print(tf.config.list_physical_devices(\"GPU\"))' \
    && beamcam demo --count 120 --output /tmp/demo"
on_machine "docker run --rm --volume /var/lib/nvidia:/usr/local/nvidia:ro \
    \$(for device in /dev/nvidia*; do echo --device \$device; done) --entrypoint sh $image -c \"$look\""
