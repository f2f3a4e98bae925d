// Causal attention of sequences with several query rows over their paged KV, this step's rows included (FlashAttention-2,
// arXiv 2307.08691, over block tables): the queries of a chunk attend to everything before them and to themselves.
//
//   grid.x   a tile of 64 query rows of one sequence, from the work list (longest first)
//   grid.y   one query head
//   block    4 warps of 16 rows; tiles of 64 keys (32 at head_dim 256), K and V double-buffered with cp.async
//
// Work: 4 * keys * head_dim FLOPs per row and head. Key tiles start at multiples of the tile from position 0, so a row's sums
// have one order whatever the chunk it came in. A row that sees nothing of a tile keeps its bits: p = 0 and the factor is 1.
#include "prefill.cuh"

constexpr uint32_t WARPS = PREFILL_ROWS / 16;
constexpr uint32_t THREADS = WARPS * WARP_SIZE;

// At head_dim 256 a tile of 64 keys would need 165 KiB; SMs of sm_86, sm_89 and sm_120 have 99.
template <uint32_t HEAD_DIM>
constexpr uint32_t TILE_KEYS = HEAD_DIM == 256 ? 32 : 64;

template <class T, class Kv, uint32_t HEAD_DIM>
struct Shared {
    T q[PREFILL_ROWS][Q_STRIDE<HEAD_DIM, Kv>];
    KvTile<Kv, HEAD_DIM, TILE_KEYS<HEAD_DIM>> k[2];
    KvTile<Kv, HEAD_DIM, TILE_KEYS<HEAD_DIM>> v[2];
};

template <class T, class Kv, uint32_t HEAD_DIM>
__device__ __forceinline__ void fetch_query(const PagedAttentionParams& params, const QueryTile& tile,
                                            Shared<T, Kv, HEAD_DIM>& shared) {
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
template <class T, class Kv, uint32_t HEAD_DIM>
__device__ __forceinline__ void fetch_keys(const PagedAttentionParams& params, const QueryTile& tile, uint32_t first_key,
                                           Shared<T, Kv, HEAD_DIM>& shared, uint32_t stage) {
    constexpr uint32_t PIECE = 16 / sizeof(Kv);    // channels of one copy
    constexpr uint32_t PIECES = HEAD_DIM / PIECE;  // of a key
    const uint32_t kv_head = blockIdx.y / (params.num_q_heads / params.kv.num_kv_heads);
    const uint32_t* table = params.block_tables + params.block_table_starts[tile.sequence];
    const uint32_t block_mask = (1u << params.kv.log2_block_size) - 1;
#pragma unroll
    for (uint32_t turn = 0; turn < TILE_KEYS<HEAD_DIM> * PIECES / THREADS; ++turn) {
        const uint32_t piece = turn * THREADS + threadIdx.x;
        const uint32_t row = piece / PIECES, channel = piece % PIECES * PIECE;
        const uint32_t key = first_key + row;
        const bool is_valid = key < tile.context_len;
        const uint32_t block = is_valid ? table[key >> params.kv.log2_block_size] : 0;
        const size_t offset = size_t(key & block_mask) * HEAD_DIM + channel;
        copy_async16(&shared.k[stage].rows[row][channel],
                     kv_tile<Kv>(params.kv, params.layer, block, KV_K, kv_head) + offset, is_valid);
        copy_async16(&shared.v[stage].rows[row][channel],
                     kv_tile<Kv>(params.kv, params.layer, block, KV_V, kv_head) + offset, is_valid);
    }
    if constexpr (IS_E4M3<Kv>) {
        // A thread per group of scales.
        const uint32_t row = threadIdx.x / 2 * SCALE_GROUP, which = threadIdx.x % 2 ? KV_V : KV_K;
        if (row >= TILE_KEYS<HEAD_DIM>) return;
        const uint32_t key = first_key + row;
        const uint32_t num_valid = key < tile.context_len ? min(tile.context_len - key, SCALE_GROUP) : 0;
        const uint32_t block = num_valid > 0 ? table[key >> params.kv.log2_block_size] : 0;
        auto& to = which == KV_K ? shared.k[stage] : shared.v[stage];
        const Kv* from = kv_tile<Kv>(params.kv, params.layer, block, which, kv_head);
        copy_async_part16(&to.scales[row], kv_scales(params.kv, from) + (key & block_mask), num_valid);
    }
}

template <class T, class Kv, uint32_t HEAD_DIM>
__device__ void paged_attention_prefill(const PagedAttentionParams& params) {
    constexpr uint32_t NUM_KEYS = TILE_KEYS<HEAD_DIM>;
    auto& shared = shared_memory<Shared<T, Kv, HEAD_DIM>>();
    const QueryTile tile = locate_tile<PREFILL_ROWS>(params);
    const uint32_t warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    const uint32_t position = tile.first_position + warp * 16 + lane / 4;
    const KeyRange range[2] = {visible_keys(position, params.window), visible_keys(position + 8, params.window)};
    const uint32_t first_tile = visible_keys(tile.first_position, params.window).first / NUM_KEYS;
    const uint32_t end_tile = (tile.first_position + tile.num_rows + NUM_KEYS - 1) / NUM_KEYS;
    const ScoreRule rule{params.scale, params.softcap};

    fetch_query<T, Kv, HEAD_DIM>(params, tile, shared);
    fetch_keys<T, Kv, HEAD_DIM>(params, tile, first_tile * NUM_KEYS, shared, 0);
    copy_async_commit();
    RowState<HEAD_DIM> state;
    for (uint32_t index = first_tile; index < end_tile; ++index) {
        const uint32_t stage = (index - first_tile) % 2;
        if (index + 1 < end_tile) fetch_keys<T, Kv, HEAD_DIM>(params, tile, (index + 1) * NUM_KEYS, shared, 1 - stage);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        float scores[NUM_KEYS / 8][4];
        score_keys<T, HEAD_DIM, NUM_KEYS>(scores, &shared.q[warp * 16][0], shared.k[stage]);
        soften<HEAD_DIM, NUM_KEYS>(scores, state, rule, range, index * NUM_KEYS);
        weigh_values<T, HEAD_DIM, NUM_KEYS>(state, scores, shared.v[stage]);
        // The next turn fills this stage.
        __syncthreads();
    }
    copy_async_wait<0>();
    store_rows<T, Kv, HEAD_DIM>(params, tile, warp * 16, state);
}

#define PREFILL(T, KV, KIND, HEAD_DIM)                                                          \
    PAGODA_KERNEL(paged_attention_prefill_##KIND##_d##HEAD_DIM, PagedAttentionParams, THREADS, \
                  (sizeof(Shared<T, KV, HEAD_DIM>))) {                                         \
        paged_attention_prefill<T, KV, HEAD_DIM>(params);                                      \
    }
PREFILL(bf16, bf16, bf16, 64)
PREFILL(bf16, bf16, bf16, 96)
PREFILL(bf16, bf16, bf16, 128)
PREFILL(bf16, bf16, bf16, 256)
PREFILL(f16, f16, f16, 64)
PREFILL(f16, f16, f16, 96)
PREFILL(f16, f16, f16, 128)
PREFILL(f16, f16, f16, 256)
PREFILL(bf16, e4m3, e4m3_bf16, 64)
PREFILL(bf16, e4m3, e4m3_bf16, 96)
PREFILL(bf16, e4m3, e4m3_bf16, 128)
PREFILL(bf16, e4m3, e4m3_bf16, 256)
PREFILL(f16, e4m3, e4m3_f16, 64)
PREFILL(f16, e4m3, e4m3_f16, 96)
PREFILL(f16, e4m3, e4m3_f16, 128)
PREFILL(f16, e4m3, e4m3_f16, 256)
