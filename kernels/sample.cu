// Chooses one token from one row of logits by the contract of `pagoda_backend::SampleRow`; the logits never leave the device.
//
// Launch: one block of 512 threads per sample. A row is read a few times (L2): once for greedy, twice to draw, eleven times with
// top-k or top-p (twenty with both), which are found by radix descent instead of a sort: the k-th largest key, and the key at
// which the mass of all larger ones reaches top-p, eight bits per pass.
//
//   key = [logit as an ordered integer | ~token]: unique, larger is likelier, ties go to the lower token
//
// Masses are integers (2^-40 of the likeliest token's), because integer sums have one value in any order: neither the choice
// nor its reproducibility depends on which thread was first.
#include "philox.cuh"
#include "reduce.cuh"

constexpr uint32_t THREADS = 512;
constexpr uint32_t WARPS = THREADS / WARP_SIZE;
constexpr uint32_t BINS = 256;
constexpr uint32_t IN_FLIGHT = 4;  // loads of a thread
constexpr float MASS_UNIT = 1099511627776.0f;  // 2^40

using Key = unsigned long long;

// Larger than the key of any number.
constexpr Key NOT_FINITE = ~Key(0);

struct Shared {
    float partial[WARPS];
    Key partial_keys[WARPS];
    Key bins[BINS];
    Key boundary, left;  // of a radix descent
};

__device__ __forceinline__ Key key_of(float logit, uint32_t token) {
    const uint32_t bits = __float_as_uint(logit);
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return Key(ordered) << 32 | (0xFFFFFFFFu - token);
}
__device__ __forceinline__ uint32_t token_of(Key key) { return 0xFFFFFFFFu - uint32_t(key); }

__device__ __forceinline__ bool is_removed(float logit) { return logit == -INFINITY; }

// The largest key of the block, in every thread.
__device__ __forceinline__ Key block_max(Key key, Shared& shared) {
#pragma unroll
    for (uint32_t distance = WARP_SIZE / 2; distance > 0; distance /= 2) {
        key = max(key, __shfl_xor_sync(FULL_WARP, key, distance));
    }
    __syncthreads();  // a former maximum has been read
    if (threadIdx.x % WARP_SIZE == 0) shared.partial_keys[threadIdx.x / WARP_SIZE] = key;
    __syncthreads();
    key = 0;
#pragma unroll
    for (uint32_t warp = 0; warp < WARPS; ++warp) key = max(key, shared.partial_keys[warp]);
    return key;
}

__device__ __forceinline__ float row_sum(float value, Shared& shared) {
    __syncthreads();  // a former sum has been read
    return block_sum<THREADS>(value, shared.partial);
}

// One row of logits, raw or ruled.
struct Row {
    const float* logits;
    uint32_t len;

    // Four neighbouring logits, zeros behind the last: one load where the row is aligned.
    __device__ __forceinline__ uint4 four_at(uint32_t first, bool is_aligned) const {
        if (is_aligned && first + 4 <= len) return *reinterpret_cast<const uint4*>(logits + first);
        uint32_t four[4];
#pragma unroll
        for (uint32_t index = 0; index < 4; ++index) {
            four[index] = first + index < len ? __float_as_uint(logits[first + index]) : 0;
        }
        return make_uint4(four[0], four[1], four[2], four[3]);
    }

    // Calls `visit(first, four, count)` for this thread's tokens, four neighbours at a time (`count` of them are there). One
    // block has one multiprocessor's loads to keep L2 busy with: all of a turn are under way before the first is looked at.
    template <class Visit>
    __device__ __forceinline__ void each_four(Visit visit) const {
        const bool is_aligned = reinterpret_cast<uintptr_t>(logits) % sizeof(uint4) == 0;
        for (uint32_t start = threadIdx.x * 4; start < len; start += IN_FLIGHT * THREADS * 4) {
            uint4 fours[IN_FLIGHT];
#pragma unroll
            for (uint32_t index = 0; index < IN_FLIGHT; ++index) {
                fours[index] = four_at(start + index * THREADS * 4, is_aligned);
            }
#pragma unroll
            for (uint32_t index = 0; index < IN_FLIGHT; ++index) {
                const uint32_t first = start + index * THREADS * 4;
                if (first >= len) break;
                const uint4 bits = fours[index];
                const float four[4] = {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                                       __uint_as_float(bits.w)};
                visit(first, four, min(len - first, 4u));
            }
        }
    }

    // Calls `visit(token, logit)` for this thread's tokens.
    template <class Visit>
    __device__ __forceinline__ void each(Visit visit) const {
        each_four([&](uint32_t first, const float (&four)[4], uint32_t count) {
#pragma unroll
            for (uint32_t index = 0; index < 4; ++index) {
                if (index < count) visit(first + index, four[index]);
            }
        });
    }

    // The largest key, or `NOT_FINITE` if one of the logits is that. All that greedy reads.
    __device__ Key largest(Shared& shared) const {
        Key largest = 0;
        each([&](uint32_t token, float logit) {
            largest = max(largest, isfinite(logit) ? key_of(logit, token) : NOT_FINITE);
        });
        return block_max(largest, shared);
    }

    // The largest key below `bound`; 0 if there is none.
    __device__ Key max_below(Key bound, Shared& shared) const {
        Key largest = 0;
        each([&](uint32_t token, float logit) {
            const Key key = is_removed(logit) ? 0 : key_of(logit, token);
            if (key < bound) largest = max(largest, key);
        });
        return block_max(largest, shared);
    }
};

// The logits after penalties, bias, mask and ban; a token that may not be chosen becomes -infinity. Lists name a token once.
__device__ void apply_rules(const SampleParams& params, const SampleRule& rule, const float* raw, float* ruled) {
    for (uint32_t token = threadIdx.x; token < params.vocab_size; token += THREADS) ruled[token] = raw[token];
    __syncthreads();
    for (uint32_t index = threadIdx.x; index < rule.num_counts; index += THREADS) {
        const SampleCount count = params.counts[rule.first_count + index];
        if (count.token >= params.vocab_size) continue;
        float logit = ruled[count.token];
        logit = logit > 0 ? logit / rule.repetition_penalty : logit * rule.repetition_penalty;
        logit -= rule.frequency_penalty * float(count.num_output);
        if (count.num_output > 0) logit -= rule.presence_penalty;
        ruled[count.token] = logit;
    }
    __syncthreads();
    for (uint32_t index = threadIdx.x; index < rule.num_biases; index += THREADS) {
        const SampleBias bias = params.biases[rule.first_bias + index];
        if (bias.token < params.vocab_size) ruled[bias.token] += bias.bias;
    }
    __syncthreads();
    for (uint32_t token = threadIdx.x; token < params.vocab_size; token += THREADS) {
        const uint32_t word = token / 32;
        const bool is_masked = rule.first_mask_word != NONE &&
                               (word >= rule.num_mask_words ||
                                !(params.masks[rule.first_mask_word + word] >> (token % 32) & 1));
        if (is_masked || !isfinite(ruled[token])) ruled[token] = -INFINITY;
    }
    __syncthreads();
    for (uint32_t index = threadIdx.x; index < rule.num_banned; index += THREADS) {
        const uint32_t token = params.banned[rule.first_banned + index];
        if (token < params.vocab_size) ruled[token] = -INFINITY;
    }
    __syncthreads();
}

// A token's mass relative to the likeliest one's.
struct Weights {
    float maximum, temperature;

    __device__ __forceinline__ float weight(float logit) const { return expf((logit - maximum) / temperature); }
    __device__ __forceinline__ Key mass(float logit) const { return Key(weight(logit) * MASS_UNIT); }
};

// The key at which the amounts of all larger keys, itself included, reach `wanted` (at least 1, at most their sum), among keys
// from `least` on. `amount(logit)` is what a key counts: 1 for top-k, its mass for top-p.
template <class Amount>
__device__ Key descend(const Row& row, Key least, Key wanted, Amount amount, Shared& shared) {
    Key prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        __syncthreads();
        for (uint32_t bin = threadIdx.x; bin < BINS; bin += THREADS) shared.bins[bin] = 0;
        __syncthreads();
        row.each([&](uint32_t token, float logit) {
            if (is_removed(logit)) return;
            const Key key = key_of(logit, token);
            // The digits above this one are the boundary's.
            if (key < least || (shift < 56 && key >> (shift + 8) != prefix >> (shift + 8))) return;
            atomicAdd(&shared.bins[key >> shift & 0xFF], Key(amount(logit)));
        });
        __syncthreads();
        if (threadIdx.x == 0) {
            Key left = wanted;
            int bin = BINS - 1;
            while (bin > 0 && shared.bins[bin] < left) left -= shared.bins[bin--];
            shared.boundary = prefix | Key(bin) << shift;
            shared.left = left;
        }
        __syncthreads();
        prefix = shared.boundary;
        wanted = shared.left;
    }
    return prefix;
}

// The least key that top-k leaves.
__device__ Key top_k_boundary(const Row& row, uint32_t top_k, Shared& shared) {
    float num_left = 0;  // exact up to 2^24 tokens
    row.each([&](uint32_t, float logit) { num_left += is_removed(logit) ? 0 : 1; });
    if (float(top_k) >= row_sum(num_left, shared)) return 0;
    return descend(row, 0, top_k, [](float) { return 1; }, shared);
}

// The least key of the nucleus among keys from `least` on.
__device__ Key top_p_boundary(const Row& row, Key least, const Weights& weights, float top_p, Shared& shared) {
    Key total = 0;
    row.each([&](uint32_t token, float logit) {
        if (!is_removed(logit) && key_of(logit, token) >= least) total += weights.mass(logit);
    });
    // The bins serve as a place for one integer sum.
    __syncthreads();
    if (threadIdx.x == 0) shared.bins[0] = 0;
    __syncthreads();
    atomicAdd(&shared.bins[0], total);
    __syncthreads();
    const double wanted = ceil(double(top_p) * double(shared.bins[0]));
    return descend(row, least, max(Key(wanted), Key(1)), [&](float logit) { return weights.mass(logit); }, shared);
}

// Gumbel-max over what is left: the token with the largest logit / temperature + noise.
__device__ uint32_t draw(const Row& row, const SampleRule& rule, Key least, const Weights& weights, Shared& shared) {
    const DrawKey draw_key{rule.seed, rule.sample_index, rule.position};
    Key best = 0;
    row.each_four([&](uint32_t first, const float (&four)[4], uint32_t count) {
        uint32_t words[4];
        philox_words(draw_key, first / 4, words);
#pragma unroll
        for (uint32_t index = 0; index < 4; ++index) {
            const float logit = four[index];
            const uint32_t token = first + index;
            if (index >= count || is_removed(logit) || key_of(logit, token) < least) continue;
            if (rule.min_p > 0 && weights.weight(logit) < rule.min_p) continue;
            best = max(best, key_of(logit / rule.temperature + gumbel_of_word(words[index]), token));
        }
    });
    return token_of(block_max(best, shared));
}

// Rules 4 to 9 of the contract.
__device__ uint32_t choose(const Row& row, const SampleRule& rule, uint32_t likeliest, Shared& shared) {
    if (rule.temperature == 0) return likeliest;
    const Weights weights{row.logits[likeliest], rule.temperature};
    Key least = rule.top_k > 0 ? top_k_boundary(row, rule.top_k, shared) : 0;
    if (rule.top_p < 1) least = max(least, top_p_boundary(row, least, weights, rule.top_p, shared));
    return draw(row, rule, least, weights, shared);
}

// Log-probabilities of the chosen token and the likeliest ones, from the raw logits.
__device__ void report(const SampleParams& params, const SampleRule& rule, const Row& raw, uint32_t likeliest,
                       uint32_t token, SampleReport& out, Shared& shared) {
    const float maximum = raw.logits[likeliest];
    const Key chosen = key_of(raw.logits[token], token);
    float mass = 0, num_likelier = 0;
    raw.each([&](uint32_t other, float logit) {
        mass += expf(logit - maximum);
        num_likelier += key_of(logit, other) > chosen ? 1 : 0;
    });
    const float log_sum = logf(row_sum(mass, shared));
    num_likelier = row_sum(num_likelier, shared);
    if (threadIdx.x == 0) {
        out.logprob = raw.logits[token] - maximum - log_sum;
        out.rank = uint32_t(num_likelier) + 1;
    }
    Key bound = ~Key(0);
    for (uint32_t place = 0; place < min(rule.num_top, raw.len); ++place) {
        bound = raw.max_below(bound, shared);
        if (threadIdx.x == 0) {
            const uint32_t likely = token_of(bound);
            params.top[size_t(blockIdx.x) * params.max_top + place] = {likely, raw.logits[likely] - maximum - log_sum};
        }
    }
}

// One block a multiprocessor is enough: for more of them ptxas would spill.
PAGODA_KERNEL(sample, SampleParams, THREADS, sizeof(Shared), 1) {
    Shared& shared = shared_memory<Shared>();
    const SampleRule& rule = params.rules[blockIdx.x];
    const Row raw{params.logits + size_t(rule.row) * params.stride, params.vocab_size};
    const Key largest = raw.largest(shared);
    const uint32_t likeliest = token_of(largest);
    bool is_failed = largest == NOT_FINITE;
    uint32_t token = 0;
    if (!is_failed) {
        if (rule.forced != NONE) {
            token = rule.forced;
            is_failed = token >= raw.len;
        } else if (rule.num_counts + rule.num_biases + rule.num_banned > 0 || rule.first_mask_word != NONE) {
            float* logits = params.ruled + size_t(blockIdx.x) * params.vocab_size;
            apply_rules(params, rule, raw.logits, logits);
            const Row ruled{logits, params.vocab_size};
            const Key left = ruled.max_below(~Key(0), shared);
            is_failed = left == 0;
            if (!is_failed) token = choose(ruled, rule, token_of(left), shared);
        } else {
            token = choose(raw, rule, likeliest, shared);
        }
    }
    SampleReport& out = params.reports[blockIdx.x];
    if (threadIdx.x == 0) {
        out = {is_failed ? 0 : token, is_failed ? 1u : 0u, 0, 0};
        params.last_samples[blockIdx.x] = is_failed ? 0 : token;
    }
    if (!is_failed && rule.num_top != NONE) report(params, rule, raw, likeliest, token, out, shared);
}
