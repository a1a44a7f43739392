#!/bin/sh
# A look at the GPU, before a night depends on it: starts a machine as Dataflow's workers are (Container-Optimized OS,
# its driver, our image), shows what the image sees of the GPU, runs the demo on it, and removes the machine.
#
#   infra/dataflow/gpu.sh IMAGE [MACHINE]
#   infra/dataflow/gpu.sh europe-west4-docker.pkg.dev/my-project/beamcam/beamcam:0.1.0-py3.11-0123456789ab g2-standard-8
#
# Of the environment: PROJECT, ZONE, and ACCOUNT if it is set. A machine of another family than G2 gets a T4. It costs
# what a quarter of an hour of the machine costs; after an hour Compute Engine removes it, whatever became of this script.
# Ends with 0 if TensorFlow sees the GPU and the demo has run.
set -eu
image=${1:?the image that build.sh has told}
machine=${2:-g2-standard-8}
project=${PROJECT:?the project}
zone=${ZONE:?a zone that has such machines, such as europe-west4-a}
name=beamcam-look-$(date -u +%Y%m%d-%H%M%S)-$$

set -- --machine-type "$machine" --image-family cos-stable --image-project cos-cloud --boot-disk-size 50GB \
    --maintenance-policy TERMINATE --scopes cloud-platform --max-run-duration=1h --instance-termination-action=DELETE
case $machine in
    g2-*) ;;
    *) set -- "$@" --accelerator type=nvidia-tesla-t4,count=1 ;;
esac
[ -z "${ACCOUNT:-}" ] || set -- "$@" --service-account "$ACCOUNT"

remove() {
    trap '' HUP INT TERM # who presses Ctrl-C twice does not mean to keep the machine
    gcloud compute instances delete "$name" --project "$project" --zone "$zone" --quiet && return
    echo "gpu.sh: $name could not be removed: if it is there, it costs money for up to an hour" >&2
    exit 1
}
# Before the machine is asked for: what interrupts the asking does not undo it.
trap remove EXIT
trap 'exit 1' HUP INT TERM
gcloud compute instances create "$name" --project "$project" --zone "$zone" "$@"

on_machine() {
    gcloud compute ssh "$name" --project "$project" --zone "$zone" --quiet --ssh-flag="-o ConnectTimeout=10" --command "$1"
}
tries=0
until reason=$(on_machine true 2>&1); do
    tries=$((tries + 1))
    if [ "$tries" -ge 30 ]; then
        echo "gpu.sh: no SSH to $name in $tries tries, at last: $reason" >&2
        exit 1
    fi
    sleep 5
done
on_machine "sudo cos-extensions install gpu"
on_machine "sudo mount --bind /var/lib/nvidia /var/lib/nvidia && sudo mount -o remount,exec /var/lib/nvidia"
on_machine "docker-credential-gcr configure-docker --registries ${image%%/*}"
# No double quotes in it: it stands between some on the machine.
look="nvidia-smi && python -c 'import sys, tensorflow as tf; \
found = tf.config.list_physical_devices(sys.argv[1]); print(found); sys.exit(not found)' GPU \
    && beamcam demo --count 120 --output /tmp/demo"
on_machine "docker run --rm --volume /var/lib/nvidia:/usr/local/nvidia:ro \
    \$(for device in /dev/nvidia*; do echo --device \$device; done) --entrypoint sh $image -c \"$look\""
