//! [`CpuKvCache`]: the paged K and V of all layers.
//!
//! ```text
//! [layer][block][kv head]   K [head_dim, block_size]   V [block_size, head_dim]
//! ```
//!
//! K lies transposed so that the lanes of the score kernel run over keys. A block's numbers of one layer are contiguous.

use pagoda_backend::{BackendError, BlockCopy, KvLayout};

use crate::kernels::attention::MAX_HEAD_DIM;
use crate::memory::Buffer;
use crate::simd::LANES;

/// K and V of all layers.
pub struct CpuKvCache {
    layout: KvLayout,
    data: Buffer<f32>,
}

impl CpuKvCache {
    /// All NaN in debug builds, so that a read of an unwritten slot shows.
    pub(crate) fn new(layout: KvLayout) -> Result<Self, BackendError> {
        let KvLayout { head_dim, block_size, .. } = layout;
        if head_dim == 0 || !head_dim.is_multiple_of(LANES) || head_dim > MAX_HEAD_DIM {
            let limit = format!("a multiple of {LANES} up to {MAX_HEAD_DIM}");
            return Err(BackendError::Unsupported(format!("head dimension {head_dim} (want {limit})")));
        }
        if block_size == 0 || !block_size.is_multiple_of(8) {
            return Err(BackendError::Unsupported(format!("block size {block_size} (want a multiple of 8)")));
        }
        let len = layout.elements_per_block().saturating_mul(layout.num_blocks);
        let mut data = Buffer::zeroed(len, "the KV cache")?;
        if cfg!(debug_assertions) {
            data.fill(f32::NAN);
        }
        Ok(CpuKvCache { layout, data })
    }

    /// Sizes.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// Numbers of one block in one layer.
    pub(crate) fn block_len(&self) -> usize {
        2 * self.layout.num_kv_heads * self.head_len()
    }

    /// Numbers of K (or V) of one head in one block.
    pub(crate) fn head_len(&self) -> usize {
        self.layout.block_size * self.layout.head_dim
    }

    fn layer_len(&self) -> usize {
        self.layout.num_blocks * self.block_len()
    }

    /// Block 0 of a layer.
    pub(crate) fn layer(&self, layer: usize) -> &[f32] {
        &self.data[layer * self.layer_len()..][..self.layer_len()]
    }

    /// Block 0 of a layer, to be written.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut [f32] {
        let len = self.layer_len();
        &mut self.data[layer * len..][..len]
    }

    /// Copies the leading slots of each source to its target, in every layer.
    pub(crate) fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        let (block_len, head_len) = (self.block_len(), self.head_len());
        let KvLayout { block_size, head_dim, num_layers, num_blocks, num_kv_heads } = self.layout;
        for copy in copies {
            let (source, target) = (copy.source as usize, copy.target as usize);
            let num_slots = copy.num_slots as usize;
            assert!(source < num_blocks && target < num_blocks && num_slots <= block_size, "{copy:?}");
            for layer in 0..num_layers {
                let data = self.layer_mut(layer);
                let (source, target) = (source * block_len, target * block_len);
                for head in (0..num_kv_heads).map(|kv_head| kv_head * 2 * head_len) {
                    for channel in (0..head_dim).map(|channel| head + channel * block_size) {
                        let from = source + channel;
                        data.copy_within(from..from + num_slots, target + channel);
                    }
                    let from = source + head + head_len;
                    data.copy_within(from..from + num_slots * head_dim, target + head + head_len);
                }
            }
        }
    }
}
