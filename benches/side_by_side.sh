#!/usr/bin/env bash
# Loads two OpenAI-compatible servers in turn (A B A B) with the same requests and prints one line per run:
#   benches/side_by_side.sh http://127.0.0.1:8000 http://127.0.0.1:8090
# Both must already be ready, serve the same file and use the same number of threads; only one works at a time.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 URL_A URL_B" >&2; exit 2; }
pagoda="${PAGODA:-target/release/pagoda}"
case_of() { # name, concurrency, requests, prompt tokens, output tokens
    for round in 1 2; do
        for url in "$@"; do
            case "$url" in http*) ;; *) continue ;; esac
            printf '%-26s round %s %-24s ' "$1" "$round" "$url"
            "$pagoda" bench serve "$url" --concurrency "$2" --num-requests "$3" --prompt-len "$4" --output-len "$5" \
                --vocab-size 40000 --seed "$round$2" --json - |
                python3 -c 'import json, sys; r = json.load(sys.stdin); print(json.dumps(r))'
        done
    done
}
case_of "1 stream 138/64" 1 4 138 64 "$@"
case_of "32 streams 138/64" 32 64 138 64 "$@"
case_of "1 stream 30/128" 1 4 30 128 "$@"
case_of "32 streams 30/128" 32 32 30 128 "$@"
case_of "prefill 512/1" 1 4 512 1 "$@"
