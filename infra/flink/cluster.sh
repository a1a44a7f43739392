#!/bin/sh
# A Flink cluster on this machine: one JobManager and TASKMANAGERS TaskManagers, on loopback. get.sh gets it.
#
#     cluster.sh start | status | taskmanager | stop
#
# `taskmanager` starts one more, as an operator would in the place of one that died. Settings, from the environment:
set -eu
TASKMANAGERS=${TASKMANAGERS:-2}
SLOTS=${SLOTS:-1}                  # of each TaskManager; the job takes as many as its --parallelism
REST_PORT=${REST_PORT:-8081}       # what --flink_master names
RPC_PORT=${RPC_PORT:-6123}
RESTARTS=${RESTARTS:-5}            # how often a job is begun again, what is committed kept, before it fails
MEMORY=${MEMORY:-128}              # MB of a TaskManager's own heap: images never pass through it
cache=${BEAMCAM_CACHE:-$HOME/.cache/beamcam}/flink
CLUSTER=${CLUSTER:-$cache/cluster} # its configuration, logs and process ids
here=$(cd "$(dirname "$0")" && pwd)
lib=$cache/flink-$(sed -n 's:.*<flink.version>\(.*\)</flink.version>.*:\1:p' "$here/pom.xml")/lib

say() { echo "cluster.sh: $*" >&2; }
fail() { say "$*"; exit 1; }

write_configuration() {
    mkdir -p "$CLUSTER/log" "$CLUSTER/tmp"
    cat > "$CLUSTER/config.yaml" << END
jobmanager.rpc.address: localhost
jobmanager.rpc.port: $RPC_PORT
jobmanager.bind-host: localhost
rest.address: localhost
rest.bind-address: localhost
rest.port: $REST_PORT
taskmanager.bind-host: localhost
taskmanager.host: localhost
taskmanager.numberOfTaskSlots: $SLOTS
# Half of the work to either worker, and a free slot on each for the other's half if there are two.
taskmanager.load-balance.mode: SLOTS
parallelism.default: $TASKMANAGERS
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: $RESTARTS
restart-strategy.fixed-delay.delay: 3s
# A TaskManager that was killed is missed after some seconds, not after the default's 50.
heartbeat.interval: 2000
heartbeat.timeout: 10000
# Memory is told part by part: Flink's start scripts would work it out.
taskmanager.cpu.cores: 1.0
taskmanager.memory.framework.heap.size: 64m
taskmanager.memory.framework.off-heap.size: 64m
taskmanager.memory.task.heap.size: ${MEMORY}m
taskmanager.memory.task.off-heap.size: 64m
taskmanager.memory.network.min: 32m
taskmanager.memory.network.max: 32m
taskmanager.memory.managed.size: 64m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 64m
taskmanager.memory.jvm-overhead.max: 64m
jobmanager.memory.process.size: 1g
io.tmp.dirs: $CLUSTER/tmp
END
    cat > "$CLUSTER/log4j.properties" << 'END'
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = File
appender.file.name = File
appender.file.type = FILE
appender.file.fileName = ${sys:log.file}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{HH:mm:ss.SSS} %-5p %c{1} - %m%n
END
}

# launch NAME MEGABYTES CLASS ARGUMENTS...: a JVM that outlives this script.
launch() {
    name=$1 megabytes=$2 class=$3
    shift 3
    # What Flink's own configuration opens to itself since Java 17.
    opens=
    for package in lang lang.invoke lang.reflect io net nio math text time util util.concurrent util.concurrent.atomic util.concurrent.locks security; do
        opens="$opens --add-opens=java.base/java.$package=ALL-UNNAMED"
    done
    # shellcheck disable=SC2086 # these are several words
    nohup java "-Xmx${megabytes}m" $opens --add-exports=java.base/sun.net.util=ALL-UNNAMED \
        "-Dlog.file=$CLUSTER/log/$name.log" "-Dlog4j.configurationFile=file:$CLUSTER/log4j.properties" \
        "-Djava.io.tmpdir=$CLUSTER/tmp" -cp "$lib/*" "$class" --configDir "$CLUSTER" "$@" \
        > "$CLUSTER/log/$name.out" 2>&1 < /dev/null &
    echo $! > "$CLUSTER/$name.pid"
    say "$name is process $!, its log $CLUSTER/log/$name.log"
}

start_taskmanager() {
    number=1
    while [ -e "$CLUSTER/taskmanager-$number.pid" ]; do number=$((number + 1)); done
    launch "taskmanager-$number" $((MEMORY + 64)) org.apache.flink.runtime.taskexecutor.TaskManagerRunner \
        -D "taskmanager.resource-id=taskmanager-$number"
}

# Whether the process of a file is there, and still ours: after a start of the machine, numbers are others'.
running() { [ -e "$1" ] && words_of "$(cat "$1")" | grep -q -F -e "--configDir $CLUSTER"; }

# A process's command line: of Linux itself, since slim images have no ps, else of ps, however narrow the terminal is.
words_of() {
    if [ -e /proc/self/cmdline ]; then
        tr '\000' ' ' 2> /dev/null < "/proc/$1/cmdline" || true
    else
        ps -ww -p "$1" -o args= 2> /dev/null
    fi
}

# Ends the processes that are ours, the JobManager last, and removes their files.
end_processes() {
    for file in "$CLUSTER"/taskmanager-*.pid "$CLUSTER/jobmanager.pid"; do
        if running "$file"; then kill "$(cat "$file")"; fi
    done
    for file in "$CLUSTER"/*.pid; do
        waited=0
        while running "$file"; do
            if [ "$waited" -gt 40 ]; then kill -9 "$(cat "$file")" || true; fi
            sleep 0.25
            waited=$((waited + 1))
        done
        rm -f "$file"
    done
}

# The number of slots that the JobManager knows of; nothing while there is none.
slots() {
    # Python, which beamcam needs anyway, in place of one more program.
    "${PYTHON:-python3}" -c "import json, sys, urllib.request as r
ask = r.build_opener(r.ProxyHandler({})).open
try: print(json.load(ask('http://localhost:$REST_PORT/overview', timeout=5))['slots-total'])
except OSError: sys.exit(1)"
}

case ${1:-} in
    start)
        [ -d "$lib" ] || fail "there is no Flink in $lib: $here/get.sh gets it"
        if running "$CLUSTER/jobmanager.pid"; then fail "a cluster of $CLUSTER is running: $0 stop"; fi
        end_processes # TaskManagers outlive a JobManager that died
        rm -rf "$CLUSTER/log" "$CLUSTER/tmp"
        write_configuration
        launch jobmanager 768 org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint --executionMode cluster
        for _ in $(seq "$TASKMANAGERS"); do start_taskmanager; done
        waited=0
        while [ "$(slots || echo 0)" -lt $((TASKMANAGERS * SLOTS)) ]; do
            # For a moment it is a copy of this shell, which is on its way to become Java.
            [ "$waited" -lt 4 ] || running "$CLUSTER/jobmanager.pid" || fail "the JobManager has ended: $(tail -n 3 "$CLUSTER/log/jobmanager.log" "$CLUSTER/log/jobmanager.out")"
            [ "$waited" -lt 120 ] || fail "the TaskManagers have not come up in 60 s: see $CLUSTER/log"
            sleep 0.5
            waited=$((waited + 1))
        done
        say "ready: --runner FlinkRunner --flink_master=localhost:$REST_PORT --parallelism=$TASKMANAGERS"
        ;;
    taskmanager)
        running "$CLUSTER/jobmanager.pid" || fail "no cluster of $CLUSTER is running: $0 start"
        start_taskmanager
        ;;
    status)
        running "$CLUSTER/jobmanager.pid" || fail "no cluster of $CLUSTER is running"
        for file in "$CLUSTER"/*.pid; do
            if running "$file"; then echo "$(basename "$file" .pid) $(cat "$file")"; fi
        done
        echo "slots $(slots)"
        ;;
    stop)
        end_processes
        rm -rf "$CLUSTER/tmp"
        ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
