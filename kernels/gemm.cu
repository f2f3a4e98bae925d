// out[n] = x[n] W^T + bias for any number of rows, W dense: one tile size and no split of the columns, so that a row of the
// output has the same bits whatever the others are. It is the deterministic setting, and what there is without cuBLASLt.
//
//   grid.x   128 rows of W       grid.y   128 rows of x
//   block    8 warps, 2 x 4: each 64 rows of x by 32 rows of W; three stages of 32 columns with cp.async
//
// Work: 2 * rows * cols FLOPs per row of x. Both operands have their columns next to each other, which is what the fragments
// of m16n8k16 "row.col" want: plain ldmatrix for both.
#include "mma.cuh"

constexpr uint32_t WARPS = 8;
constexpr uint32_t THREADS = WARPS * WARP_SIZE;
constexpr uint32_t TILE = 128;
constexpr uint32_t STEP = 32;
constexpr uint32_t STAGES = 3;
// 80 bytes: eight rows of ldmatrix start in eight different groups of banks.
constexpr uint32_t STRIDE = STEP + VECTOR;
constexpr uint32_t WARP_ROWS = 64;
constexpr uint32_t WARP_COLS = 32;

struct Stage {
    uint16_t x[TILE][STRIDE];
    uint16_t w[TILE][STRIDE];
};

struct Shared {
    Stage stages[STAGES];
};

// Starts the copies of columns `first_col .. first_col + 32` of both tiles; what lies outside the matrices is zero.
__device__ __forceinline__ void fetch(const LinearParams& params, uint32_t first_col, Stage& stage) {
    constexpr uint32_t VECTORS = STEP / VECTOR;  // of a row
    const auto* x = static_cast<const uint16_t*>(params.x);
    const auto* w = static_cast<const uint16_t*>(params.weight.codes);
#pragma unroll
    for (uint32_t turn = 0; turn < TILE * VECTORS / THREADS; ++turn) {
        const uint32_t vector = turn * THREADS + threadIdx.x;
        const uint32_t row = vector / VECTORS, offset = vector % VECTORS * VECTOR;
        const uint32_t col = first_col + offset;
        const uint32_t x_row = blockIdx.y * TILE + row, w_row = blockIdx.x * TILE + row;
        const bool has_x = x_row < params.num_rows && col < params.weight.cols;
        const bool has_w = w_row < params.weight.rows && col < params.weight.cols;
        copy_async16(&stage.x[row][offset], x + (has_x ? size_t(x_row) * params.weight.cols + col : 0), has_x);
        copy_async16(&stage.w[row][offset], w + (has_w ? size_t(w_row) * params.weight.cols + col : 0), has_w);
    }
}

// This warp's 64 x 32 products of one stage.
template <class T>
__device__ __forceinline__ void multiply(const Stage& stage, float (&c)[WARP_ROWS / 16][WARP_COLS / 8][4]) {
    const uint32_t warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    const uint32_t first_row = warp / 4 * WARP_ROWS, first_col = warp % 4 * WARP_COLS;
#pragma unroll
    for (uint32_t step = 0; step < STEP; step += 16) {
        uint32_t a[WARP_ROWS / 16][4], b[WARP_COLS / 16][4];
#pragma unroll
        for (uint32_t m = 0; m < WARP_ROWS / 16; ++m) {
            ldmatrix_x4(a[m], &stage.x[first_row + m * 16 + lane % 16][step + lane / 16 * VECTOR]);
        }
#pragma unroll
        for (uint32_t n = 0; n < WARP_COLS / 16; ++n) {
            ldmatrix_x4(b[n], &stage.w[first_col + n * 16 + lane % 8 + lane / 16 * 8][step + lane / 8 % 2 * VECTOR]);
        }
#pragma unroll
        for (uint32_t m = 0; m < WARP_ROWS / 16; ++m) {
#pragma unroll
            for (uint32_t n = 0; n < WARP_COLS / 8; ++n) {
                mma_m16n8k16<T>(c[m][n], a[m], {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]});
            }
        }
    }
}

template <class T>
__device__ __forceinline__ void store(const LinearParams& params, const float (&c)[WARP_ROWS / 16][WARP_COLS / 8][4]) {
    const uint32_t warp = threadIdx.x / WARP_SIZE, g = threadIdx.x % WARP_SIZE / 4, t = threadIdx.x % 4;
#pragma unroll
    for (uint32_t m = 0; m < WARP_ROWS / 16; ++m) {
#pragma unroll
        for (uint32_t n = 0; n < WARP_COLS / 8; ++n) {
#pragma unroll
            for (uint32_t index = 0; index < 4; ++index) {
                const uint32_t row = blockIdx.y * TILE + warp / 4 * WARP_ROWS + m * 16 + g + index / 2 * 8;
                const uint32_t col = blockIdx.x * TILE + warp % 4 * WARP_COLS + n * 8 + 2 * t + index % 2;
                if (row >= params.num_rows || col >= params.weight.rows) continue;
                const float sum = c[m][n][index] + (params.bias ? params.bias[col] : 0.0f);
                const size_t place = size_t(row) * params.out_stride + col;
                if (params.out_is_f32) {
                    static_cast<float*>(params.out)[place] = sum;
                } else {
                    static_cast<T*>(params.out)[place] = from_float<T>(sum);
                }
            }
        }
    }
}

template <class T>
__device__ void gemm(const LinearParams& params) {
    Shared& shared = shared_memory<Shared>();
    const uint32_t num_steps = (params.weight.cols + STEP - 1) / STEP;
#pragma unroll
    for (uint32_t step = 0; step < STAGES - 1; ++step) {
        if (step < num_steps) fetch(params, step * STEP, shared.stages[step]);
        copy_async_commit();
    }
    float c[WARP_ROWS / 16][WARP_COLS / 8][4] = {};
    for (uint32_t step = 0; step < num_steps; ++step) {
        copy_async_wait<STAGES - 2>();
        // Everyone's copies have arrived, and everyone has read the stage that is filled next.
        __syncthreads();
        const uint32_t next = step + STAGES - 1;
        if (next < num_steps) fetch(params, next * STEP, shared.stages[next % STAGES]);
        copy_async_commit();
        multiply<T>(shared.stages[step % STAGES], c);
    }
    copy_async_wait<0>();
    store<T>(params, c);
}

PAGODA_KERNEL(gemm_bf16, LinearParams, THREADS, sizeof(Shared)) { gemm<bf16>(params); }
PAGODA_KERNEL(gemm_f16, LinearParams, THREADS, sizeof(Shared)) { gemm<f16>(params); }
