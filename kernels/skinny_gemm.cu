// out[n] = x[n] W^T + bias for at most 16 rows of x: as fast as W streams from memory. W dense or in a block format, whose
// weights become numbers in registers.
//
//   grid.x   16 rows of W
//   block    8 warps, which take the pieces of 32 columns in turn and are added up in order
//
// W is the A operand of m16n8k16 (its 16 rows are M), the rows of x are N: one product serves 8 rows of x. A product does not
// care which column is which as long as A and B agree, so a lane reads eight neighbouring columns at once (16 bytes of a dense
// row) and calls them the columns 2t, 2t + 1, 2t + 8, 2t + 9 of two products.
// Nothing goes through shared memory but the sums. Bytes: W once; x from L2 once per block.
//
// A weight of 4096 rows is 256 blocks, two for each multiprocessor of an H200: 16 warps that have to keep some 30 kB on their way (4.8 TB/s
// x 800 ns / 132). So a lane loads four pieces ahead, 128 bytes of a dense W: 64 kB of the multiprocessor. The ring of registers lives
// across the end of the loop, because loads that merely stand first in an unrolled loop are moved behind its products by ptxas,
// which prefers fewer registers (48 instead of 102, and two loads on their way).
#include "mma.cuh"
#include "weights.cuh"

constexpr uint32_t WARPS = 8;
constexpr uint32_t THREADS = WARPS * WARP_SIZE;
constexpr uint32_t BLOCK_ROWS = 16;
constexpr uint32_t MAX_ROWS = 16;
constexpr uint32_t PIECE = 32;
constexpr uint32_t IN_FLIGHT = 4;  // pieces of a warp

struct Shared {
    float sums[WARPS][BLOCK_ROWS][MAX_ROWS];
};

// What a lane needs of one piece, as it lies in memory: numbers are made of it when it is used, so that nothing waits before.
template <uint32_t FORMAT, uint32_t NUM_TILES>
struct Operands {
    Stored8<FORMAT> low, high;  // of W, rows g and g + 8
    uint4 x[NUM_TILES];
};

// Rows behind the last, of W and of x, are the last again: nobody reads what comes of them. Columns behind the last are zeros.
template <uint32_t FORMAT, uint32_t NUM_TILES>
__device__ __forceinline__ Operands<FORMAT, NUM_TILES> load(const LinearParams& params, uint32_t col) {
    const uint32_t g = threadIdx.x % WARP_SIZE / 4, row = blockIdx.x * BLOCK_ROWS + g;
    Operands<FORMAT, NUM_TILES> operands = {};
    if (col >= params.weight.cols) return operands;
    const uint32_t last_row = params.weight.rows - 1;
    operands.low = load_stored8<FORMAT>(params.weight, min(row, last_row), col);
    operands.high = load_stored8<FORMAT>(params.weight, min(row + 8, last_row), col);
#pragma unroll
    for (uint32_t tile = 0; tile < NUM_TILES; ++tile) {
        const uint32_t x_row = min(tile * 8 + g, params.num_rows - 1);
        operands.x[tile] = static_cast<const uint4*>(params.x)[(size_t(x_row) * params.weight.cols + col) / VECTOR];
    }
    return operands;
}

// Eight weights as T.
template <class T, uint32_t FORMAT>
__device__ __forceinline__ uint4 elements8(const Stored8<FORMAT>& stored, uint32_t col) {
    if constexpr (FORMAT == WEIGHT_DENSE) {
        return stored.numbers;
    } else {
        float values[VECTOR];
        decode8<T>(stored, col, values);
        return pack8<T>(values);
    }
}

template <class T, uint32_t FORMAT, uint32_t NUM_TILES>
__device__ __forceinline__ void add_products(const Operands<FORMAT, NUM_TILES>& operands, uint32_t col,
                                             float (&c)[NUM_TILES][4]) {
    const uint4 low = elements8<T>(operands.low, col), high = elements8<T>(operands.high, col);
#pragma unroll
    for (uint32_t tile = 0; tile < NUM_TILES; ++tile) {
        const uint4 x = operands.x[tile];
        mma_m16n8k16<T>(c[tile], {low.x, high.x, low.y, high.y}, {x.x, x.y});
        mma_m16n8k16<T>(c[tile], {low.z, high.z, low.w, high.w}, {x.z, x.w});
    }
}

// This warp's share of the columns, for NUM_TILES * 8 rows of x.
template <class T, uint32_t FORMAT, uint32_t NUM_TILES>
__device__ __forceinline__ void multiply(const LinearParams& params, float (&sums)[BLOCK_ROWS][MAX_ROWS]) {
    const uint32_t warp = threadIdx.x / WARP_SIZE, g = threadIdx.x % WARP_SIZE / 4, t = threadIdx.x % 4;
    constexpr uint32_t STRIDE = WARPS * PIECE;
    const uint32_t first = warp * PIECE, lane_col = t * VECTOR;
    float c[NUM_TILES][4] = {};
    Operands<FORMAT, NUM_TILES> operands[IN_FLIGHT];
#pragma unroll
    for (uint32_t index = 0; index < IN_FLIGHT; ++index) {
        operands[index] = load<FORMAT, NUM_TILES>(params, first + index * STRIDE + lane_col);
    }
    // Counted in pieces, not in columns: a product needs all lanes of a warp.
    for (uint32_t piece = first; piece < params.weight.cols; piece += IN_FLIGHT * STRIDE) {
#pragma unroll
        for (uint32_t index = 0; index < IN_FLIGHT; ++index) {
            const uint32_t col = piece + index * STRIDE + lane_col;
            add_products<T>(operands[index], col, c);
            operands[index] = load<FORMAT, NUM_TILES>(params, col + IN_FLIGHT * STRIDE);
        }
    }
#pragma unroll
    for (uint32_t tile = 0; tile < NUM_TILES; ++tile) {
#pragma unroll
        for (uint32_t index = 0; index < 4; ++index) {
            sums[g + index / 2 * 8][tile * 8 + 2 * t + index % 2] = c[tile][index];
        }
    }
}

template <class T>
__device__ void skinny_gemm(const LinearParams& params) {
    Shared& shared = shared_memory<Shared>();
    auto& sums = shared.sums[threadIdx.x / WARP_SIZE];
    with_format(params.weight.format, [&]<uint32_t FORMAT>() {
        if (params.num_rows <= 8) {
            multiply<T, FORMAT, 1>(params, sums);
        } else {
            multiply<T, FORMAT, 2>(params, sums);
        }
    });
    __syncthreads();
    const uint32_t weight_row = blockIdx.x * BLOCK_ROWS + threadIdx.x % BLOCK_ROWS;
    const uint32_t row = threadIdx.x / BLOCK_ROWS;
    if (row >= params.num_rows || weight_row >= params.weight.rows) return;
    float sum = 0;
#pragma unroll
    for (uint32_t warp = 0; warp < WARPS; ++warp) sum += shared.sums[warp][threadIdx.x % BLOCK_ROWS][row];
    if (params.bias) sum += params.bias[weight_row];
    const size_t place = size_t(row) * params.out_stride + weight_row;
    if (params.out_is_f32) {
        static_cast<float*>(params.out)[place] = sum;
    } else {
        static_cast<T*>(params.out)[place] = from_float<T>(sum);
    }
}

PAGODA_KERNEL(skinny_gemm_bf16, LinearParams, THREADS, sizeof(Shared)) { skinny_gemm<bf16>(params); }
PAGODA_KERNEL(skinny_gemm_f16, LinearParams, THREADS, sizeof(Shared)) { skinny_gemm<f16>(params); }
