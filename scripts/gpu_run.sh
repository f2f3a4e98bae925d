#!/usr/bin/env bash
# Runs stages of the GPU bundle: ./run.sh [STAGE..], all of them by default. Every stage has its own time limit and appends to
# log.txt and results.jsonl beside this script, so that a run that is cut off leaves what it has. Needs an NVIDIA driver, no
# Rust and no network. Without a device it says so; that is a failure under REQUIRE_GPU=1.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(probe conformance sanitizer)

gpus="$(./pagoda doctor | sed -n 's/^GPU  *//p')"
if [[ "$gpus" != *cuda:* ]]; then
    echo "skipped: no CUDA device: $gpus"
    [ "${REQUIRE_GPU:-0}" != 1 ]
    exit
fi

# record STAGE SECONDS COMMAND..: runs a command under a time limit and notes how it ended.
record() {
    local stage="$1" limit="$2" start status
    shift 2
    start=$(date +%s)
    { echo "== $stage: $*"; timeout "$limit" "$@"; } >> log.txt 2>&1
    status=$?
    printf '{"stage":"%s","command":"%s","status":%d,"seconds":%d,"date":"%s"}\n' \
        "$stage" "$*" "$status" "$(($(date +%s) - start))" "$(date -u +%FT%TZ)" >> results.jsonl
    echo "$stage: $([ $status = 0 ] && echo ok || echo "ended with $status, see log.txt")"
    return $status
}

failed=0
for stage in "${stages[@]}"; do
    case "$stage" in
        probe) record probe 60 ./pagoda doctor || failed=1 ;;
        conformance) record conformance 300 env REQUIRE_GPU=1 ./pagoda conformance || failed=1 ;;
        sanitizer)
            tool="$(command -v compute-sanitizer || true)"
            if [ -z "$tool" ]; then
                echo "sanitizer: skipped: no compute-sanitizer on this machine" | tee -a log.txt
                continue
            fi
            for check in memcheck racecheck initcheck synccheck; do
                record "sanitizer-$check" 120 "$tool" --tool "$check" --error-exitcode 9 \
                    ./pagoda conformance --only attention/2:1/d64 --only rms_norm/3 --only linear/9x || failed=1
            done
            ;;
        *) echo "unknown stage $stage"; failed=1 ;;
    esac
done
exit $failed
