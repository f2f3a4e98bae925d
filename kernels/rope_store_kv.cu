// Optional RMS norm of each Q and K head, rotary embedding of both (RoFormer, arXiv 2104.09864), Q back in place, K and V to
// their slots of the paged cache.
//
// Launch: one block of 128 threads per row; a warp takes one head at a time. Bytes: the row once in, Q, K and V once out.
// Channel i turns with channel i + rotary_half, which another lane may hold: the head goes through shared memory.
#include "kv.cuh"
#include "reduce.cuh"

constexpr uint32_t THREADS = 128;
constexpr uint32_t WARPS = THREADS / WARP_SIZE;
constexpr uint32_t MAX_HEAD_DIM = 256;

struct Shared {
    float head[WARPS][MAX_HEAD_DIM];
};

struct Rotation {
    const float* cos;  // [half] of the row's position
    const float* sin;
    uint32_t half;
};

// Channel `channel` of the rotated head `x`.
__device__ __forceinline__ float rotated(const float* x, const Rotation& rotation, uint32_t channel) {
    const uint32_t half = rotation.half;
    if (channel < half) return x[channel] * rotation.cos[channel] - x[channel + half] * rotation.sin[channel];
    if (channel >= 2 * half) return x[channel];
    return x[channel - half] * rotation.sin[channel - half] + x[channel] * rotation.cos[channel - half];
}

// Norm (if `norm` is not null) and rotation of the head at `from`, to `to`, by one warp; `x` is the warp's scratch.
template <class T>
__device__ void turn_head(const RopeStoreKvParams& params, const Rotation& rotation, const float* norm, const T* from,
                          T* to, float* x) {
    const uint32_t head_dim = params.kv.head_dim;
    const uint32_t first = threadIdx.x % WARP_SIZE * 2;
    float squares = 0;
    for (uint32_t channel = first; channel < head_dim; channel += 2 * WARP_SIZE) {
        const uint32_t pair = *reinterpret_cast<const uint32_t*>(from + channel);
        x[channel] = low_of<T>(pair);
        x[channel + 1] = high_of<T>(pair);
        squares += x[channel] * x[channel] + x[channel + 1] * x[channel + 1];
    }
    if (norm) {
        const float factor = rsqrtf(warp_sum(squares) / float(head_dim) + params.eps);
        for (uint32_t channel = first; channel < head_dim; channel += 2 * WARP_SIZE) {
            x[channel] *= factor * norm[channel];
            x[channel + 1] *= factor * norm[channel + 1];
        }
    }
    __syncwarp();
    for (uint32_t channel = first; channel < head_dim; channel += 2 * WARP_SIZE) {
        *reinterpret_cast<uint32_t*>(to + channel) =
            pack2<T>(rotated(x, rotation, channel), rotated(x, rotation, channel + 1));
    }
    __syncwarp();
}

template <class T>
__device__ void rope_store_kv(const RopeStoreKvParams& params) {
    Shared& shared = shared_memory<Shared>();
    const uint32_t warp = threadIdx.x / WARP_SIZE;
    const uint32_t head_dim = params.kv.head_dim;
    const uint32_t num_q_heads = params.num_q_heads, num_kv_heads = params.kv.num_kv_heads;
    const uint32_t slot = params.slots[blockIdx.x];
    const size_t angles = size_t(params.positions[blockIdx.x]) * params.rotary_half;
    const Rotation rotation{params.cos + angles, params.sin + angles, params.rotary_half};
    T* row = static_cast<T*>(params.qkv) + size_t(blockIdx.x) * (num_q_heads + 2 * num_kv_heads) * head_dim;
    for (uint32_t head = warp; head < num_q_heads + 2 * num_kv_heads; head += WARPS) {
        T* from = row + size_t(head) * head_dim;
        if (head < num_q_heads) {
            turn_head<T>(params, rotation, params.q_norm, from, from, shared.head[warp]);
        } else if (head < num_q_heads + num_kv_heads) {
            T* to = kv_slot<T>(params.kv, params.layer, slot, KV_K, head - num_q_heads);
            turn_head<T>(params, rotation, params.k_norm, from, to, shared.head[warp]);
        } else {
            T* to = kv_slot<T>(params.kv, params.layer, slot, KV_V, head - num_q_heads - num_kv_heads);
            for (uint32_t vector = threadIdx.x % WARP_SIZE; vector < head_dim / VECTOR; vector += WARP_SIZE) {
                reinterpret_cast<uint4*>(to)[vector] = reinterpret_cast<const uint4*>(from)[vector];
            }
        }
    }
}

PAGODA_KERNEL(rope_store_kv_bf16, RopeStoreKvParams, THREADS, sizeof(Shared)) { rope_store_kv<bf16>(params); }
PAGODA_KERNEL(rope_store_kv_f16, RopeStoreKvParams, THREADS, sizeof(Shared)) { rope_store_kv<f16>(params); }
