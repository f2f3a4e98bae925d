// out = the numbers of some rows of a block-format weight, for the dense GEMM that follows.
//
// Launch: 256 threads per block, eight weights per thread. Bytes: the codes once in, a T per weight out.
#include "weights.cuh"

constexpr uint32_t THREADS = 256;

template <class T>
__device__ void dequantize(const DequantizeParams& params) {
    const size_t first = (size_t(blockIdx.x) * THREADS + threadIdx.x) * VECTOR;
    if (first >= size_t(params.num_rows) * params.weight.cols) return;
    const uint32_t row = uint32_t(first / params.weight.cols), col = uint32_t(first % params.weight.cols);
    with_format(params.weight.format, [&]<uint32_t FORMAT>() {
        float values[VECTOR];
        load_weights8<T, FORMAT>(params.weight, params.first_row + row, col, values);
        store8(static_cast<T*>(params.out) + first, values);
    });
}

PAGODA_KERNEL(dequantize_bf16, DequantizeParams, THREADS, 0) { dequantize<bf16>(params); }
PAGODA_KERNEL(dequantize_f16, DequantizeParams, THREADS, 0) { dequantize<f16>(params); }
