// Where K and V lie: [layer][block][K, V][kv head], each a tile [slot of the block][channel]. A tile of e4m3 codes is followed by
// the scales [slot].
#pragma once

#include "e4m3.cuh"

template <class Kv>
constexpr bool IS_E4M3 = false;
template <>
constexpr bool IS_E4M3<e4m3> = true;

constexpr uint32_t KV_K = 0;
constexpr uint32_t KV_V = 1;

// The tile [block size, head_dim] of one head in one block.
template <class Kv>
__device__ __forceinline__ Kv* kv_tile(const KvView& kv, uint32_t layer, uint32_t block, uint32_t which, uint32_t head) {
    const size_t tile = ((size_t(layer) * kv.num_blocks + block) * 2 + which) * kv.num_kv_heads + head;
    const size_t slot_bytes = kv.head_dim * sizeof(Kv) + IS_E4M3<Kv>;
    return reinterpret_cast<Kv*>(static_cast<char*>(kv.data) + (tile * slot_bytes << kv.log2_block_size));
}

// The scales of a tile of codes.
template <class Code>
__device__ __forceinline__ Code* kv_scales(const KvView& kv, Code* tile) {
    return tile + (kv.head_dim << kv.log2_block_size);
}
