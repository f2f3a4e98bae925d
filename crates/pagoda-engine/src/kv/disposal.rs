//! What becomes of the content of blocks that are full or given back: offered to the prefix cache, or forgotten.

use super::{HashedTokens, KvCacheManager};
use crate::BlockId;

/// What becomes of the blocks of a sequence that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposal {
    /// Others may match them.
    Reusable,
    /// Their content is doubtful (a failed row): what nobody else holds is forgotten.
    Doubtful,
}

impl KvCacheManager {
    pub(super) fn offer_all(&mut self, blocks: &[BlockId], tokens: &HashedTokens, num_computed: usize) {
        if !self.prefix_caching {
            return;
        }
        let num_full = num_computed / self.block_size;
        for (index, &block) in blocks.iter().enumerate().take(num_full) {
            self.offer(block, index, tokens, num_computed);
        }
        // A tail that another table holds may still be written by it.
        if !num_computed.is_multiple_of(self.block_size) && self.num_owners(blocks[num_full]) == 1 {
            self.offer(blocks[num_full], num_full, tokens, num_computed);
        }
    }

    pub(super) fn offer(&mut self, block: BlockId, index: usize, tokens: &HashedTokens, num_computed: usize) {
        if self.prefix_caching && !self.cache.contains(block) {
            self.cache.insert(block, tokens.parent(index), tokens.block(index, num_computed));
        }
    }

    pub(super) fn forget(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            if self.cache.contains(block) && self.num_owners(block) == 1 {
                self.cache.remove(block);
            }
        }
    }
}
