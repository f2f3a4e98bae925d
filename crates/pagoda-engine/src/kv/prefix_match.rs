//! What the cache has of a sequence's beginning, and what taking it costs. Looking up changes nothing.

use super::{HashedTokens, KvCacheManager};
use crate::BlockId;

/// A cached prefix. Valid until the manager is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Full blocks, to be shared.
    pub blocks: Vec<BlockId>,
    /// A block whose first slots are to be copied, and how many.
    pub partial: Option<(BlockId, usize)>,
    /// Tokens covered in all.
    pub num_tokens: usize,
}

impl PrefixMatch {
    /// The match without its copy.
    pub fn without_partial(mut self) -> Self {
        if let Some((_, num_slots)) = self.partial.take() {
            self.num_tokens -= num_slots;
        }
        self
    }
}

impl KvCacheManager {
    /// Looks up the longest cached prefix of at most `max_tokens` tokens. Changes nothing.
    pub fn match_prefix(&self, tokens: &HashedTokens, max_tokens: usize) -> PrefixMatch {
        let mut found = PrefixMatch::default();
        if !self.prefix_caching {
            return found;
        }
        let max_tokens = max_tokens.min(tokens.len());
        for index in 0..max_tokens / self.block_size {
            let block = self.cache.find(tokens.parent(index), tokens.block(index, max_tokens));
            let Some(block) = block else { break };
            found.blocks.push(block);
        }
        found.num_tokens = found.blocks.len() * self.block_size;
        let wanted = tokens.block(found.blocks.len(), max_tokens);
        if !wanted.is_empty() {
            found.partial = self.cache.find_longest(tokens.parent(found.blocks.len()), wanted);
            found.num_tokens += found.partial.map_or(0, |(_, num_slots)| num_slots);
        }
        found
    }

    /// Blocks that leave the available ones if a sequence takes the match and grows to `num_tokens`.
    pub fn num_blocks_to_allocate(&self, found: &PrefixMatch, num_tokens: usize) -> usize {
        let sources = found.partial.iter().map(|(source, _)| source);
        let num_woken =
            found.blocks.iter().chain(sources).filter(|&&block| self.pool.ref_count(block) == 0).count();
        num_tokens.div_ceil(self.block_size) - found.blocks.len() + num_woken
    }
}
