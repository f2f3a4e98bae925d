// What the two attention kernels share: scores in base 2, the online softmax of a warp's 16 rows (Milakov & Gimelshein,
// arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691), and the two products on the tensor cores.
//
// A warp owns 16 query rows. In every fragment, lane 4 g + t holds rows g and g + 8.
#pragma once

#include "kv.cuh"
#include "mma.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// Rows of shared memory are padded by 16 bytes: eight rows then start in eight different groups of banks, which is what
// ldmatrix needs, for every head_dim. (An XOR swizzle saves the padding but has no simple form for head_dim 96.)
template <uint32_t HEAD_DIM>
constexpr uint32_t ROW_STRIDE = HEAD_DIM + VECTOR;

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

// Two of the warp's rows as one lane sees them: channels 8 n + 2t, 2t + 1 of the output for every n.
template <uint32_t HEAD_DIM>
struct RowState {
    float out[HEAD_DIM / 8][4] = {};
    float maximum[2] = {-INFINITY, -INFINITY};
    float sum[2] = {};  // of this lane's keys only
};

// scores[n] = Q K^T over NUM_KEYS keys: `k` is [NUM_KEYS, ROW_STRIDE] in shared memory, `q(step)` loads the A fragment of
// channels 16 step .. 16 step + 16.
template <class T, uint32_t HEAD_DIM, uint32_t NUM_KEYS, class LoadQ>
__device__ __forceinline__ void score_keys(float (&scores)[NUM_KEYS / 8][4], const T* k, LoadQ q) {
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    const T* row = k + (lane % 8 + lane / 16 * 8) * ROW_STRIDE<HEAD_DIM> + lane / 8 % 2 * VECTOR;
#pragma unroll
    for (uint32_t n = 0; n < NUM_KEYS / 8; ++n) {
        for (float& score : scores[n]) score = 0;
    }
#pragma unroll
    for (uint32_t step = 0; step < HEAD_DIM / 16; ++step) {
        uint32_t a[4];
        q(step, a);
#pragma unroll
        for (uint32_t n = 0; n < NUM_KEYS / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, row + n * 8 * ROW_STRIDE<HEAD_DIM> + step * 16);
            mma_m16n8k16<T>(scores[n], a, {b[0], b[1]});
            mma_m16n8k16<T>(scores[n + 1], a, {b[2], b[3]});
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

// out += P V: the C fragments of the scores are the A fragments of P. `v` is [NUM_KEYS, ROW_STRIDE] in shared memory.
template <class T, uint32_t HEAD_DIM, uint32_t NUM_KEYS>
__device__ __forceinline__ void weigh_values(RowState<HEAD_DIM>& state, const float (&p)[NUM_KEYS / 8][4], const T* v) {
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    const T* row = v + lane % 16 * ROW_STRIDE<HEAD_DIM> + lane / 16 * VECTOR;
#pragma unroll
    for (uint32_t step = 0; step < NUM_KEYS / 16; ++step) {
        const float(&low)[4] = p[2 * step];
        const float(&high)[4] = p[2 * step + 1];
        const uint32_t a[4] = {pack2<T>(low[0], low[1]), pack2<T>(low[2], low[3]), pack2<T>(high[0], high[1]),
                               pack2<T>(high[2], high[3])};
#pragma unroll
        for (uint32_t n = 0; n < HEAD_DIM / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_transposed(b, row + step * 16 * ROW_STRIDE<HEAD_DIM> + n * 8);
            mma_m16n8k16<T>(state.out[n], a, {b[0], b[1]});
            mma_m16n8k16<T>(state.out[n + 1], a, {b[2], b[3]});
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
