// residual[r] += x[r]; out[r] = rms_norm(residual[r])
//
// Launch: one block of 256 threads per row. Bytes: 2 reads and 2 writes of a T per number; the sum is read back from L1.
// The norm is taken of the sum as it is stored (rounded to T), so that a later norm of the same residual agrees.
#include "reduce.cuh"

constexpr uint32_t THREADS = 256;

struct Shared {
    float partial[THREADS / WARP_SIZE];
};

template <class T>
__device__ void add_rms_norm(const AddRmsNormParams& params) {
    Shared& shared = shared_memory<Shared>();
    const size_t start = size_t(blockIdx.x) * params.width;
    const T* x = static_cast<const T*>(params.x) + start;
    T* residual = static_cast<T*>(params.residual) + start;
    T* out = static_cast<T*>(params.out) + start;
    float squares = 0;
    for (uint32_t col = threadIdx.x * VECTOR; col < params.width; col += THREADS * VECTOR) {
        float values[VECTOR], sums[VECTOR];
        load8(x + col, values);
        load8(residual + col, sums);
#pragma unroll
        for (uint32_t index = 0; index < VECTOR; ++index) {
            sums[index] = to_float(from_float<T>(sums[index] + values[index]));
            squares += sums[index] * sums[index];
        }
        store8(residual + col, sums);
    }
    const float mean = block_sum<THREADS>(squares, shared.partial) / float(params.width);
    const float factor = rsqrtf(mean + params.eps);
    // Each thread reads back what it wrote itself.
    for (uint32_t col = threadIdx.x * VECTOR; col < params.width; col += THREADS * VECTOR) {
        float values[VECTOR];
        load8(residual + col, values);
#pragma unroll
        for (uint32_t index = 0; index < VECTOR; ++index) values[index] *= factor * params.weight[col + index];
        store8(out + col, values);
    }
}

PAGODA_KERNEL(add_rms_norm_bf16, AddRmsNormParams, THREADS, sizeof(Shared)) { add_rms_norm<bf16>(params); }
PAGODA_KERNEL(add_rms_norm_f16, AddRmsNormParams, THREADS, sizeof(Shared)) { add_rms_norm<f16>(params); }
