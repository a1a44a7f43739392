#!/bin/sh
# One night: explain today's images, prove that the run is whole, judge it. For cron, systemd and Kubernetes alike.
set -eu

usage() {
    cat <<'END'
usage: night.sh ROOT RUN-OPTIONS... [-- AUDIT-OPTIONS...]

  night.sh /srv/audits --config /srv/night.yaml
  night.sh gs://my-audits --config gs://my-audits/night.yaml -- --history 14

  ROOT           where runs are kept, one folder a night, on any store
  RUN-OPTIONS    of `beamcam run`, all but --output, which is ROOT/DATE; --since is latest unless you say otherwise
                 on the command line (a `since` in --config never counts). --max-failures does not belong in a night:
                 a run that is whole would end with 1 for ever. The audit's BC301 judges failures
  AUDIT-OPTIONS  of `beamcam audit`; without --baseline, it is what `beamcam audit accept` wrote beside the runs

variables, with defaults in brackets:
  BEAMCAM  the program [beamcam]
  DATE     the night, as YYYY-MM-DD [today in UTC]; an earlier one takes that night up again, which after midnight in
           UTC needs to be said of last night too
  STORAGE  options of stores for all three commands, such as "--storage-option gs.requester_pays=true" []

exit codes:
  0  all is well
  1  the run broke off, or is not whole: the same night again goes on from there
  2  nothing was begun: wrong usage, a store or an engine that does not answer, or another job at work on the run
  3  the run is whole, but cannot be judged: the same night again changes nothing
  4  the run is whole, and the audit has found something: the same night again changes nothing
  126, 127: the program that BEAMCAM names is not there, or is none
  else, as 130 or 137: a signal ended it; as 1
END
}

say() {
    echo "night $DATE: $*"
}

# explain COUNT WORDS...: the first COUNT words are options of the run.
explain() {
    count=$1
    shift
    turned=0
    while [ "$turned" -lt "$count" ]; do
        set -- "$@" "$1"
        shift
        turned=$((turned + 1))
    done
    shift $(($# - count))
    # shellcheck disable=SC2086 # several words
    "$BEAMCAM" run --since latest $STORAGE "$@" --output "$RUN"
}

# judge COUNT WORDS...: those behind the first COUNT, and behind the --, are options of the audit.
judge() {
    shift $(($1 + 1))
    [ $# -eq 0 ] || shift
    # shellcheck disable=SC2086 # several words
    "$BEAMCAM" audit "$RUN" $STORAGE "$@"
}

case ${1:-} in
-h | --help)
    usage
    exit 0
    ;;
'' | -*)
    usage >&2
    exit 2
    ;;
esac
ROOT=${1%/}
shift
BEAMCAM=${BEAMCAM:-beamcam}
STORAGE=${STORAGE:-}
DATE=${DATE:-$(date -u +%Y-%m-%d)}
case $DATE in
[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]) ;;
*)
    echo "night.sh: DATE is a day such as 2026-11-22, since nights are ordered by their names, not '$DATE'" >&2
    exit 2
    ;;
esac
RUN=$ROOT/$DATE

count=0
for word in "$@"; do
    [ "$word" != -- ] || break
    count=$((count + 1))
done

code=0
explain "$count" "$@" || code=$?
if [ "$code" != 0 ]; then
    say "beamcam run ended with $code"
    exit "$code"
fi
# shellcheck disable=SC2086 # several words
"$BEAMCAM" verify "$RUN" $STORAGE || code=$?
if [ "$code" != 0 ]; then
    say "the run is not whole: beamcam verify ended with $code"
    exit "$code"
fi
judge "$count" "$@" || code=$?
case $code in
0) say "all is well" ;;
1)
    # The run's 1 is work to be done again, the audit's is not: a scheduler must be able to tell them apart.
    say "the run is whole, and the audit has found something"
    exit 4
    ;;
3)
    say "the run is whole, but cannot be judged"
    exit 3
    ;;
*)
    say "the run is whole, and beamcam audit ended with $code"
    exit "$code"
    ;;
esac
