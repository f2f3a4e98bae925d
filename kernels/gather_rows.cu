// out[i] = x[rows[i]]
//
// Launch: one block of 128 threads per output row. Bytes: 1 read, 1 write of a T. The same bits for both element types, so
// one instantiation.
#include "device.cuh"

constexpr uint32_t THREADS = 128;

PAGODA_KERNEL(gather_rows, GatherRowsParams, THREADS, 0) {
    const uint32_t row = params.rows[blockIdx.x];
    const uint32_t num_vectors = params.width / VECTOR;
    const uint4* from = static_cast<const uint4*>(params.x) + size_t(row) * num_vectors;
    uint4* to = static_cast<uint4*>(params.out) + size_t(blockIdx.x) * num_vectors;
    for (uint32_t index = threadIdx.x; index < num_vectors; index += THREADS) to[index] = from[index];
}
