#!/usr/bin/env python3
"""What PyTorch's kernels reach on this GPU at the shapes of `pagoda bench kernels`: scaled-dot-product attention over contiguous K and V
(no pages) and cuBLAS products. One line of JSON per figure, appended to the file given. Says why and does nothing where there is no
torch or no GPU."""

import json
import sys
import time

try:
    import torch
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)
if not torch.cuda.is_available():
    print("skipped: torch sees no CUDA device")
    sys.exit(0)

DEVICE = torch.device("cuda:0")
BATCH_SECONDS = 0.05
ROTATED_BYTES = 256 << 20
OUT = open(sys.argv[1], "a") if len(sys.argv) > 1 else sys.stdout


def seconds_of(call):
    """The median of five batches, each as many calls as fill 50 ms, as `pagoda bench kernels` does it."""

    def run(num_calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for index in range(num_calls):
            call(index)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    run(2)
    num_calls = 1
    elapsed = run(num_calls)
    while elapsed < BATCH_SECONDS:
        num_calls = int(num_calls * min(16.0, max(2.0, 1.2 * BATCH_SECONDS / elapsed)))
        elapsed = run(num_calls)
    return sorted(run(num_calls) for _ in range(5))[2] / num_calls


def note(case, seconds, num_bytes, flop):
    line = {
        "bench": "peer-kernels",
        "peer": f"torch {torch.__version__}",
        "device": torch.cuda.get_device_name(DEVICE),
        "case": case,
        "us": seconds * 1e6,
        "gb_per_s": num_bytes / seconds / 1e9,
        "tflop_per_s": flop / seconds / 1e12,
    }
    print(json.dumps(line), file=OUT, flush=True)


def noise(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def copy():
    num_bytes = 1 << 30
    source = torch.empty(num_bytes, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    note("copy", seconds_of(lambda _: target.copy_(source)), 2 * num_bytes, 0)


def product(rows, cols, num_rows):
    num_weights = 1 if num_rows >= 256 else max(1, min(64, ROTATED_BYTES // (2 * rows * cols)))
    weights = [noise(rows, cols) * cols**-0.5 for _ in range(num_weights)]
    x = noise(num_rows, cols)
    out = torch.empty(num_rows, rows, device=DEVICE, dtype=torch.bfloat16)
    seconds = seconds_of(lambda call: torch.mm(x, weights[call % num_weights].t(), out=out))
    num_bytes = 2 * rows * cols + 2 * num_rows * (rows + cols)
    note(f"linear/{rows}x{cols}/{num_rows}", seconds, num_bytes, 2 * rows * cols * num_rows)


def attention(heads, kv_heads, head_dim, batch_size, context_len, query_len):
    q = noise(batch_size, heads, query_len, head_dim)
    k, v = noise(batch_size, kv_heads, context_len, head_dim), noise(batch_size, kv_heads, context_len, head_dim)
    is_prompt = query_len == context_len

    def call(_):
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_prompt, enable_gqa=True)

    kind = f"prefill/{heads}:{kv_heads}/d{head_dim}/{context_len}"
    if not is_prompt:
        kind = f"decode/{heads}:{kv_heads}/d{head_dim}/{batch_size}x{context_len}/contiguous"
    flop = 4 * batch_size * heads * head_dim * context_len * (context_len / 2 if is_prompt else 1)
    note(kind, seconds_of(call), 2 * 2 * batch_size * context_len * kv_heads * head_dim, flop)


def attempt(measure, *shape):
    try:
        measure(*shape)
    except (RuntimeError, TypeError) as error:
        print(f"{measure.__name__} {shape}: skipped: {error}")
    torch.cuda.empty_cache()


def main():
    attempt(copy)
    attempt(product, 8192, 8192, 8192)
    for rows, cols in [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]:
        for num_rows in [1, 16, 64, 256, 2048]:
            if rows < 100_000 or num_rows <= 256:
                attempt(product, rows, cols, num_rows)
    for head_dim in [128, 64]:
        for length in [1024, 4096, 16384]:
            attempt(attention, 32, 8, head_dim, 1, length, length)
        for batch_size, length in [(1, 16384), (64, 2048), (256, 1024)]:
            attempt(attention, 32, 8, head_dim, batch_size, length, 1)


if __name__ == "__main__":
    main()
