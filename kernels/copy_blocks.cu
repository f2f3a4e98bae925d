// Copies the first `num_slots` slots of block `source` to block `target`, K and V, every head of every layer
// (copy-on-write and partial prefix hits; PagedAttention, arXiv 2309.06180, section 4.4).
//
// Launch: grid (copies, layers, 2 * kv heads) of 128 threads: a block copies one head's leading slots, which are contiguous.
// Targets are distinct and no source is a target, so the order of the blocks does not matter.
#include "device.cuh"

constexpr uint32_t THREADS = 128;

PAGODA_KERNEL(copy_blocks, CopyBlocksParams, THREADS, 0) {
    const KvView& kv = params.kv;
    const BlockCopyEntry copy = params.copies[blockIdx.x];
    const uint32_t slot_vectors = kv.head_dim / VECTOR;
    const uint32_t tile_vectors = slot_vectors << kv.log2_block_size;
    const size_t blocks_before = size_t(blockIdx.y) * kv.num_blocks;
    const size_t num_tiles = 2 * kv.num_kv_heads;  // of a block
    uint4* data = static_cast<uint4*>(kv.data);
    const uint4* from = data + ((blocks_before + copy.source) * num_tiles + blockIdx.z) * tile_vectors;
    uint4* to = data + ((blocks_before + copy.target) * num_tiles + blockIdx.z) * tile_vectors;
    const uint32_t num_vectors = copy.num_slots * slot_vectors;
    for (uint32_t index = threadIdx.x; index < num_vectors; index += THREADS) to[index] = from[index];
}
