// Causal attention of sequences with several query rows over their paged KV, this step's rows included (FlashAttention-2,
// arXiv 2307.08691, over block tables): the queries of a chunk attend to everything before them and to themselves.
//
//   grid.x   a tile of 64 query rows of one sequence, from the work list (longest first)
//   grid.y   one query head
//   block    4 warps of 16 rows; tiles of 64 keys (32 at head_dim 256), K and V double-buffered with cp.async
//
// Work: 4 * keys * head_dim FLOPs per row and head. Key tiles start at multiples of the tile from position 0, so a row's sums
// have one order whatever the chunk it came in. A row that sees nothing of a tile keeps its bits: p = 0 and the factor is 1.
#include "attention.cuh"

constexpr uint32_t WARPS = PREFILL_ROWS / 16;
constexpr uint32_t THREADS = WARPS * WARP_SIZE;

// At head_dim 256 a tile of 64 keys would need 165 KiB; SMs of sm_86, sm_89 and sm_120 have 99.
template <uint32_t HEAD_DIM>
constexpr uint32_t TILE_KEYS = HEAD_DIM == 256 ? 32 : 64;

template <class T, uint32_t HEAD_DIM>
struct Shared {
    T q[PREFILL_ROWS][ROW_STRIDE<HEAD_DIM>];
    T k[2][TILE_KEYS<HEAD_DIM>][ROW_STRIDE<HEAD_DIM>];
    T v[2][TILE_KEYS<HEAD_DIM>][ROW_STRIDE<HEAD_DIM>];
};

// This block's rows.
struct QueryTile {
    uint32_t sequence;
    uint32_t first_row;       // of the step
    uint32_t num_rows;        // 1..64
    uint32_t first_position;
    uint32_t context_len;
};

__device__ __forceinline__ QueryTile locate_tile(const PagedAttentionParams& params) {
    const AttentionWork work = params.work[blockIdx.x];
    const uint32_t start = params.query_starts[work.sequence];
    const uint32_t query_len = params.query_starts[work.sequence + 1] - start;
    const uint32_t first = work.index * PREFILL_ROWS;
    const uint32_t context_len = params.context_lens[work.sequence];
    return {work.sequence, start + first, min(query_len - first, PREFILL_ROWS), context_len - query_len + first, context_len};
}

template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void fetch_query(const PagedAttentionParams& params, const QueryTile& tile,
                                            Shared<T, HEAD_DIM>& shared) {
    constexpr uint32_t VECTORS = HEAD_DIM / VECTOR;
    const uint32_t width = (params.num_q_heads + 2 * params.kv.num_kv_heads) * HEAD_DIM;
    const T* q = static_cast<const T*>(params.qkv) + size_t(tile.first_row) * width + blockIdx.y * HEAD_DIM;
#pragma unroll
    for (uint32_t turn = 0; turn < PREFILL_ROWS * VECTORS / THREADS; ++turn) {
        const uint32_t vector = turn * THREADS + threadIdx.x;
        const uint32_t row = vector / VECTORS, channel = vector % VECTORS * VECTOR;
        const bool is_valid = row < tile.num_rows;
        copy_async16(&shared.q[row][channel], q + (is_valid ? size_t(row) * width + channel : 0), is_valid);
    }
}

// Starts the copies of K and V of one tile of keys; keys behind the context are zeros.
template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void fetch_keys(const PagedAttentionParams& params, const QueryTile& tile, uint32_t first_key,
                                           Shared<T, HEAD_DIM>& shared, uint32_t stage) {
    constexpr uint32_t VECTORS = HEAD_DIM / VECTOR;
    const uint32_t kv_head = blockIdx.y / (params.num_q_heads / params.kv.num_kv_heads);
    const uint32_t* table = params.block_tables + params.block_table_starts[tile.sequence];
    const uint32_t block_mask = (1u << params.kv.log2_block_size) - 1;
#pragma unroll
    for (uint32_t turn = 0; turn < TILE_KEYS<HEAD_DIM> * VECTORS / THREADS; ++turn) {
        const uint32_t vector = turn * THREADS + threadIdx.x;
        const uint32_t row = vector / VECTORS, channel = vector % VECTORS * VECTOR;
        const uint32_t key = first_key + row;
        const bool is_valid = key < tile.context_len;
        const uint32_t block = is_valid ? table[key >> params.kv.log2_block_size] : 0;
        const size_t offset = size_t(key & block_mask) * HEAD_DIM + channel;
        copy_async16(&shared.k[stage][row][channel], kv_tile<T>(params.kv, params.layer, block, KV_K, kv_head) + offset,
                     is_valid);
        copy_async16(&shared.v[stage][row][channel], kv_tile<T>(params.kv, params.layer, block, KV_V, kv_head) + offset,
                     is_valid);
    }
}

template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void store_rows(const PagedAttentionParams& params, const QueryTile& tile,
                                           RowState<HEAD_DIM>& state) {
    const uint32_t warp = threadIdx.x / WARP_SIZE, g = threadIdx.x % WARP_SIZE / 4, t = threadIdx.x % 4;
    sum_rows(state);
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = warp * 16 + g + 8 * half;
        if (row >= tile.num_rows) continue;
        const size_t place = size_t(tile.first_row + row) * params.num_q_heads + blockIdx.y;
        T* to = static_cast<T*>(params.out) + place * HEAD_DIM;
        const float factor = 1.0f / state.sum[half];
#pragma unroll
        for (uint32_t n = 0; n < HEAD_DIM / 8; ++n) {
            *reinterpret_cast<uint32_t*>(to + n * 8 + 2 * t) =
                pack2<T>(state.out[n][2 * half] * factor, state.out[n][2 * half + 1] * factor);
        }
    }
}

template <class T, uint32_t HEAD_DIM>
__device__ void paged_attention_prefill(const PagedAttentionParams& params) {
    constexpr uint32_t NUM_KEYS = TILE_KEYS<HEAD_DIM>;
    auto& shared = shared_memory<Shared<T, HEAD_DIM>>();
    const QueryTile tile = locate_tile(params);
    const uint32_t warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    const uint32_t position = tile.first_position + warp * 16 + lane / 4;
    const KeyRange range[2] = {visible_keys(position, params.window), visible_keys(position + 8, params.window)};
    const uint32_t first_tile = visible_keys(tile.first_position, params.window).first / NUM_KEYS;
    const uint32_t end_tile = (tile.first_position + tile.num_rows + NUM_KEYS - 1) / NUM_KEYS;
    const ScoreRule rule{params.scale, params.softcap};
    const T* q_row = &shared.q[warp * 16 + lane % 16][lane / 16 * VECTOR];
    auto load_q = [q_row](uint32_t step, uint32_t(&a)[4]) { ldmatrix_x4(a, q_row + step * 16); };

    fetch_query<T, HEAD_DIM>(params, tile, shared);
    fetch_keys<T, HEAD_DIM>(params, tile, first_tile * NUM_KEYS, shared, 0);
    copy_async_commit();
    RowState<HEAD_DIM> state;
    for (uint32_t index = first_tile; index < end_tile; ++index) {
        const uint32_t stage = (index - first_tile) % 2;
        if (index + 1 < end_tile) fetch_keys<T, HEAD_DIM>(params, tile, (index + 1) * NUM_KEYS, shared, 1 - stage);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        float scores[NUM_KEYS / 8][4];
        score_keys<T, HEAD_DIM, NUM_KEYS>(scores, &shared.k[stage][0][0], load_q);
        soften<HEAD_DIM, NUM_KEYS>(scores, state, rule, range, index * NUM_KEYS);
        weigh_values<T, HEAD_DIM, NUM_KEYS>(state, scores, &shared.v[stage][0][0]);
        // The next turn fills this stage.
        __syncthreads();
    }
    copy_async_wait<0>();
    store_rows<T, HEAD_DIM>(params, tile, state);
}

#define PREFILL(T, HEAD_DIM)                                                                   \
    PAGODA_KERNEL(paged_attention_prefill_##T##_d##HEAD_DIM, PagedAttentionParams, THREADS, \
                  (sizeof(Shared<T, HEAD_DIM>))) { \
        paged_attention_prefill<T, HEAD_DIM>(params);                                          \
    }
PREFILL(bf16, 64)
PREFILL(bf16, 96)
PREFILL(bf16, 128)
PREFILL(bf16, 256)
PREFILL(f16, 64)
PREFILL(f16, 96)
PREFILL(f16, 128)
PREFILL(f16, 256)
