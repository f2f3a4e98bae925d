// The prefill attention of paged_attention_prefill.cu for sm_90a: products by wgmma, K and V by TMA, loads and arithmetic in
// different warps (FlashAttention-3, arXiv 2407.08608). The same online softmax over the same order of keys.
//
//   grid.x   a tile of 128 query rows of one sequence, from the work list (longest first)
//   grid.y   one query head
//   block    3 warpgroups: the first fetches tiles of 128 keys (one thread starts the copies), the others have 64 rows each
//
//   barriers of a stage, of two:   k_full, v_full   the copies have arrived
//                                  empty            eight warps have read K and V
//
// A copy brings 16 slots x 64 channels, the part of one block of the cache that the swizzle of 128 bytes takes. So the cache
// is seen as one matrix [slots of all tiles, head_dim], and any block size of 16 or a multiple will do. Q stays in registers:
// 32 at head_dim 128, and no copy of it in another layout. Both products wait for their end before the registers are touched;
// the two consumer groups overlap each other's softmax and products.
//
// Not the default before it has run on a device. Elsewhere than on sm_90a the kernels are empty and trap.
#include "hopper.cuh"
#include "prefill.cuh"

constexpr uint32_t GROUP = 128;  // threads of a warpgroup
constexpr uint32_t CONSUMERS = 2;
constexpr uint32_t THREADS = (1 + CONSUMERS) * GROUP;
constexpr uint32_t GROUP_ROWS = WGMMA_PREFILL_ROWS / CONSUMERS;
constexpr uint32_t TILE_KEYS = 128;
constexpr uint32_t STAGES = 2;
// 168 registers per thread to begin with; 128 x 40 + 256 x 232 of 65,536.
constexpr uint32_t PRODUCER_REGISTERS = 40;
constexpr uint32_t CONSUMER_REGISTERS = 232;

// A tile of keys (or values): panels of 64 channels, 128 bytes a row, swizzled.
template <class T, uint32_t HEAD_DIM>
struct Tile {
    T panels[HEAD_DIM / PANEL_COLS][TILE_KEYS][PANEL_COLS];
};

template <class T, uint32_t HEAD_DIM>
struct alignas(1024) Shared {
    Tile<T, HEAD_DIM> k[STAGES];
    Tile<T, HEAD_DIM> v[STAGES];
    Mbarrier k_full[STAGES];
    Mbarrier v_full[STAGES];
    Mbarrier empty[STAGES];
    Mbarrier cleaned;  // the values behind the context are zeros
};

// The tiles of keys that a block reads.
struct KeyTiles {
    uint32_t first, end;
};

// Starts the copies of the slots of one tile that hold keys of the sequence; `which` is KV_K or KV_V.
template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void fetch_tile(const WgmmaPrefillParams& params, const QueryTile& tile, uint32_t first_key,
                                           uint32_t which, Tile<T, HEAD_DIM>& to, Mbarrier& full) {
    const PagedAttentionParams& attention = params.attention;
    const KvView& kv = attention.kv;
    const uint32_t kv_head = blockIdx.y / (attention.num_q_heads / kv.num_kv_heads);
    const uint32_t* table = attention.block_tables + attention.block_table_starts[tile.sequence];
    const uint32_t num_boxes = (min(tile.context_len - first_key, TILE_KEYS) + BOX_ROWS - 1) / BOX_ROWS;
    mbarrier_expect(full, num_boxes * BOX_ROWS * HEAD_DIM * sizeof(T));
    for (uint32_t box = 0; box < num_boxes; ++box) {
        const uint32_t key = first_key + box * BOX_ROWS;
        const uint32_t block = table[key >> kv.log2_block_size];
        const size_t head_tile = ((size_t(attention.layer) * kv.num_blocks + block) * 2 + which) * kv.num_kv_heads + kv_head;
        const size_t slot = (head_tile << kv.log2_block_size) + (key & ((1u << kv.log2_block_size) - 1));
#pragma unroll
        for (uint32_t panel = 0; panel < HEAD_DIM / PANEL_COLS; ++panel) {
            tensor_copy(&to.panels[panel][box * BOX_ROWS][0], params.kv_map, int32_t(panel * PANEL_COLS), int32_t(slot), full);
        }
    }
}

template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void produce(const WgmmaPrefillParams& params, const QueryTile& tile, KeyTiles tiles,
                                        Shared<T, HEAD_DIM>& shared) {
    lower_registers<PRODUCER_REGISTERS>();
    if (threadIdx.x != 0) return;
    for (uint32_t turn = 0; turn < tiles.end - tiles.first; ++turn) {
        const uint32_t stage = turn % STAGES, first_key = (tiles.first + turn) * TILE_KEYS;
        // The first time round nobody has to leave.
        mbarrier_wait(shared.empty[stage], turn / STAGES % 2 ^ 1);
        fetch_tile<T, HEAD_DIM>(params, tile, first_key, KV_K, shared.k[stage], shared.k_full[stage]);
        fetch_tile<T, HEAD_DIM>(params, tile, first_key, KV_V, shared.v[stage], shared.v_full[stage]);
    }
}

// The A fragments of this warp's rows of Q; rows behind the tile's are zeros.
template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void load_query(const PagedAttentionParams& params, const QueryTile& tile, uint32_t first_row,
                                           uint32_t (&q)[HEAD_DIM / 16][4]) {
    const uint32_t g = threadIdx.x % WARP_SIZE / 4, t = threadIdx.x % 4;
    const uint32_t width = (params.num_q_heads + 2 * params.kv.num_kv_heads) * HEAD_DIM;
    const T* rows = static_cast<const T*>(params.qkv) + size_t(tile.first_row) * width + blockIdx.y * HEAD_DIM;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = first_row + g + 8 * half;
        const auto* pairs = reinterpret_cast<const uint32_t*>(rows + size_t(row) * width);
#pragma unroll
        for (uint32_t step = 0; step < HEAD_DIM / 16; ++step) {
            q[step][half] = row < tile.num_rows ? pairs[step * 8 + t] : 0;
            q[step][half + 2] = row < tile.num_rows ? pairs[step * 8 + t + 4] : 0;
        }
    }
}

// Zeros in place of values behind the context, which were never written: 0 * NaN is NaN. By all consumers together.
template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void clean_values(uint32_t num_valid, Tile<T, HEAD_DIM>& v, Mbarrier& cleaned) {
    constexpr uint32_t VECTORS = PANEL_COLS / VECTOR;  // of a row of a panel; a row's vectors are swizzled among themselves
    for (uint32_t panel = 0; panel < HEAD_DIM / PANEL_COLS; ++panel) {
        const uint32_t end = TILE_KEYS * VECTORS;
        for (uint32_t vector = num_valid * VECTORS + threadIdx.x - GROUP; vector < end; vector += CONSUMERS * GROUP) {
            reinterpret_cast<uint4*>(&v.panels[panel][0][0])[vector] = make_uint4(0, 0, 0, 0);
        }
    }
    fence_async_proxy();
    __syncwarp();
    if (threadIdx.x % WARP_SIZE == 0) mbarrier_arrive(cleaned);
    mbarrier_wait(cleaned, 0);
}

template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void score_tile(float (&scores)[TILE_KEYS / 8][4], uint32_t (&q)[HEAD_DIM / 16][4],
                                           const Tile<T, HEAD_DIM>& k) {
    wgmma_begin(scores);
#pragma unroll
    for (uint32_t step = 0; step < HEAD_DIM / 16; ++step) {
        // Rows of K are the columns of the product: no transposition; eight rows lie 1,024 bytes apart from the next.
        const T* from = &k.panels[step / (PANEL_COLS / 16)][0][step % (PANEL_COLS / 16) * 16];
        wgmma_m64k16<T, TILE_KEYS, false>(scores, q[step], {from, 16, 1024}, step > 0);
    }
    wgmma_end(scores);
}

template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void weigh_tile(RowState<HEAD_DIM>& state, const float (&p)[TILE_KEYS / 8][4],
                                           const Tile<T, HEAD_DIM>& v) {
    uint32_t a[TILE_KEYS / 16][4];
#pragma unroll
    for (uint32_t step = 0; step < TILE_KEYS / 16; ++step) {
        const Probabilities<T> p_step(p[2 * step], p[2 * step + 1]);
#pragma unroll
        for (uint32_t index = 0; index < 4; ++index) a[step][index] = p_step.a[index];
    }
    wgmma_begin(state.out);
#pragma unroll
    for (uint32_t step = 0; step < TILE_KEYS / 16; ++step) {
        // Channels lie next to each other: transposed; the next 64 are in the next panel.
        wgmma_m64k16<T, HEAD_DIM, true>(state.out, a[step], {&v.panels[0][step * 16][0], sizeof(v.panels[0]), 1024}, true);
    }
    wgmma_end(state.out);
}

template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void consume(const WgmmaPrefillParams& params, const QueryTile& tile, KeyTiles tiles,
                                        Shared<T, HEAD_DIM>& shared) {
    raise_registers<CONSUMER_REGISTERS>();
    const PagedAttentionParams& attention = params.attention;
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    const uint32_t group_row = (threadIdx.x / GROUP - 1) * GROUP_ROWS;
    const uint32_t first_row = group_row + threadIdx.x % GROUP / WARP_SIZE * 16;
    const uint32_t position = tile.first_position + first_row + lane / 4;
    const KeyRange range[2] = {visible_keys(position, attention.window), visible_keys(position + 8, attention.window)};
    const ScoreRule rule{attention.scale, attention.softcap};
    // Behind the last key that a row of this group sees.
    const uint32_t group_end = group_row < tile.num_rows ? tile.first_position + min(group_row + GROUP_ROWS, tile.num_rows) : 0;
    uint32_t q[HEAD_DIM / 16][4];
    load_query<T, HEAD_DIM>(attention, tile, first_row, q);
    RowState<HEAD_DIM> state;
    for (uint32_t turn = 0; turn < tiles.end - tiles.first; ++turn) {
        const uint32_t stage = turn % STAGES, parity = turn / STAGES % 2;
        const uint32_t first_key = (tiles.first + turn) * TILE_KEYS;
        mbarrier_wait(shared.k_full[stage], parity);
        float scores[TILE_KEYS / 8][4];
        if (first_key < group_end) {
            score_tile<T, HEAD_DIM>(scores, q, shared.k[stage]);
            soften<HEAD_DIM, TILE_KEYS>(scores, state, rule, range, first_key);
        }
        mbarrier_wait(shared.v_full[stage], parity);
        if (first_key + TILE_KEYS > tile.context_len) {
            clean_values<T, HEAD_DIM>(tile.context_len - first_key, shared.v[stage], shared.cleaned);
        }
        if (first_key < group_end) weigh_tile<T, HEAD_DIM>(state, scores, shared.v[stage]);
        // All lanes have seen this phase of the barriers: a lane that came after the next one would wait for ever.
        __syncwarp();
        if (lane == 0) mbarrier_arrive(shared.empty[stage]);
    }
    store_rows<T, T, HEAD_DIM>(attention, tile, first_row, state);
}

template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void paged_attention_prefill_wgmma(const WgmmaPrefillParams& params) {
    auto& shared = shared_memory<Shared<T, HEAD_DIM>>();
    const QueryTile tile = locate_tile<WGMMA_PREFILL_ROWS>(params.attention);
    const KeyTiles tiles{visible_keys(tile.first_position, params.attention.window).first / TILE_KEYS,
                         (tile.first_position + tile.num_rows + TILE_KEYS - 1) / TILE_KEYS};
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < STAGES; ++stage) {
            mbarrier_init(shared.k_full[stage], 1);
            mbarrier_init(shared.v_full[stage], 1);
            mbarrier_init(shared.empty[stage], CONSUMERS * GROUP / WARP_SIZE);
        }
        mbarrier_init(shared.cleaned, CONSUMERS * GROUP / WARP_SIZE);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        produce<T, HEAD_DIM>(params, tile, tiles, shared);
    } else {
        consume<T, HEAD_DIM>(params, tile, tiles, shared);
    }
}

#if defined(PAGODA_SIMT) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BODY(T, HEAD_DIM) paged_attention_prefill_wgmma<T, HEAD_DIM>(params)
#else
#define BODY(T, HEAD_DIM) __trap()
#endif

#define WGMMA_PREFILL(T, HEAD_DIM)                                                                   \
    PAGODA_KERNEL(paged_attention_prefill_wgmma_##T##_d##HEAD_DIM, WgmmaPrefillParams, THREADS, \
                  (sizeof(Shared<T, HEAD_DIM>))) {                                              \
        BODY(T, HEAD_DIM);                                                                      \
    }
WGMMA_PREFILL(bf16, 64)
WGMMA_PREFILL(bf16, 128)
WGMMA_PREFILL(f16, 64)
WGMMA_PREFILL(f16, 128)
