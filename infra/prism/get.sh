#!/bin/sh
# Builds Prism, Beam's own portable runner, by Go from its sources into the cache: the version that Beam has here, and
# the checksums of Go's database. Beam itself would fetch an executable without a checksum. See README.md.
set -eu
cache=${BEAMCAM_CACHE:-$HOME/.cache/beamcam}/prism
version=${PRISM_VERSION:-2.77.0}

say() { echo "get.sh: $*" >&2; }

if [ -x "$cache/prism-$version" ]; then
    say "Prism $version is in $cache"
else
    command -v go > /dev/null || { say "there is no go: Prism is built by it (https://go.dev/doc/install, 1.26 or later)"; exit 1; }
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/.get-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    say "building Prism $version: a minute or two"
    GOBIN=$work go install "github.com/apache/beam/sdks/v2/go/cmd/prism@v$version" >&2
    mv "$work/prism" "$cache/prism-$version"
fi
ln -sf "prism-$version" "$cache/prism"
echo "$cache"
