//! One sequence's map from position to block.

use crate::{BlockId, Slot};

/// The blocks of one sequence, in order: position `p` lives in block `p / block_size`. Changed by [`crate::KvCacheManager`]
/// only; whoever drops a table that is not empty leaks its blocks, which the integrity check finds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    pub(super) blocks: Vec<BlockId>,
    /// Leading blocks that have been offered to the prefix cache: full, committed.
    pub(super) num_offered: usize,
}

impl BlockTable {
    /// Blocks in the table.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the sequence holds nothing.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Where the KV of a position lives.
    pub fn slot(&self, position: usize, block_size: usize) -> Slot {
        Slot::new(self.blocks[position / block_size], position % block_size, block_size)
    }
}
