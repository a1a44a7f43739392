#!/bin/sh
# Gets what a job on Flink needs, from the package registries, into a cache: Beam's job server as one jar (Maven), and
# Flink itself for a cluster of one's own (PyPI). What is there already is not fetched again. See README.md.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${BEAMCAM_CACHE:-$HOME/.cache/beamcam}/flink
python=${PYTHON:-python3}
flink=$(sed -n 's:.*<flink.version>\(.*\)</flink.version>.*:\1:p' "$here/pom.xml")

say() { echo "get.sh: $*" >&2; }
need() { command -v "$1" > /dev/null || { say "there is no $1: $2"; exit 1; }; }

mkdir -p "$cache"
work=$(mktemp -d "$cache/.get-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

if cmp -s "$here/pom.xml" "$cache/pom.xml" && [ -f "$cache/job-server.jar" ]; then
    say "the job server is in $cache"
else
    need java "the job server and Flink need Java 11 or 17 (apt install openjdk-17-jre-headless)"
    need mvn "the job server is built by Maven (apt install maven)"
    say "building the job server: some 160 jars, then one of 150 MB"
    cp "$here/pom.xml" "$work/pom.xml"
    mvn -q -B -ntp -f "$work/pom.xml" package >&2
    mv "$work/target/job-server.jar" "$cache/job-server.jar"
    mv "$work/pom.xml" "$cache/pom.xml"
fi

if [ -d "$cache/flink-$flink/lib" ]; then
    say "Flink $flink is in $cache"
else
    "$python" -m pip --version > /dev/null || { say "$python has no pip: Flink comes from PyPI (PYTHON=... names another)"; exit 1; }
    say "fetching Flink $flink: 230 MB"
    "$python" -m pip download -q --no-deps --no-binary :all: -d "$work" "apache-flink-libraries==$flink" >&2
    mkdir "$work/flink"
    tar -xzf "$work"/apache*flink*libraries*.tar.gz -C "$work/flink" --strip-components=1
    # The planners of its SQL, two thirds of all, and examples are of no use here.
    mkdir -p "$work/small/lib"
    for jar in "$work"/flink/deps/lib/flink-dist-*.jar "$work"/flink/deps/lib/log4j-*.jar; do
        mv "$jar" "$work/small/lib"
    done
    cp "$work/flink/LICENSE" "$work/flink/NOTICE" "$work/small"
    mv "$work/small" "$cache/flink-$flink"
fi
echo "$cache"
