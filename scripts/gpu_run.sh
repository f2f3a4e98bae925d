#!/usr/bin/env bash
# Runs stages of the GPU bundle: ./run.sh [STAGE..], all of them by default. Needs an NVIDIA driver, no Rust and no network.
#
#   probe        what the machine has
#   conformance  every op against the CPU reference
#   agreement    a device's choices against exact arithmetic, on the same text
#   sanitizer    a few cases under compute-sanitizer, where that is installed
#   kernels      every op by itself, beside a copy and a product of the same minute
#   serve        a server of random weights under concurrent streams over HTTP
#   engine       the engine without a server: nano bench, decode sweep, prompts
#   peers        PyTorch's kernels and transformers' continuous batching, where they are installed
#
# or a group of them, each of which fits into nine minutes: correctness (the first four), speed (kernels, serve), engines (the
# last two). Every command has its own time limit and appends to log.txt and results.jsonl beside this script, so that a run
# that is cut off leaves what it has. Without a device it says so; that is a failure under REQUIRE_GPU=1.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
correctness=(probe conformance agreement sanitizer)
speed=(kernels serve)
engines=(engine peers)
device="${PAGODA_DEVICE:-cuda:0}"

stages=()
for argument in "$@"; do
    case "$argument" in
        correctness) stages+=("${correctness[@]}") ;;
        speed) stages+=("${speed[@]}") ;;
        engines) stages+=("${engines[@]}") ;;
        probe | conformance | agreement | sanitizer | kernels | serve | engine | peers) stages+=("$argument") ;;
        *)
            echo "unknown stage $argument"
            exit 2
            ;;
    esac
done
[ ${#stages[@]} -gt 0 ] || stages=("${correctness[@]}" "${speed[@]}" "${engines[@]}")

gpus="$(./pagoda doctor | sed -n 's/^GPU  *\(cuda:.*\|none.*\)/\1/p')"
if [[ "$gpus" != cuda:* ]]; then
    echo "skipped: no CUDA device: $gpus"
    [ "${REQUIRE_GPU:-0}" != 1 ]
    exit
fi

failed=0
# record STAGE SECONDS COMMAND..: runs a command under a time limit and notes how it ended.
record() {
    local stage="$1" limit="$2" start status
    shift 2
    start=$(date +%s)
    { echo "== $stage: $*"; timeout --kill-after=10 "$limit" "$@"; } >> log.txt 2>&1
    status=$?
    printf '{"stage":"%s","command":"%s","status":%d,"seconds":%d,"date":"%s"}\n' \
        "$stage" "$*" "$status" "$(($(date +%s) - start))" "$(date -u +%FT%TZ)" >> results.jsonl
    echo "$stage: $([ $status = 0 ] && echo ok || echo "ended with $status, see log.txt")"
    [ $status = 0 ] || failed=1
}

skip() {
    echo "$1: skipped: $2" | tee -a log.txt
}

# The real model, if this machine has it: its 98 MB are not in the bundle.
real_model() {
    local place
    for place in "${PAGODA_TEST_MODEL:-}" SmolLM2-135M-Instruct.Q4_1.gguf \
        "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/pagoda/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"; do
        [ -n "$place" ] && [ -f "$place" ] && echo "$place" && return
    done
}

agreement() {
    local model
    model="$(real_model)"
    if [ -n "$model" ]; then
        record agreement-smollm2 120 ./pagoda bench agreement "$model" --device "$device" --json results.jsonl
    else
        skip agreement-smollm2 "the model is not on this machine (PAGODA_TEST_MODEL names its file)"
    fi
    # Random weights spread their logits less than trained ones do: near ties are common, and their limits are wider.
    for config in qwen3-0.6b qwen2.5-0.5b; do
        record "agreement-$config" 90 ./pagoda bench agreement "configs/$config.json" --load-format dummy \
            --device "$device" --num-tokens 256 --min-percent 90 --max-difference 0.1 --json results.jsonl
    done
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
            ./pagoda conformance --only attention/2:1/d64 --only rms_norm/3 --only linear/9x
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
    kill -TERM $server 2> /dev/null
    wait $server
    cat "$log" >> log.txt
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

for stage in "${stages[@]}"; do
    case "$stage" in
        probe) record probe 60 ./pagoda doctor ;;
        conformance) record conformance 270 env REQUIRE_GPU=1 ./pagoda conformance ;;
        agreement) agreement ;;
        sanitizer) sanitizer ;;
        kernels) kernels ;;
        serve) serve llama-3.2-1b && serve llama-3.1-8b ;;
        engine) engine ;;
        peers) peers ;;
    esac
done
exit $failed
