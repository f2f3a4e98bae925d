// Where K and V lie: [layer][block][K, V][kv head][slot of the block][channel].
#pragma once

#include "device.cuh"

constexpr uint32_t KV_K = 0;
constexpr uint32_t KV_V = 1;

// The tile [block size, head_dim] of one head in one block.
template <class T>
__device__ __forceinline__ T* kv_tile(const KvView& kv, uint32_t layer, uint32_t block, uint32_t which, uint32_t head) {
    const size_t tile = ((size_t(layer) * kv.num_blocks + block) * 2 + which) * kv.num_kv_heads + head;
    return static_cast<T*>(kv.data) + (tile << kv.log2_block_size) * kv.head_dim;
}

// The channels of one head in one slot (slot = block * block size + offset).
template <class T>
__device__ __forceinline__ T* kv_slot(const KvView& kv, uint32_t layer, uint32_t slot, uint32_t which, uint32_t head) {
    const uint32_t offset = slot & ((1u << kv.log2_block_size) - 1);
    return kv_tile<T>(kv, layer, slot >> kv.log2_block_size, which, head) + size_t(offset) * kv.head_dim;
}
