// The counter RNG of the draw: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The
// same key, counter and words as on the CPU: the noise of a token is a pure function of them.
//
//   key = [seed low, seed high]   counter = [token / 4, position, sample_index, "PAGD"]   noise of a token = word[token % 4]
#pragma once

#include "device.cuh"

struct DrawKey {
    uint64_t seed;
    uint32_t sample_index, position;
};

__device__ __forceinline__ void philox_words(const DrawKey& draw, uint32_t group, uint32_t (&words)[4]) {
    uint32_t counter[4] = {group, draw.position, draw.sample_index, 0x50414744u};
    uint32_t key[2] = {uint32_t(draw.seed), uint32_t(draw.seed >> 32)};
#pragma unroll
    for (uint32_t round = 0; round < 10; ++round) {
        const uint32_t high0 = __umulhi(0xD2511F53u, counter[0]), low0 = 0xD2511F53u * counter[0];
        const uint32_t high1 = __umulhi(0xCD9E8D57u, counter[2]), low1 = 0xCD9E8D57u * counter[2];
        const uint32_t next[4] = {high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0};
#pragma unroll
        for (uint32_t index = 0; index < 4; ++index) counter[index] = next[index];
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
#pragma unroll
    for (uint32_t index = 0; index < 4; ++index) words[index] = counter[index];
}

// Standard Gumbel noise of a word: -ln(-ln u), u = (word + 1/2) / 2^32. Near 1, u has no digits left in f32, so the upper half
// goes by 1 - u, which has.
__device__ __forceinline__ float gumbel_of_word(uint32_t word) {
    constexpr float STEP = 2.3283064365386963e-10f;  // 2^-32
    const float exponential = word < 0x80000000u ? -logf((float(word) + 0.5f) * STEP)
                                                 : -log1pf(-(float(~word) + 0.5f) * STEP);
    return -logf(exponential);
}
