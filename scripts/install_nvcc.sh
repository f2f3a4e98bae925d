#!/usr/bin/env bash
# Installs the CUDA compiler from pinned Python wheels into a private environment in the user's cache (about 300 MB), where the
# build finds it. Needs Python 3 with venv; no GPU, no driver, no root. Running it again does nothing.
#
# Every wheel is pinned: with an unpinned crt or nvvm, pip takes a newer one and nvcc 13.0 fails. There is no 13.0 wheel of
# nvdisasm; 13.2 reads cubins of 13.0.
set -euo pipefail
cache="${XDG_CACHE_HOME:-$HOME/.cache}/pagoda/nvcc"
wanted="nvidia-cuda-nvcc==13.0.88
nvidia-cuda-crt==13.0.88
nvidia-nvvm==13.0.88
nvidia-cuda-runtime==13.0.96
nvidia-cuda-cccl==13.0.85
nvidia-cuda-nvdisasm==13.2.51"

if [ "$(cat "$cache/installed.txt" 2>/dev/null || true)" != "$wanted" ]; then
    rm -rf "$cache"
    mkdir -p "$cache"
    python3 -m venv "$cache/venv"
    # shellcheck disable=SC2086 # one argument per line
    "$cache/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps $wanted
    ln -s "$(dirname "$(find "$cache/venv" -path '*/cu13/bin/nvcc')")" "$cache/bin"
    "$cache/bin/nvcc" --version > /dev/null
    printf '%s\n' "$wanted" > "$cache/installed.txt"
fi
echo "$cache/bin/nvcc"
