// out[n] = x[n] W^T + bias for at most 16 rows of x: as fast as W streams from memory. W dense or in a block format, whose
// weights become numbers in registers.
//
//   grid.x   16 rows of W
//   block    8 warps, which take the pieces of 32 columns in turn and are added up in order
//
// W is the A operand of m16n8k16 (its 16 rows are M), the rows of x are N: one product serves 8 rows of x, whose other places
// are zeros. A product does not care which column is which as long as A and B agree, so a lane reads eight neighbouring
// columns at once (16 bytes of a dense row) and calls them the columns 2t, 2t + 1, 2t + 8, 2t + 9 of two products.
// Nothing goes through shared memory but the sums. Bytes: W once; x from L2 once per block.
#include "mma.cuh"
#include "weights.cuh"

constexpr uint32_t WARPS = 8;
constexpr uint32_t THREADS = WARPS * WARP_SIZE;
constexpr uint32_t BLOCK_ROWS = 16;
constexpr uint32_t MAX_ROWS = 16;
constexpr uint32_t PIECE = 32;

struct Shared {
    float sums[WARPS][BLOCK_ROWS][MAX_ROWS];
};

// Eight neighbouring weights as T.
template <class T, uint32_t FORMAT>
__device__ __forceinline__ uint4 weights8(const WeightView& weight, uint32_t row, uint32_t col) {
    if (row >= weight.rows || col >= weight.cols) return make_uint4(0, 0, 0, 0);
    if constexpr (FORMAT == WEIGHT_DENSE) {
        return *reinterpret_cast<const uint4*>(static_cast<const T*>(weight.codes) + size_t(row) * weight.cols + col);
    } else {
        float values[VECTOR];
        load_weights8<T, FORMAT>(weight, row, col, values);
        return pack8<T>(values);
    }
}

template <class T>
__device__ __forceinline__ uint4 inputs8(const LinearParams& params, uint32_t row, uint32_t col) {
    if (row >= params.num_rows || col >= params.weight.cols) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(static_cast<const T*>(params.x) + size_t(row) * params.weight.cols + col);
}

// This warp's share of the columns, for NUM_TILES * 8 rows of x.
template <class T, uint32_t FORMAT, uint32_t NUM_TILES>
__device__ __forceinline__ void multiply(const LinearParams& params, float (&sums)[BLOCK_ROWS][MAX_ROWS]) {
    const uint32_t warp = threadIdx.x / WARP_SIZE, g = threadIdx.x % WARP_SIZE / 4, t = threadIdx.x % 4;
    const uint32_t row = blockIdx.x * BLOCK_ROWS + g;
    float c[NUM_TILES][4] = {};
    for (uint32_t piece = warp * PIECE; piece < params.weight.cols; piece += WARPS * PIECE) {
        const uint32_t col = piece + t * VECTOR;
        const uint4 low = weights8<T, FORMAT>(params.weight, row, col);
        const uint4 high = weights8<T, FORMAT>(params.weight, row + 8, col);
#pragma unroll
        for (uint32_t tile = 0; tile < NUM_TILES; ++tile) {
            const uint4 x = inputs8<T>(params, tile * 8 + g, col);
            mma_m16n8k16<T>(c[tile], {low.x, high.x, low.y, high.y}, {x.x, x.y});
            mma_m16n8k16<T>(c[tile], {low.z, high.z, low.w, high.w}, {x.z, x.w});
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
