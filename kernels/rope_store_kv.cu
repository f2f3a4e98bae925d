// Optional RMS norm of each Q and K head, rotary embedding of both (RoFormer, arXiv 2104.09864), Q back in place, K and V to
// their slots of the paged cache.
//
// Launch: one block of 128 threads per row; a warp takes one head at a time. Bytes: the row once in, Q, K and V once out.
// Channel i turns with channel i + rotary_half, which another lane may hold: the head goes through shared memory. Codes need
// the largest magnitude of the head first: the rotation is done twice, which costs less than a place to keep it.
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

// The head at `from`, normed if `norm` is not null, into the warp's scratch `x`.
template <class T>
__device__ __forceinline__ void load_head(const RopeStoreKvParams& params, const float* norm, const T* from, float* x) {
    const uint32_t head_dim = params.kv.head_dim;
    const uint32_t first = threadIdx.x % WARP_SIZE * 2;
    // The head before this one has been read.
    __syncwarp();
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
}

// The warp's head `x`, rotated, to `to` as T.
template <class T>
__device__ __forceinline__ void store_head(uint32_t head_dim, const Rotation& rotation, const float* x, T* to) {
    for (uint32_t channel = threadIdx.x % WARP_SIZE * 2; channel < head_dim; channel += 2 * WARP_SIZE) {
        *reinterpret_cast<uint32_t*>(to + channel) =
            pack2<T>(rotated(x, rotation, channel), rotated(x, rotation, channel + 1));
    }
}

// The same as codes, and their scale.
__device__ __forceinline__ void store_codes(uint32_t head_dim, const Rotation& rotation, const float* x, e4m3* to,
                                            e4m3* scale_to) {
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    uint32_t largest = 0;  // of the magnitudes, as bits: in the same order, and NaN above all
    for (uint32_t channel = lane; channel < head_dim; channel += WARP_SIZE) {
        largest = max(largest, __float_as_uint(rotated(x, rotation, channel)) & 0x7FFFFFFF);
    }
    const uint32_t scale = e4m3_scale(warp_max(largest));
    const float inverse = e4m3_inverse(scale);
    for (uint32_t channel = lane * 2; channel < head_dim; channel += 2 * WARP_SIZE) {
        const uint32_t low = e4m3_code(rotated(x, rotation, channel) * inverse);
        const uint32_t high = e4m3_code(rotated(x, rotation, channel + 1) * inverse);
        *reinterpret_cast<uint16_t*>(to + channel) = uint16_t(low | high << 8);
    }
    if (lane == 0) scale_to->bits = uint8_t(scale);
}

// The heads of K and V: to their slot, as they are to be kept.
template <class T, class Kv>
__device__ __forceinline__ void store_kv_head(const RopeStoreKvParams& params, const Rotation& rotation, uint32_t which,
                                              uint32_t kv_head, const float* x) {
    const KvView& kv = params.kv;
    const uint32_t slot = params.slots[blockIdx.x];
    const uint32_t offset = slot & ((1u << kv.log2_block_size) - 1);
    Kv* tile = kv_tile<Kv>(kv, params.layer, slot >> kv.log2_block_size, which, kv_head);
    Kv* to = tile + size_t(offset) * kv.head_dim;
    if constexpr (IS_E4M3<Kv>) {
        store_codes(kv.head_dim, rotation, x, to, kv_scales(kv, tile) + offset);
    } else {
        store_head<T>(kv.head_dim, rotation, x, to);
    }
}

template <class T, class Kv>
__device__ void rope_store_kv(const RopeStoreKvParams& params) {
    Shared& shared = shared_memory<Shared>();
    const uint32_t warp = threadIdx.x / WARP_SIZE;
    const uint32_t head_dim = params.kv.head_dim;
    const uint32_t num_q_heads = params.num_q_heads, num_kv_heads = params.kv.num_kv_heads;
    const size_t angles = size_t(params.positions[blockIdx.x]) * params.rotary_half;
    const Rotation rotation{params.cos + angles, params.sin + angles, params.rotary_half};
    T* row = static_cast<T*>(params.qkv) + size_t(blockIdx.x) * (num_q_heads + 2 * num_kv_heads) * head_dim;
    float* x = shared.head[warp];
    for (uint32_t head = warp; head < num_q_heads; head += WARPS) {
        load_head<T>(params, params.q_norm, row + size_t(head) * head_dim, x);
        store_head<T>(head_dim, rotation, x, row + size_t(head) * head_dim);
    }
    for (uint32_t index = warp; index < 2 * num_kv_heads; index += WARPS) {
        const bool is_v = index >= num_kv_heads;
        const T* from = row + size_t(num_q_heads + index) * head_dim;
        load_head<T>(params, is_v ? nullptr : params.k_norm, from, x);
        const Rotation turn{rotation.cos, rotation.sin, is_v ? 0 : rotation.half};
        store_kv_head<T, Kv>(params, turn, is_v ? KV_V : KV_K, is_v ? index - num_kv_heads : index, x);
    }
}

#define ROPE(T, KV, KIND)                                                                       \
    PAGODA_KERNEL(rope_store_kv_##KIND, RopeStoreKvParams, THREADS, sizeof(Shared)) { \
        rope_store_kv<T, KV>(params);                                                           \
    }
ROPE(bf16, bf16, bf16)
ROPE(f16, f16, f16)
ROPE(bf16, e4m3, e4m3_bf16)
ROPE(f16, e4m3, e4m3_f16)
