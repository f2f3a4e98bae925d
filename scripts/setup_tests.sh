#!/usr/bin/env bash
# Fetches what the tests need besides Rust, into the user's cache (never into the repository):
# the Python environment, the default model, the embedding model and the chat templates. Running it again does nothing.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/pagoda/test"
mkdir -p "$cache"

if [ ! -x "$cache/venv/bin/python" ]; then
    python3 -m venv "$cache/venv"
fi
wanted="$(cat "$here/requirements-test.txt")"
if [ "$(cat "$cache/requirements-installed.txt" 2>/dev/null || true)" != "$wanted" ]; then
    "$cache/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements-test.txt"
    printf '%s\n' "$wanted" > "$cache/requirements-installed.txt"
fi

bash "$here/fetch_chat_templates.sh"

# The models are fetched by the program under test. The whole workspace is built as the tests build it: building the binary
# alone would choose other features for its dependencies and compile them twice.
cd "$here/.."
cargo build --quiet --profile ci --workspace --all-targets
"${CARGO_TARGET_DIR:-target}/ci/pagoda" pull smollm2-135m-instruct
"${CARGO_TARGET_DIR:-target}/ci/pagoda" pull all-minilm-l6-v2
