// What the two attention kernels share: scores in base 2, the online softmax of a warp's 16 rows (Milakov & Gimelshein,
// arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691), and the two products on the tensor cores.
//
// A warp owns 16 query rows. In every fragment, lane 4 g + t holds rows g and g + 8.
//
// K and V are T, or e4m3 codes that become T in registers, between shared memory and the product. (A pass that widens a tile
// in shared memory would move 6 bytes through it per code where this moves 2; a decode has no room for that.) Codes are read
// as pairs by the same ldmatrix, which puts them at other columns than T:
//
//   K    lane t holds channels 4t..4t+3 of 16, as columns 2t, 2t + 1, 2t + 8, 2t + 9 of the product: Q is read in that order
//   V    lane g holds channels 2g, 2g + 1 of 16: the even ones are column g of one product, the odd ones of the next
#pragma once

#include "kv.cuh"
#include "mma.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// Rows of shared memory are padded by 16 bytes: eight rows then start in eight different groups of banks, which is what
// ldmatrix needs, for every head_dim. (An XOR swizzle saves the padding but has no simple form for head_dim 96.)
template <uint32_t HEAD_DIM, class Kv>
constexpr uint32_t ROW_STRIDE = HEAD_DIM + 16 / sizeof(Kv);

// Rows of Q; beside codes they are read in pieces of 8 bytes, four rows at a time.
template <uint32_t HEAD_DIM, class Kv>
constexpr uint32_t Q_STRIDE = HEAD_DIM + (IS_E4M3<Kv> ? 2 : 1) * VECTOR;

// K or V of some keys in shared memory.
template <class Kv, uint32_t HEAD_DIM, uint32_t NUM_KEYS>
struct alignas(16) KvTile {
    Kv rows[NUM_KEYS][ROW_STRIDE<HEAD_DIM, Kv>];
};
template <uint32_t HEAD_DIM, uint32_t NUM_KEYS>
struct alignas(16) KvTile<e4m3, HEAD_DIM, NUM_KEYS> {
    e4m3 rows[NUM_KEYS][ROW_STRIDE<HEAD_DIM, e4m3>];
    uint8_t scales[NUM_KEYS];
};

// Scales come in groups that lie in one block of the cache: blocks have 16 slots or a multiple.
constexpr uint32_t SCALE_GROUP = 16;

// A raw score to one in base 2: scale, then soft-capping.
struct ScoreRule {
    float scale, softcap;

    __device__ __forceinline__ float operator()(float score) const {
        score *= scale;
        if (softcap > 0) score = softcap * tanhf(score / softcap);
        return score * LOG2_E;
    }
};

// Which keys a row sees.
struct KeyRange {
    uint32_t first, end;

    __device__ __forceinline__ bool contains(uint32_t key) const { return key >= first && key < end; }
};

// The keys that the query at `position` sees.
__device__ __forceinline__ KeyRange visible_keys(uint32_t position, uint32_t window) {
    return {window > 0 && position + 1 > window ? position + 1 - window : 0, position + 1};
}

// Two of the warp's rows as one lane sees them: two channels (`channel_of`) of the output for every n.
template <uint32_t HEAD_DIM>
struct RowState {
    float out[HEAD_DIM / 8][4] = {};
    float maximum[2] = {-INFINITY, -INFINITY};
    float sum[2] = {};  // of this lane's keys only
};

// The channel of `RowState::out[n][index]` and `[n][2 + index]`.
template <class Kv>
__device__ __forceinline__ uint32_t channel_of(uint32_t n, uint32_t index) {
    const uint32_t t = threadIdx.x % 4;
    return IS_E4M3<Kv> ? n / 2 * 16 + 4 * t + 2 * index + n % 2 : n * 8 + 2 * t + index;
}

// The A fragment of channels 16 step .. 16 step + 16 of the warp's rows of Q, `q` in shared memory.
template <class Kv, uint32_t HEAD_DIM, class T>
__device__ __forceinline__ void load_query_fragment(uint32_t (&a)[4], const T* q, uint32_t step) {
    constexpr uint32_t STRIDE = Q_STRIDE<HEAD_DIM, Kv>;
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    if constexpr (IS_E4M3<Kv>) {
        const T* row = q + lane / 4 * STRIDE + step * 16 + lane % 4 * 4;
        const uint2 upper = *reinterpret_cast<const uint2*>(row);
        const uint2 lower = *reinterpret_cast<const uint2*>(row + 8 * STRIDE);
        a[0] = upper.x, a[1] = lower.x, a[2] = upper.y, a[3] = lower.y;
    } else {
        ldmatrix_x4(a, q + lane % 16 * STRIDE + lane / 16 * VECTOR + step * 16);
    }
}

// scores[n] = Q K^T over the keys of a tile; `q` is the warp's rows in shared memory.
template <class T, uint32_t HEAD_DIM, uint32_t NUM_KEYS>
__device__ __forceinline__ void score_keys(float (&scores)[NUM_KEYS / 8][4], const T* q,
                                           const KvTile<T, HEAD_DIM, NUM_KEYS>& k) {
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    const T* row = &k.rows[lane % 8 + lane / 16 * 8][lane / 8 % 2 * VECTOR];
#pragma unroll
    for (uint32_t n = 0; n < NUM_KEYS / 8; ++n) {
        for (float& score : scores[n]) score = 0;
    }
#pragma unroll
    for (uint32_t step = 0; step < HEAD_DIM / 16; ++step) {
        uint32_t a[4];
        load_query_fragment<T, HEAD_DIM>(a, q, step);
#pragma unroll
        for (uint32_t n = 0; n < NUM_KEYS / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, row + n * 8 * ROW_STRIDE<HEAD_DIM, T> + step * 16);
            mma_m16n8k16<T>(scores[n], a, {b[0], b[1]});
            mma_m16n8k16<T>(scores[n + 1], a, {b[2], b[3]});
        }
    }
}

// The same over codes. A matrix of ldmatrix is 8 keys by 16 channels: two keys' halves and two steps at a time.
template <class T, uint32_t HEAD_DIM, uint32_t NUM_KEYS>
__device__ __forceinline__ void score_keys(float (&scores)[NUM_KEYS / 8][4], const T* q,
                                           const KvTile<e4m3, HEAD_DIM, NUM_KEYS>& k) {
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    const e4m3* row = &k.rows[lane % 16][lane / 16 * 16];
    uint32_t factors[NUM_KEYS / 8];
#pragma unroll
    for (uint32_t n = 0; n < NUM_KEYS / 8; ++n) {
        for (float& score : scores[n]) score = 0;
        factors[n] = e4m3_factor<T>(k.scales[n * 8 + lane / 4]) * 0x10001;
    }
#pragma unroll
    for (uint32_t step = 0; step < HEAD_DIM / 16; step += 2) {
        uint32_t a[2][4];
        load_query_fragment<e4m3, HEAD_DIM>(a[0], q, step);
        load_query_fragment<e4m3, HEAD_DIM>(a[1], q, step + 1);
#pragma unroll
        for (uint32_t n = 0; n < NUM_KEYS / 8; n += 2) {
            uint32_t codes[4];
            ldmatrix_x4(codes, row + n * 8 * ROW_STRIDE<HEAD_DIM, e4m3> + step * 16);
#pragma unroll
            for (uint32_t matrix = 0; matrix < 4; ++matrix) {
                const uint32_t block = n + matrix % 2;
                mma_m16n8k16<T>(scores[block], a[matrix / 2],
                                {widen_e4m3<T, 0, 1>(codes[matrix], factors[block]),
                                 widen_e4m3<T, 2, 3>(codes[matrix], factors[block])});
            }
        }
    }
}

// Scores to probabilities of the keys `first_key ..`; rescales what the rows have gathered if a maximum rises. `range[half]`
// is what row g + 8 half sees; a row that sees none of the keys keeps what it has.
template <uint32_t HEAD_DIM, uint32_t NUM_KEYS>
__device__ __forceinline__ void soften(float (&scores)[NUM_KEYS / 8][4], RowState<HEAD_DIM>& state, const ScoreRule& rule,
                                       const KeyRange (&range)[2], uint32_t first_key) {
    const uint32_t first = first_key + threadIdx.x % 4 * 2;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        float maximum = state.maximum[half];
#pragma unroll
        for (uint32_t n = 0; n < NUM_KEYS / 8; ++n) {
#pragma unroll
            for (uint32_t index = 0; index < 2; ++index) {
                float& score = scores[n][2 * half + index];
                score = range[half].contains(first + n * 8 + index) ? rule(score) : -INFINITY;
                maximum = fmaxf(maximum, score);
            }
        }
        maximum = fmaxf(maximum, __shfl_xor_sync(FULL_WARP, maximum, 1));
        maximum = fmaxf(maximum, __shfl_xor_sync(FULL_WARP, maximum, 2));
        const float base = maximum == -INFINITY ? 0 : maximum;
        const float factor = exp2f(state.maximum[half] - base);
        state.maximum[half] = maximum;
        float sum = state.sum[half] * factor;
#pragma unroll
        for (uint32_t n = 0; n < NUM_KEYS / 8; ++n) {
#pragma unroll
            for (uint32_t index = 0; index < 2; ++index) {
                float& score = scores[n][2 * half + index];
                score = exp2f(score - base);
                sum += score;
            }
        }
        state.sum[half] = sum;
#pragma unroll
        for (uint32_t n = 0; n < HEAD_DIM / 8; ++n) {
            state.out[n][2 * half] *= factor;
            state.out[n][2 * half + 1] *= factor;
        }
    }
}

// The C fragments of the scores of 16 keys are the A fragment of P.
template <class T>
struct Probabilities {
    uint32_t a[4];

    __device__ __forceinline__ Probabilities(const float (&low)[4], const float (&high)[4])
        : a{pack2<T>(low[0], low[1]), pack2<T>(low[2], low[3]), pack2<T>(high[0], high[1]), pack2<T>(high[2], high[3])} {}
};

// out += P V over the keys of a tile.
template <class T, uint32_t HEAD_DIM, uint32_t NUM_KEYS>
__device__ __forceinline__ void weigh_values(RowState<HEAD_DIM>& state, const float (&p)[NUM_KEYS / 8][4],
                                             const KvTile<T, HEAD_DIM, NUM_KEYS>& v) {
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    const T* row = &v.rows[lane % 16][lane / 16 * VECTOR];
#pragma unroll
    for (uint32_t step = 0; step < NUM_KEYS / 16; ++step) {
        const Probabilities<T> p_step(p[2 * step], p[2 * step + 1]);
#pragma unroll
        for (uint32_t n = 0; n < HEAD_DIM / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_transposed(b, row + step * 16 * ROW_STRIDE<HEAD_DIM, T> + n * 8);
            mma_m16n8k16<T>(state.out[n], p_step.a, {b[0], b[1]});
            mma_m16n8k16<T>(state.out[n + 1], p_step.a, {b[2], b[3]});
        }
    }
}

// The same over codes. What ldmatrix transposes are pairs: a register holds two channels of key 2t, then of key 2t + 1.
template <class T, uint32_t HEAD_DIM, uint32_t NUM_KEYS>
__device__ __forceinline__ void weigh_values(RowState<HEAD_DIM>& state, const float (&p)[NUM_KEYS / 8][4],
                                             const KvTile<e4m3, HEAD_DIM, NUM_KEYS>& v) {
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    const e4m3* row = &v.rows[lane % 16][lane / 16 * 16];
#pragma unroll
    for (uint32_t step = 0; step < NUM_KEYS / 16; ++step) {
        const Probabilities<T> p_step(p[2 * step], p[2 * step + 1]);
        uint32_t factors[2];
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const uint8_t* scales = &v.scales[step * 16 + half * 8 + lane % 4 * 2];
            factors[half] = e4m3_factor<T>(scales[0]) | e4m3_factor<T>(scales[1]) << 16;
        }
#pragma unroll
        for (uint32_t n = 0; n < HEAD_DIM / 8; n += 4) {
            uint32_t codes[4];
            ldmatrix_x4_transposed(codes, row + step * 16 * ROW_STRIDE<HEAD_DIM, e4m3> + n * 8);
#pragma unroll
            for (uint32_t half = 0; half < 4; half += 2) {
                mma_m16n8k16<T>(state.out[n + half], p_step.a,
                                {widen_e4m3<T, 0, 2>(codes[half], factors[0]),
                                 widen_e4m3<T, 0, 2>(codes[half + 1], factors[1])});
                mma_m16n8k16<T>(state.out[n + half + 1], p_step.a,
                                {widen_e4m3<T, 1, 3>(codes[half], factors[0]),
                                 widen_e4m3<T, 1, 3>(codes[half + 1], factors[1])});
            }
        }
    }
}

// The sums of the whole rows, in every lane of the row.
template <uint32_t HEAD_DIM>
__device__ __forceinline__ void sum_rows(RowState<HEAD_DIM>& state) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        state.sum[half] += __shfl_xor_sync(FULL_WARP, state.sum[half], 1);
        state.sum[half] += __shfl_xor_sync(FULL_WARP, state.sum[half], 2);
    }
}
