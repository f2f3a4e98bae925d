// Attention of sequences with one query row over their paged KV (PagedAttention, arXiv 2309.06180; split keys as in
// Flash-Decoding): out = softmax(scale Q K^T) V, keys read through the block table.
//
//   grid.x   one split of DECODE_SPLIT_KEYS keys of one sequence, from the work list
//   grid.y   one KV head, times groups of 16 of its query heads
//   block    4 warps (2 at head_dim 256); warp w takes the steps w, w + 4, .. of 16 keys of the split
//
//   split     |............................. 256 keys .............................|
//   step      |0: 16 keys|1         |2         |3         |4         | ..
//   warp       0          1          2          3          0
//
// The query heads that share a KV head are the rows of the m16n8k16 product (a product per head on the CUDA cores reaches
// half of the bandwidth with GQA), so each key is read once per KV head. A step of 16 keys lies in one block of the cache
// and is contiguous; every warp runs its own pipeline of STAGES steps with cp.async and needs no barrier in the loop.
// Bytes: K and V of the context once. Splits start at multiples of 256 keys from position 0 and steps go to warps by their
// position, so the order of every sum depends on the sequence alone. The block that arrives last adds up the splits: a
// second kernel would cost a launch.
#include "attention.cuh"

constexpr uint32_t STEP_KEYS = 16;

// Warps and stages: about 64 KiB, so that three blocks fit an SM with 228 KiB and one fits every SM since sm_80.
template <uint32_t HEAD_DIM>
constexpr uint32_t WARPS = HEAD_DIM == 256 ? 2 : 4;
template <uint32_t HEAD_DIM>
constexpr uint32_t STAGES = HEAD_DIM == 64 ? 4 : HEAD_DIM == 96 ? 3 : 2;

template <class Kv, uint32_t HEAD_DIM>
struct Stage {
    KvTile<Kv, HEAD_DIM, STEP_KEYS> k;
    KvTile<Kv, HEAD_DIM, STEP_KEYS> v;
};

// What the warps have gathered, before they are added up.
template <uint32_t HEAD_DIM>
struct Gathered {
    float out[WARPS<HEAD_DIM>][DECODE_HEADS][HEAD_DIM];
    float maximum[WARPS<HEAD_DIM>][DECODE_HEADS];
    float sum[WARPS<HEAD_DIM>][DECODE_HEADS];
};

template <class T, class Kv, uint32_t HEAD_DIM>
struct Shared {
    T q[DECODE_HEADS][Q_STRIDE<HEAD_DIM, Kv>];
    union {
        Stage<Kv, HEAD_DIM> stages[WARPS<HEAD_DIM>][STAGES<HEAD_DIM>];
        Gathered<HEAD_DIM> gathered;
    };
    uint32_t is_last;
};

// This block's part of the work.
struct Split {
    uint32_t sequence, row;     // the query's
    uint32_t first_head;        // of the query heads
    uint32_t num_heads;         // 1..16
    uint32_t kv_head;
    KeyRange visible;           // what the query sees
    uint32_t first_key;         // of the split
    uint32_t num_steps;         // up to the last visible key
    uint32_t first_partial;     // of the sequence's splits, those out of the window included
    uint32_t index, first_index, end_index;  // this split, and the sequence's splits that see a key
};

__device__ __forceinline__ Split locate_split(const PagedAttentionParams& params) {
    const AttentionWork work = params.work[blockIdx.x];
    const uint32_t group = params.num_q_heads / params.kv.num_kv_heads;
    const uint32_t parts = (group + DECODE_HEADS - 1) / DECODE_HEADS;
    const uint32_t first_in_group = blockIdx.y % parts * DECODE_HEADS;
    const uint32_t context_len = params.context_lens[work.sequence];
    Split split;
    split.sequence = work.sequence;
    split.row = params.query_starts[work.sequence];
    split.kv_head = blockIdx.y / parts;
    split.first_head = split.kv_head * group + first_in_group;
    split.num_heads = min(group - first_in_group, DECODE_HEADS);
    split.visible = visible_keys(context_len - 1, params.window);
    split.first_key = work.index * DECODE_SPLIT_KEYS;
    const uint32_t end_key = min(split.first_key + DECODE_SPLIT_KEYS, context_len);
    split.num_steps = (end_key - split.first_key + STEP_KEYS - 1) / STEP_KEYS;
    split.first_partial = blockIdx.x - work.index;
    split.index = work.index;
    split.first_index = split.visible.first / DECODE_SPLIT_KEYS;
    split.end_index = (context_len + DECODE_SPLIT_KEYS - 1) / DECODE_SPLIT_KEYS;
    return split;
}

// Starts the copies of one step of this warp: 16 keys and values, which lie in one block of the cache.
template <class Kv, uint32_t HEAD_DIM>
__device__ __forceinline__ void fetch_step(const PagedAttentionParams& params, const Split& split, uint32_t step,
                                           Stage<Kv, HEAD_DIM>& stage) {
    constexpr uint32_t PIECE = 16 / sizeof(Kv);        // channels of one copy
    constexpr uint32_t PIECES = HEAD_DIM / PIECE;      // of a key
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    const uint32_t first_key = split.first_key + step * STEP_KEYS;
    const uint32_t* table = params.block_tables + params.block_table_starts[split.sequence];
    const uint32_t block = table[first_key >> params.kv.log2_block_size];
    const uint32_t offset = first_key & ((1u << params.kv.log2_block_size) - 1);
    const Kv* k_tile = kv_tile<Kv>(params.kv, params.layer, block, KV_K, split.kv_head);
    const Kv* v_tile = kv_tile<Kv>(params.kv, params.layer, block, KV_V, split.kv_head);
    const Kv* k = k_tile + size_t(offset) * HEAD_DIM;
    const Kv* v = v_tile + size_t(offset) * HEAD_DIM;
#pragma unroll
    for (uint32_t turn = 0; turn < STEP_KEYS * PIECES / WARP_SIZE; ++turn) {
        const uint32_t piece = turn * WARP_SIZE + lane;
        const uint32_t key = piece / PIECES, channel = piece % PIECES * PIECE;
        // Slots behind the context were never written: zeros instead, since 0 * NaN is NaN.
        const bool is_valid = first_key + key < split.visible.end;
        copy_async16(&stage.k.rows[key][channel], k + key * HEAD_DIM + channel, is_valid);
        copy_async16(&stage.v.rows[key][channel], v + key * HEAD_DIM + channel, is_valid);
    }
    if constexpr (IS_E4M3<Kv>) {
        const uint32_t num_valid = min(split.visible.end - first_key, SCALE_GROUP);
        if (lane == 0) copy_async_part16(stage.k.scales, kv_scales(params.kv, k_tile) + offset, num_valid);
        if (lane == 1) copy_async_part16(stage.v.scales, kv_scales(params.kv, v_tile) + offset, num_valid);
    }
}

// Q of the block's heads into shared memory; rows without a head are zero.
template <class T, class Kv, uint32_t HEAD_DIM>
__device__ __forceinline__ void load_query(const PagedAttentionParams& params, const Split& split,
                                           Shared<T, Kv, HEAD_DIM>& shared) {
    const uint32_t width = (params.num_q_heads + 2 * params.kv.num_kv_heads) * HEAD_DIM;
    const T* q = static_cast<const T*>(params.qkv) + size_t(split.row) * width + split.first_head * HEAD_DIM;
    constexpr uint32_t VECTORS = HEAD_DIM / VECTOR;
    for (uint32_t vector = threadIdx.x; vector < DECODE_HEADS * VECTORS; vector += WARPS<HEAD_DIM> * WARP_SIZE) {
        const uint32_t head = vector / VECTORS, channel = vector % VECTORS * VECTOR;
        const uint4 zero = make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4*>(&shared.q[head][channel]) =
            head < split.num_heads ? *reinterpret_cast<const uint4*>(q + head * HEAD_DIM + channel) : zero;
    }
}

// This warp's steps of the split.
template <class T, class Kv, uint32_t HEAD_DIM>
__device__ __forceinline__ void attend_steps(const PagedAttentionParams& params, const Split& split,
                                             Shared<T, Kv, HEAD_DIM>& shared, RowState<HEAD_DIM>& state) {
    constexpr uint32_t NUM_STAGES = STAGES<HEAD_DIM>;
    const uint32_t warp = threadIdx.x / WARP_SIZE;
    auto& stages = shared.stages[warp];
    const ScoreRule rule{params.scale, params.softcap};
    const KeyRange range[2] = {split.visible, split.visible};
    // The first step of this warp that holds a visible key.
    const uint32_t hidden = split.visible.first > split.first_key ? (split.visible.first - split.first_key) / STEP_KEYS : 0;
    const uint32_t first = hidden + (warp + WARPS<HEAD_DIM> - hidden % WARPS<HEAD_DIM>) % WARPS<HEAD_DIM>;
    uint32_t next = first;
#pragma unroll
    for (uint32_t stage = 0; stage < NUM_STAGES - 1; ++stage) {
        if (next < split.num_steps) fetch_step<Kv, HEAD_DIM>(params, split, next, stages[stage]);
        copy_async_commit();
        next += WARPS<HEAD_DIM>;
    }
    uint32_t turn = 0;
    for (uint32_t step = first; step < split.num_steps; step += WARPS<HEAD_DIM>, ++turn) {
        // All lanes have read the stage that is filled next.
        __syncwarp();
        if (next < split.num_steps) {
            fetch_step<Kv, HEAD_DIM>(params, split, next, stages[(turn + NUM_STAGES - 1) % NUM_STAGES]);
        }
        copy_async_commit();
        next += WARPS<HEAD_DIM>;
        copy_async_wait<NUM_STAGES - 1>();
        __syncwarp();
        const Stage<Kv, HEAD_DIM>& stage = stages[turn % NUM_STAGES];
        float scores[STEP_KEYS / 8][4];
        score_keys<T, HEAD_DIM, STEP_KEYS>(scores, &shared.q[0][0], stage.k);
        soften<HEAD_DIM, STEP_KEYS>(scores, state, rule, range, split.first_key + step * STEP_KEYS);
        weigh_values<T, HEAD_DIM, STEP_KEYS>(state, scores, stage.v);
    }
    copy_async_wait<0>();
    sum_rows(state);
}

template <class Kv, uint32_t HEAD_DIM>
__device__ __forceinline__ void gather(const RowState<HEAD_DIM>& state, Gathered<HEAD_DIM>& gathered) {
    const uint32_t warp = threadIdx.x / WARP_SIZE, g = threadIdx.x % WARP_SIZE / 4;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = g + 8 * half;
#pragma unroll
        for (uint32_t n = 0; n < HEAD_DIM / 8; ++n) {
            gathered.out[warp][row][channel_of<Kv>(n, 0)] = state.out[n][2 * half];
            gathered.out[warp][row][channel_of<Kv>(n, 1)] = state.out[n][2 * half + 1];
        }
        if (threadIdx.x % 4 == 0) {
            gathered.maximum[warp][row] = state.maximum[half];
            gathered.sum[warp][row] = state.sum[half];
        }
    }
}

// Adds up the warps in their order. One split: the answer. Several: this split's part of it.
template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void add_warps(const PagedAttentionParams& params, const Split& split,
                                          const Gathered<HEAD_DIM>& gathered) {
    const bool is_only = split.end_index - split.first_index == 1;
    const uint32_t partial = split.first_partial + split.index;
    for (uint32_t index = threadIdx.x; index < split.num_heads * HEAD_DIM; index += WARPS<HEAD_DIM> * WARP_SIZE) {
        const uint32_t row = index / HEAD_DIM, channel = index % HEAD_DIM, head = split.first_head + row;
        float maximum = -INFINITY, sum = 0, out = 0;
#pragma unroll
        for (uint32_t warp = 0; warp < WARPS<HEAD_DIM>; ++warp) maximum = fmaxf(maximum, gathered.maximum[warp][row]);
#pragma unroll
        for (uint32_t warp = 0; warp < WARPS<HEAD_DIM>; ++warp) {
            const float factor = exp2f(gathered.maximum[warp][row] - maximum);
            sum += factor * gathered.sum[warp][row];
            out += factor * gathered.out[warp][row][channel];
        }
        if (is_only) {
            T* to = static_cast<T*>(params.out) + (size_t(split.row) * params.num_q_heads + head) * HEAD_DIM;
            to[channel] = from_float<T>(out / sum);
        } else {
            const size_t place = size_t(partial) * params.num_q_heads + head;
            params.partial_out[place * HEAD_DIM + channel] = out;
            if (channel == 0) params.partial_stats[place] = make_float2(maximum, sum);
        }
    }
}

// Adds up the splits in their order; run by the block that arrives last.
template <class T, uint32_t HEAD_DIM>
__device__ __forceinline__ void add_splits(const PagedAttentionParams& params, const Split& split) {
    for (uint32_t index = threadIdx.x; index < split.num_heads * HEAD_DIM; index += WARPS<HEAD_DIM> * WARP_SIZE) {
        const uint32_t channel = index % HEAD_DIM, head = split.first_head + index / HEAD_DIM;
        float maximum = -INFINITY, sum = 0, out = 0;
        for (uint32_t other = split.first_index; other < split.end_index; ++other) {
            const size_t place = size_t(split.first_partial + other) * params.num_q_heads + head;
            maximum = fmaxf(maximum, load_fresh(&params.partial_stats[place].x));
        }
        for (uint32_t other = split.first_index; other < split.end_index; ++other) {
            const size_t place = size_t(split.first_partial + other) * params.num_q_heads + head;
            const float factor = exp2f(load_fresh(&params.partial_stats[place].x) - maximum);
            sum += factor * load_fresh(&params.partial_stats[place].y);
            out += factor * load_fresh(&params.partial_out[place * HEAD_DIM + channel]);
        }
        T* to = static_cast<T*>(params.out) + (size_t(split.row) * params.num_q_heads + head) * HEAD_DIM;
        to[channel] = from_float<T>(out / sum);
    }
}

template <class T, class Kv, uint32_t HEAD_DIM>
__device__ void paged_attention_decode(const PagedAttentionParams& params) {
    auto& shared = shared_memory<Shared<T, Kv, HEAD_DIM>>();
    const Split split = locate_split(params);
    // Out of the window before its first split, or behind its last one: the padding of a captured launch. One comparison, since a
    // second one spills registers at head_dim 64 on sm_80.
    if (split.index - split.first_index >= split.end_index - split.first_index) return;
    load_query<T, Kv, HEAD_DIM>(params, split, shared);
    __syncthreads();
    RowState<HEAD_DIM> state;
    attend_steps<T, Kv, HEAD_DIM>(params, split, shared, state);
    // The stages become the place to gather: every warp must have read its last one.
    __syncthreads();
    gather<Kv, HEAD_DIM>(state, shared.gathered);
    __syncthreads();
    add_warps<T, HEAD_DIM>(params, split, shared.gathered);
    const uint32_t num_splits = split.end_index - split.first_index;
    if (num_splits == 1) return;
    // This block's part is visible to all before it is counted.
    __threadfence();
    __syncthreads();
    uint32_t* arrivals = params.arrivals + split.sequence * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) shared.is_last = atomicAdd(arrivals, 1u) == num_splits - 1;
    __syncthreads();
    if (!shared.is_last) return;
    __threadfence();
    add_splits<T, HEAD_DIM>(params, split);
    if (threadIdx.x == 0) *arrivals = 0;
}

#define DECODE(T, KV, KIND, HEAD_DIM)                                                                        \
    PAGODA_KERNEL(paged_attention_decode_##KIND##_d##HEAD_DIM, PagedAttentionParams, WARPS<HEAD_DIM>* WARP_SIZE, \
                  (sizeof(Shared<T, KV, HEAD_DIM>))) {                                                       \
        paged_attention_decode<T, KV, HEAD_DIM>(params);                                                     \
    }
DECODE(bf16, bf16, bf16, 64)
DECODE(bf16, bf16, bf16, 96)
DECODE(bf16, bf16, bf16, 128)
DECODE(bf16, bf16, bf16, 256)
DECODE(f16, f16, f16, 64)
DECODE(f16, f16, f16, 96)
DECODE(f16, f16, f16, 128)
DECODE(f16, f16, f16, 256)
DECODE(bf16, e4m3, e4m3_bf16, 64)
DECODE(bf16, e4m3, e4m3_bf16, 96)
DECODE(bf16, e4m3, e4m3_bf16, 128)
DECODE(bf16, e4m3, e4m3_bf16, 256)
DECODE(f16, e4m3, e4m3_f16, 64)
DECODE(f16, e4m3, e4m3_f16, 96)
DECODE(f16, e4m3, e4m3_f16, 128)
DECODE(f16, e4m3, e4m3_f16, 256)
