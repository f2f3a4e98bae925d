// out[r] = table[token(r)] * scale, token(r) = an id, or an entry of the ids that the previous step sampled.
//
// Launch: one block of 128 threads per row. Bytes: a row of the table, one write of a T per number.
#include "weights.cuh"

constexpr uint32_t THREADS = 128;

template <class T>
__device__ void embed(const EmbedParams& params) {
    const uint32_t input = params.input_tokens[blockIdx.x];
    const uint32_t token = input & LAST_SAMPLED ? params.last_samples[input & ~LAST_SAMPLED] : input;
    const uint32_t width = params.table.cols;
    T* out = static_cast<T*>(params.out) + size_t(blockIdx.x) * width;
    with_format(params.table.format, [&]<uint32_t FORMAT>() {
        for (uint32_t col = threadIdx.x * VECTOR; col < width; col += THREADS * VECTOR) {
            float values[VECTOR];
            load_weights8<T, FORMAT>(params.table, token, col, values);
#pragma unroll
            for (uint32_t index = 0; index < VECTOR; ++index) values[index] *= params.scale;
            store8(out + col, values);
        }
    });
}

PAGODA_KERNEL(embed_bf16, EmbedParams, THREADS, 0) { embed<bf16>(params); }
PAGODA_KERNEL(embed_f16, EmbedParams, THREADS, 0) { embed<f16>(params); }
