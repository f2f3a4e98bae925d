// What the two prefill kernels share: which rows a block has, and where its sums go.
#pragma once

#include "attention.cuh"

// This block's rows.
struct QueryTile {
    uint32_t sequence;
    uint32_t first_row;       // of the step
    uint32_t num_rows;        // 1..the tile's
    uint32_t first_position;
    uint32_t context_len;
};

// The block's entry of the work list, which counts in tiles of TILE_ROWS.
template <uint32_t TILE_ROWS>
__device__ __forceinline__ QueryTile locate_tile(const PagedAttentionParams& params) {
    const AttentionWork work = params.work[blockIdx.x];
    const uint32_t start = params.query_starts[work.sequence];
    const uint32_t query_len = params.query_starts[work.sequence + 1] - start;
    const uint32_t first = work.index * TILE_ROWS;
    const uint32_t context_len = params.context_lens[work.sequence];
    return {work.sequence, start + first, min(query_len - first, TILE_ROWS), context_len - query_len + first, context_len};
}

// This warp's 16 rows, from `first_row` of the tile on, divided by their sums.
template <class T, class Kv, uint32_t HEAD_DIM>
__device__ __forceinline__ void store_rows(const PagedAttentionParams& params, const QueryTile& tile, uint32_t first_row,
                                           RowState<HEAD_DIM>& state) {
    const uint32_t g = threadIdx.x % WARP_SIZE / 4;
    sum_rows(state);
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = first_row + g + 8 * half;
        if (row >= tile.num_rows) continue;
        const size_t place = size_t(tile.first_row + row) * params.num_q_heads + blockIdx.y;
        T* to = static_cast<T*>(params.out) + place * HEAD_DIM;
        const float factor = 1.0f / state.sum[half];
#pragma unroll
        for (uint32_t n = 0; n < HEAD_DIM / 8; n += 2) {
            const float(&even)[4] = state.out[n];
            const float(&odd)[4] = state.out[n + 1];
            if constexpr (IS_E4M3<Kv>) {
                *reinterpret_cast<uint2*>(to + channel_of<Kv>(n, 0)) =
                    make_uint2(pack2<T>(even[2 * half] * factor, odd[2 * half] * factor),
                               pack2<T>(even[2 * half + 1] * factor, odd[2 * half + 1] * factor));
            } else {
                *reinterpret_cast<uint32_t*>(to + channel_of<Kv>(n, 0)) =
                    pack2<T>(even[2 * half] * factor, even[2 * half + 1] * factor);
                *reinterpret_cast<uint32_t*>(to + channel_of<Kv>(n + 1, 0)) =
                    pack2<T>(odd[2 * half] * factor, odd[2 * half + 1] * factor);
            }
        }
    }
}
