// Copies the first `num_slots` slots of block `source` to block `target`, K and V, every head of every layer
// (copy-on-write and partial prefix hits; PagedAttention, arXiv 2309.06180, section 4.4).
//
// Launch: grid (copies, layers, 2 * kv heads) of 128 threads: a block copies one head's leading slots, which are contiguous,
// and their scales if it has them. Targets are distinct and no source is a target, so the order of the blocks does not matter.
#include "kv.cuh"

constexpr uint32_t THREADS = 128;

template <class Kv>
__device__ __forceinline__ void copy_slots(const KvView& kv, const BlockCopyEntry& copy) {
    const uint32_t which = blockIdx.z / kv.num_kv_heads, head = blockIdx.z % kv.num_kv_heads;
    Kv* from = kv_tile<Kv>(kv, blockIdx.y, copy.source, which, head);
    Kv* to = kv_tile<Kv>(kv, blockIdx.y, copy.target, which, head);
    const uint32_t num_vectors = copy.num_slots * kv.head_dim * sizeof(Kv) / 16;
    for (uint32_t index = threadIdx.x; index < num_vectors; index += THREADS) {
        reinterpret_cast<uint4*>(to)[index] = reinterpret_cast<const uint4*>(from)[index];
    }
    if constexpr (IS_E4M3<Kv>) {
        for (uint32_t slot = threadIdx.x; slot < copy.num_slots; slot += THREADS) {
            kv_scales(kv, to)[slot] = kv_scales(kv, from)[slot];
        }
    }
}

PAGODA_KERNEL(copy_blocks, CopyBlocksParams, THREADS, 0) {
    const BlockCopyEntry copy = params.copies[blockIdx.x];
    if (params.kv.is_e4m3) {
        copy_slots<e4m3>(params.kv, copy);
    } else {
        // bf16 or f16: two bytes.
        copy_slots<bf16>(params.kv, copy);
    }
}
