//! Which blocks can be matched, by what came before them and by their tokens. Does not know who holds a block.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::BlockHash;
use crate::ids::IdHasher;
use crate::integrity::hold;
use crate::{BlockId, IntegrityError, TokenId};

/// An index of frozen blocks.
///
/// Children are indexed by the hash of everything before them and sorted by their tokens. Finding one therefore compares
/// its tokens: a hit is never taken on the word of a hash of its content. In a sorted list the child with the longest
/// common prefix stands beside the place where the wanted tokens would stand, so that a system prompt followed by ten
/// thousand different questions costs some fourteen comparisons.
#[derive(Clone, Debug)]
pub struct PrefixCache {
    block_size: usize,
    /// `[num_blocks]` tokens for which the block's KV is valid; 0 if it is not cached.
    lens: Vec<u32>,
    /// `[num_blocks * block_size]`
    tokens: Vec<TokenId>,
    /// `[num_blocks]` the hash of everything before the block; meaningless if it is not cached.
    parents: Vec<BlockHash>,
    /// Sorted by tokens, no two equal.
    children: HashMap<BlockHash, Vec<BlockId>, BuildHasherDefault<IdHasher>>,
}

impl PrefixCache {
    /// An empty cache over a pool.
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        PrefixCache {
            block_size,
            lens: vec![0; num_blocks],
            tokens: vec![0; num_blocks * block_size],
            parents: vec![BlockHash::root(&crate::CacheSalt::default()); num_blocks],
            children: HashMap::default(),
        }
    }

    /// Whether the block can be matched.
    pub fn contains(&self, block: BlockId) -> bool {
        self.lens[block.0 as usize] != 0
    }

    /// Freezes a block with the tokens it holds, at least one and at most a block full. Returns `false` and changes
    /// nothing if another block already serves every match that this one could.
    pub fn insert(&mut self, block: BlockId, parent: BlockHash, tokens: &[TokenId]) -> bool {
        assert!(!self.contains(block), "{block} is cached already");
        assert!((1..=self.block_size).contains(&tokens.len()), "{} tokens in a block", tokens.len());
        let place = self.place(parent, tokens);
        let siblings = self.children.entry(parent).or_default();
        if let Some(&sibling) = siblings.get(place) {
            let start = sibling.0 as usize * self.block_size;
            if self.tokens[start..start + self.lens[sibling.0 as usize] as usize].starts_with(tokens) {
                return false;
            }
        }
        siblings.insert(place, block);
        let index = block.0 as usize;
        self.lens[index] = tokens.len() as u32;
        self.parents[index] = parent;
        self.tokens[index * self.block_size..][..tokens.len()].copy_from_slice(tokens);
        true
    }

    /// Forgets a block. Its children stay: they are found again when the same content is cached again.
    pub fn remove(&mut self, block: BlockId) {
        let parent = self.parents[block.0 as usize];
        let place = self.place(parent, self.tokens_of(block));
        let siblings = self.children.get_mut(&parent).expect("a cached block is among its parent's children");
        assert_eq!(siblings.remove(place), block, "children are sorted by tokens, no two equal");
        if siblings.is_empty() {
            self.children.remove(&parent);
        }
        self.lens[block.0 as usize] = 0;
    }

    /// The cached block that holds exactly these tokens after that parent.
    pub fn find(&self, parent: BlockHash, tokens: &[TokenId]) -> Option<BlockId> {
        let block = *self.children.get(&parent)?.get(self.place(parent, tokens))?;
        (self.tokens_of(block) == tokens).then_some(block)
    }

    /// The cached block that shares the most leading tokens, and how many.
    pub fn find_longest(&self, parent: BlockHash, tokens: &[TokenId]) -> Option<(BlockId, usize)> {
        let siblings = self.children.get(&parent)?;
        let place = self.place(parent, tokens);
        let neighbours = siblings[place.saturating_sub(1)..].iter().take(2);
        neighbours
            .map(|&block| (block, common_prefix_len(self.tokens_of(block), tokens)))
            .max_by_key(|&(_, num_common)| num_common)
            .filter(|&(_, num_common)| num_common > 0)
    }

    /// The most leading tokens that any child shares, and whether such a child goes on behind them. `None` without
    /// children.
    pub fn nearest(&self, parent: BlockHash, tokens: &[TokenId]) -> Option<(usize, bool)> {
        let siblings = self.children.get(&parent)?;
        let place = self.place(parent, tokens);
        // A child that goes on otherwise sorts behind one that ends where it parts, hence nearer to the place.
        let neighbours = siblings[place.saturating_sub(1)..].iter().take(2);
        let shared = neighbours.map(|&block| {
            let own = self.tokens_of(block);
            let num_common = common_prefix_len(own, tokens);
            (num_common, own.len() > num_common)
        });
        shared.max()
    }

    /// The hash of everything before a cached block.
    pub(super) fn parent_of(&self, block: BlockId) -> BlockHash {
        self.parents[block.0 as usize]
    }

    /// Blocks that can be matched.
    pub(super) fn num_cached(&self) -> usize {
        self.lens.iter().filter(|&&len| len != 0).count()
    }

    /// The tokens for which a cached block's KV is valid; empty if it is not cached.
    pub fn tokens_of(&self, block: BlockId) -> &[TokenId] {
        let index = block.0 as usize;
        &self.tokens[index * self.block_size..][..self.lens[index] as usize]
    }

    /// Where the tokens stand, or would stand, among the children.
    fn place(&self, parent: BlockHash, tokens: &[TokenId]) -> usize {
        let siblings = self.children.get(&parent).map_or(&[][..], Vec::as_slice);
        siblings.partition_point(|&sibling| self.tokens_of(sibling) < tokens)
    }

    /// Law 4's bookkeeping: every cached block is exactly once among its parent's children, which are sorted.
    pub(super) fn check_integrity(&self) -> Result<(), IntegrityError> {
        let mut num_children = 0;
        for (parent, siblings) in &self.children {
            num_children += siblings.len();
            hold!(4, !siblings.is_empty(), "parent {parent:?} has an empty list of children");
            for block in siblings {
                hold!(4, self.contains(*block), "{block} is a child but not cached");
                hold!(4, self.parents[block.0 as usize] == *parent, "{block} is a child of the wrong parent");
            }
            let is_sorted = siblings.windows(2).all(|pair| self.tokens_of(pair[0]) < self.tokens_of(pair[1]));
            hold!(4, is_sorted, "the children of {parent:?} are not sorted");
        }
        let num_cached = self.num_cached();
        hold!(4, num_cached == num_children, "{num_cached} blocks are cached, {num_children} are children");
        Ok(())
    }
}

fn common_prefix_len(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheSalt;

    fn cache_of(blocks: &[&[TokenId]]) -> (PrefixCache, BlockHash) {
        let root = BlockHash::root(&CacheSalt::default());
        let mut cache = PrefixCache::new(blocks.len() + 1, 4);
        for (index, tokens) in blocks.iter().enumerate() {
            assert!(cache.insert(BlockId(index as u32 + 1), root, tokens));
        }
        cache.check_integrity().unwrap();
        (cache, root)
    }

    #[test]
    fn a_colliding_parent_hash_cannot_make_a_wrong_hit() {
        // Both blocks stand under one parent, as they would if their parents' hashes collided.
        let (cache, root) = cache_of(&[&[1, 2, 3, 4]]);
        assert_eq!(cache.find(root, &[1, 2, 3, 4]), Some(BlockId(1)));
        assert_eq!(cache.find(root, &[1, 2, 3, 5]), None);
    }

    #[test]
    fn the_longest_common_prefix_is_found_on_either_side() {
        let (cache, root) = cache_of(&[&[1, 1], &[1, 2, 3, 4], &[1, 2, 9, 9], &[3]]);
        assert_eq!(cache.find_longest(root, &[1, 2, 3, 9]), Some((BlockId(2), 3)));
        assert_eq!(cache.find_longest(root, &[1, 2, 9, 0]), Some((BlockId(3), 3)));
        assert_eq!(cache.find_longest(root, &[1, 1, 1, 1]), Some((BlockId(1), 2)));
        assert_eq!(cache.find_longest(root, &[3, 0, 0, 0]), Some((BlockId(4), 1)));
        assert_eq!(cache.find_longest(root, &[2, 2, 2, 2]), None);
    }

    #[test]
    fn a_block_that_adds_nothing_is_refused() {
        let (mut cache, root) = cache_of(&[&[1, 2, 3, 4], &[7], &[8]]);
        cache.remove(BlockId(3));
        assert!(!cache.insert(BlockId(3), root, &[1, 2]));
        assert!(!cache.insert(BlockId(3), root, &[1, 2, 3, 4]));
        assert!(cache.insert(BlockId(3), root, &[7, 7]));
        cache.check_integrity().unwrap();
    }
}
