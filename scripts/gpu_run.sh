#!/usr/bin/env bash
# Runs stages of the GPU bundle: ./run.sh [STAGE..], all of them by default; ./run.sh help prints this. Needs an NVIDIA driver, no Rust and
# no network.
#
#   probe        what the machine has
#   conformance  every op against the CPU reference
#   agreement    a device's choices against exact arithmetic, on the same text
#   consistency  the answers of graphs, single launches, two steps in flight and one, against each other and exact arithmetic
#   sanitizer    a few cases under compute-sanitizer, where that is installed
#   kernels      every op by itself, beside a copy and a product of the same minute
#   serve        a server of random weights under concurrent streams over HTTP
#   engine       the engine without a server: nano bench, decode sweep (with the time between steps), prompts
#   peers        PyTorch's kernels and transformers' continuous batching, where they are installed
#
# or a group of them: correctness (the first five), speed (kernels, serve), engines (the last two). A group, or a stage that is
# named by itself, ends within nine minutes: every command has its own time limit, and no more than what is left of the group's.
#
# The real model is not in the bundle (98 MB). agreement and consistency take it from where PAGODA_TEST_MODEL says, from here under the name
# SmolLM2-135M-Instruct.Q4_1.gguf, or from the cache that pagoda pull fills:
#   cp ~/.cache/pagoda/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf gpu-bundle/
# Where files have to be smaller, two halves beside this script are put together:
#   split -n 2 -a 1 --numeric-suffixes=1 SmolLM2-135M-Instruct.Q4_1.gguf gpu-bundle/model.part
#
# Commands append to log.txt and results.jsonl beside this script, so that a run that is cut off leaves what it has. Without a
# device it says so; that is a failure under REQUIRE_GPU=1.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
correctness=(probe conformance agreement consistency sanitizer)
speed=(kernels serve)
engines=(engine peers)
device="${PAGODA_DEVICE:-cuda:0}"
# Seconds in which a group's commands start and end; the end of a server, and of what does not heed its limit, comes on top.
group_seconds=480

for argument in "$@"; do
    case "$argument" in
        help | -h | --help)
            sed -n '2,/^set /s/^# \{0,1\}//p' "$(basename "${BASH_SOURCE[0]}")"
            exit
            ;;
        correctness | speed | engines) ;;
        probe | conformance | agreement | consistency | sanitizer | kernels | serve | engine | peers) ;;
        *)
            echo "unknown stage $argument"
            exit 2
            ;;
    esac
done
[ $# -gt 0 ] || set -- correctness speed engines

real_model=SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -f $real_model ] && [ -f model.part1 ] && [ -f model.part2 ]; then
    # Under its name only once it is whole.
    cat model.part1 model.part2 > $real_model.part && mv $real_model.part $real_model && echo "model.part1 and 2: put together"
fi

gpus="$(./pagoda doctor | sed -n 's/^GPU  *\(cuda:.*\|none.*\)/\1/p')"
if [[ "$gpus" != cuda:* ]]; then
    echo "skipped: no CUDA device: $gpus"
    [ "${REQUIRE_GPU:-0}" != 1 ]
    exit
fi

failed=0
deadline=0
# Seconds that the group still has.
seconds_left() {
    echo $((deadline - $(date +%s)))
}

# record STAGE SECONDS COMMAND..: runs a command under a time limit and notes how it ended. What the sanitizer says it cannot do
# here is no failure; what there was no time for is one.
record() {
    local stage="$1" limit="$2" left start status outcome before
    shift 2
    left=$(seconds_left)
    start=$(date +%s)
    touch log.txt
    before=$(wc -c < log.txt)
    if ((left < 5)); then
        echo "== $stage: $*: not run, the group's time is over" >> log.txt
        status=124 outcome=not-run
    else
        { echo "== $stage: $*"; timeout --kill-after=10 "$((limit < left ? limit : left))" "$@"; } >> log.txt 2>&1
        status=$?
        outcome=failed
        if [ $status = 0 ]; then
            outcome=ok
        elif [[ "$stage" = sanitizer-* && $status != 9 ]] &&
            tail -c +$((before + 1)) log.txt | grep -ciE '(not|un) ?supported' > /dev/null; then
            outcome=unsupported
        fi
    fi
    printf '{"stage":"%s","command":"%s","status":%d,"outcome":"%s","seconds":%d,"date":"%s"}\n' \
        "$stage" "$*" "$status" "$outcome" "$(($(date +%s) - start))" "$(date -u +%FT%TZ)" >> results.jsonl
    case "$outcome" in
        ok | unsupported) echo "$stage: $outcome" ;;
        not-run) echo "$stage: not run, the group's time is over" ;;
        *) echo "$stage: ended with $status, see log.txt" ;;
    esac
    [ $outcome = ok ] || [ $outcome = unsupported ] || failed=1
}

skip() {
    echo "$1: skipped: $2" | tee -a log.txt
}

# The real model, if this machine has it.
real_model() {
    local place
    for place in "${PAGODA_TEST_MODEL:-}" $real_model \
        "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/pagoda/models/smollm2-135m-instruct/$real_model"; do
        [ -n "$place" ] && [ -f "$place" ] && echo "$place" && return
    done
}

agreement() {
    local model
    model="$(real_model)"
    if [ -n "$model" ]; then
        record agreement-smollm2 120 ./pagoda bench agreement "$model" --device "$device" --json results.jsonl
        record agreement-smollm2-f16 60 ./pagoda bench agreement "$model" --device "$device" --dtype f16 --json results.jsonl
    else
        skip agreement-smollm2 "the model is not on this machine (PAGODA_TEST_MODEL names its file)"
    fi
    # Random weights spread their logits less than trained ones do: near ties are common, and their limits are wider.
    for config in qwen3-0.6b qwen2.5-0.5b; do
        record "agreement-$config" 90 ./pagoda bench agreement "configs/$config.json" --load-format dummy \
            --device "$device" --num-tokens 256 --min-percent 90 --max-difference 0.1 --json results.jsonl
    done
}

# Graphs against single launches and two steps in flight against one. Without a library the first two must give the same bits;
# in the deterministic setting all three must.
consistency() {
    local model flags=(--device "$device" --json results.jsonl)
    model="$(real_model)"
    if [ -n "$model" ]; then
        record consistency-deterministic 60 ./pagoda bench consistency "$model" --deterministic "${flags[@]}"
        record consistency-fastest 60 ./pagoda bench consistency "$model" "${flags[@]}"
    fi
    flags+=(--load-format dummy --num-exact 2 --min-percent 90 --max-difference 0.1)
    record consistency-qwen3-0.6b 60 ./pagoda bench consistency configs/qwen3-0.6b.json --deterministic "${flags[@]}"
    record consistency-qwen2.5-0.5b 60 ./pagoda bench consistency configs/qwen2.5-0.5b.json --gemm own "${flags[@]}"
}

sanitizer() {
    local tool check
    tool="$(command -v compute-sanitizer || true)"
    if [ -z "$tool" ]; then
        skip sanitizer "no compute-sanitizer on this machine"
        return
    fi
    for check in memcheck racecheck initcheck synccheck; do
        record "sanitizer-$check" 45 "$tool" --tool "$check" --error-exitcode 9 \
            ./pagoda conformance --variant plain --only attention/2:1/d64 --only rms_norm/3 --only linear/9x
    done
}

# Every op; then what is not the default: the own kernel for products of many rows, wgmma for prompts.
kernels() {
    record kernels 240 ./pagoda bench kernels --device "$device" --json results.jsonl
    record kernels-own-gemm 40 ./pagoda bench kernels --device "$device" --gemm own --only linear/28672x4096 \
        --json results.jsonl
    record kernels-wgmma 40 ./pagoda bench kernels --device "$device" --prefill-kernel wgmma --only prefill \
        --json results.jsonl
}

# One server of a configuration, loaded with more and more streams at once.
serve() {
    local config="$1" log="serve-$1.txt" server url="" streams tries
    ./pagoda serve "configs/$config.json" --load-format dummy --device "$device" --port 0 --max-model-len 4096 \
        --max-num-seqs 256 --max-num-batched-tokens 8192 --embedding-model none > "$log" 2>&1 &
    server=$!
    for ((tries = 0; tries < 480; tries++)); do
        kill -0 $server 2> /dev/null || break
        (($(seconds_left) > 5)) || break
        grep -q '^ready' "$log" && url="$(sed -n 's/^listening on \(http[^ ]*\).*/\1/p' "$log")" && break
        sleep 0.25
    done
    if [ -z "$url" ]; then
        record "serve-$config-start" 10 tail -n 20 "$log"
        failed=1
    fi
    for streams in 1 32 256; do
        [ -n "$url" ] || break
        record "serve-$config-$streams" 60 ./pagoda bench serve "$url" --concurrency "$streams" \
            --num-requests $((streams * 3 + 1)) --prompt-len 512 --output-len 128 --json serve.json
        [ -f serve.json ] && printf '{"bench":"serve","model":"%s","streams":%d,"report":%s}\n' \
            "$config" "$streams" "$(tr -d '\n' < serve.json)" >> results.jsonl
        rm -f serve.json
    done
    stop $server || { echo "serve-$config: the server did not end by itself"; failed=1; }
    cat "$log" >> log.txt
}

# stop PID: ends a child of this script. One that has not ended 40 seconds after it was told to is killed, and that is a failure.
stop() {
    local tries
    kill -TERM "$1" 2> /dev/null
    for ((tries = 0; tries < 160; tries++)); do
        kill -0 "$1" 2> /dev/null || break
        sleep 0.25
    done
    if ((tries == 160)); then
        kill -KILL "$1" 2> /dev/null
        wait "$1"
        return 1
    fi
    wait "$1"
    return 0
}

engine() {
    local config
    for config in llama-3.2-1b qwen3-0.6b qwen2.5-0.5b llama-3.1-8b; do
        record "engine-nano-$config" 75 ./pagoda bench throughput "configs/$config.json" --load-format dummy \
            --device "$device" --workload nano --repeats 2 --max-num-batched-tokens 8192 --json results.jsonl
    done
    record engine-decode 90 ./pagoda bench throughput configs/llama-3.1-8b.json --load-format dummy \
        --device "$device" --workload decode,prefill --batch-size 1,8,32,64,128,256 --context-len 128,1024,4096 \
        --prompt-len 128,512,2048,8192,32768 --repeats 2 --max-num-batched-tokens 8192 --json results.jsonl
    # The host's part of a step shows most where the step is shortest: see gpu_idle_percent.
    record engine-decode-qwen3-0.6b 40 ./pagoda bench throughput configs/qwen3-0.6b.json --load-format dummy \
        --device "$device" --workload decode --batch-size 1,32,256 --context-len 128,1024 --max-num-batched-tokens 8192 \
        --json results.jsonl
    record engine-long 60 ./pagoda bench throughput configs/llama-3.1-8b.json --load-format dummy \
        --device "$device" --workload decode --batch-size 1,2,4,8,16,32 --context-len 16384 \
        --max-num-batched-tokens 8192 --json results.jsonl
}

peers() {
    local python
    python="$(command -v python3 || true)"
    if [ -z "$python" ]; then
        skip peers "no python3 on this machine"
        return
    fi
    record peers-kernels 60 "$python" peers/kernels.py results.jsonl
    record peers-engine 120 "$python" peers/engine.py configs/llama-3.2-1b.json results.jsonl
}

run() {
    case "$1" in
        probe) record probe 60 ./pagoda doctor ;;
        conformance) record conformance 240 env REQUIRE_GPU=1 ./pagoda conformance ;;
        agreement) agreement ;;
        consistency) consistency ;;
        sanitizer) sanitizer ;;
        kernels) kernels ;;
        serve) serve llama-3.2-1b && serve llama-3.1-8b ;;
        engine) engine ;;
        peers) peers ;;
    esac
}

for argument in "$@"; do
    stages=("$argument")
    case "$argument" in
        correctness) stages=("${correctness[@]}") ;;
        speed) stages=("${speed[@]}") ;;
        engines) stages=("${engines[@]}") ;;
    esac
    deadline=$(($(date +%s) + group_seconds))
    for stage in "${stages[@]}"; do
        run "$stage"
    done
done
exit $failed
