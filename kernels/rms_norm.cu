// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight                                     (Zhang & Sennrich, arXiv 1910.07467)
//
// Launch: one block of 256 threads per row. Bytes: 2 reads + 2 writes of a T per number, the second read from L1.
// A block per row rather than a warp per row: at batch 1 the row's latency counts, and a warp would need 16 turns for 4096.
#include "reduce.cuh"

constexpr uint32_t THREADS = 256;

struct Shared {
    float partial[THREADS / WARP_SIZE];
};

template <class T>
__device__ void rms_norm(const RmsNormParams& params) {
    Shared& shared = shared_memory<Shared>();
    const T* x = static_cast<const T*>(params.x) + size_t(blockIdx.x) * params.width;
    T* out = static_cast<T*>(params.out) + size_t(blockIdx.x) * params.width;
    float squares = 0;
    for (uint32_t col = threadIdx.x * VECTOR; col < params.width; col += THREADS * VECTOR) {
        float values[VECTOR];
        load8(x + col, values);
#pragma unroll
        for (uint32_t index = 0; index < VECTOR; ++index) squares += values[index] * values[index];
    }
    const float mean = block_sum<THREADS>(squares, shared.partial) / float(params.width);
    const float factor = rsqrtf(mean + params.eps);
    for (uint32_t col = threadIdx.x * VECTOR; col < params.width; col += THREADS * VECTOR) {
        float values[VECTOR];
        load8(x + col, values);
#pragma unroll
        for (uint32_t index = 0; index < VECTOR; ++index) values[index] *= factor * params.weight[col + index];
        store8(out + col, values);
    }
}

PAGODA_KERNEL(rms_norm_bf16, RmsNormParams, THREADS, sizeof(Shared)) { rms_norm<bf16>(params); }
PAGODA_KERNEL(rms_norm_f16, RmsNormParams, THREADS, sizeof(Shared)) { rms_norm<f16>(params); }
