# SPDX-License-Identifier: 0BSD
# Runs on a board: unpacks an archive into a folder of its own, works there, and removes the folder.
#
#     sh -c "$(cat board.sh)" bdcc BYTES KEEP MACHINE TASK ..     the archive on standard input
#
# After the archive's BYTES, standard input stays open for as long as somebody waits: its end, a lost connection's too,
# ends the work. What there is to tell goes out in lines "bdcc KEY VALUE", for a login may say things of its own; the
# stages go to both outputs. Exits with 4 if a layer differs.
LC_ALL=C
export LC_ALL
bytes=$1 keep=$2 wanted=$3 task=$4
shift 4
umask 077

say() { echo "bdcc $*"; }
stage() { say stage "$1"; say stage "$1" >&2; }

stage folder
folder=$(mktemp -d "${TMPDIR:-/tmp}/bdcc.XXXXXX") || exit 1
watcher='' lost=''
leave() {
    status=$?
    trap '' HUP INT TERM PIPE
    [ -z "$watcher" ] || kill "$watcher" 2>/dev/null
    if [ -n "$lost" ]; then
        kill 0 # whatever still builds or runs; sshd gives each command a group of its own
        wait
    fi
    cd /
    if [ "$keep" != keep ]; then
        rm -rf "$folder" || { sleep 1 && rm -rf "$folder"; } && say gone
    fi
    exit "$status"
}
trap leave EXIT
trap 'lost=1; exit 1' HUP INT TERM PIPE
say folder "$folder"
cd "$folder" || exit 1

stage copy
exec 3<&0 </dev/null
head -c "$bytes" <&3 | tar -xof - || exit 1
(
    read -r _ <&3
    kill -TERM $$
) >/dev/null 2>&1 &
watcher=$!
run() { # a shell that waits hears signals, one that runs a program does not
    "$@" &
    wait $!
}

stage tools
cc=${CC:-cc}
for tool in make "${cc%% *}"; do
    command -v "$tool" >/dev/null || {
        say missing "$tool"
        exit 1
    }
done
machine=$($cc -dumpmachine)
say machine "$machine"
say kernel "$(uname -srm)"
say cpus "$(getconf _NPROCESSORS_ONLN)"
sed 's/^/bdcc cpuinfo /' /proc/cpuinfo 2>/dev/null
sed -n 's/^MemTotal: */bdcc memory /p' /proc/meminfo 2>/dev/null
case $machine in
"$wanted"*) ;;
*) exit 1 ;;
esac

case $task in
probe)
    stage probe
    $cc -std=c11 isas.c -o isas || exit 1
    for isa in $(./isas); do say isa "$isa"; done
    ;;
bench) # MODEL INPUTS OUTPUTS THREADS GOALS, and what board.c takes; each GOAL is one of the Makefile's
    model=$1 inputs=$2 outputs=$3 threads=$4 goals=$5
    shift 5
    threaded=0
    [ "$threads" -eq 1 ] || threaded=1
    stage build
    run make -j2 -f Makefile -f board.mk MODEL="$model" INPUTS="$inputs" OUTPUTS="$outputs" THREADS=$threaded \
        $goals board >&2 || exit 1
    if [ -f host/golden.bin ]; then
        stage selftest
        if [ $threaded -eq 0 ]; then run ./selftest >said; else run ./selftest --threads "$threads" >said; fi
        status=$?
        sed 's/^/bdcc selftest /' said
        [ $status -eq 0 ] || exit $status
    fi
    stage bench
    while [ $# -ge 5 ]; do
        run ./board "$threads" "$1" "$2" "$3" "$4" "$5" || exit 1
        shift 5
    done
    say celsius "$(cat /sys/class/thermal/thermal_zone0/temp 2>/dev/null)"
    say throttled "$(vcgencmd get_throttled 2>/dev/null)"
    ;;
esac
