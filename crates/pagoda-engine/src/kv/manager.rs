//! The block manager: gives blocks to sequences as they grow, shares what is equal, copies before a write, and takes
//! back. Owns the pool and the prefix cache; the tables belong to their sequences.

use std::collections::VecDeque;

use super::ghosts::GhostList;
use super::prefix_report::RecentDomains;
use super::{BlockPool, BlockTable, Disposal, HashedTokens, PrefixCache, PrefixMatch, QueueEnd};
use crate::{BlockCopy, BlockId, TokenId};

/// The KV cache of the engine.
///
/// # Laws
///
/// 1. free + referenced + cached = `num_blocks - 1`; block 0 is never handed out (it pads captured graphs).
/// 2. `ref_count(b)` = tables holding `b`, retired ones included, + launched copies reading `b`.
/// 3. A step writes only positions `>= num_computed_tokens`, in blocks that one table holds and that are not in the cache;
///    otherwise [`KvCacheManager::append`] first yields a [`BlockCopy`]. A copy that reads a block does not stand in the
///    way of its last owner: the copies of a step run before its writes, and steps run in launch order. (Counting readers
///    as owners would cost each fork one more copy and one more block.)
/// 4. A cached block is frozen with its valid length: full, or the tail of a sequence that ended or was preempted. A match
///    of the first k tokens is served by copying k slots; the source is held until the copy's step has ended.
/// 5. `hash(block i) = H(hash(i - 1), tokens)`, the salt in the first; tokens are compared on a hit.
/// 6. `table.len() == ceil((num_computed + num_scheduled) / block_size)`; 0 while waiting.
/// 7. Tables are append-only while running, but for a tail that is copied before a write.
/// 8. Blocks are released in reverse order, so that tails are evicted before heads.
/// 9. A block becomes matchable in [`KvCacheManager::commit`], never when it is only scheduled.
///
/// (10 and 11 are the scheduler's.)
///
/// 12. What was evicted is remembered for [`KvCacheManager::report`] only: at most as many ghosts as blocks, no block is
///     held and no match changed by them.
///
/// What a commit frees while later steps are in flight is *retired*: it returns to the pool when they have ended, because
/// their rows may still write behind the valid tokens.
#[derive(Clone, Debug)]
pub struct KvCacheManager {
    pub(super) block_size: usize,
    pub(super) prefix_caching: bool,
    pub(super) pool: BlockPool,
    pub(super) cache: PrefixCache,
    pub(super) ghosts: GhostList,
    pub(super) domains: RecentDomains,
    /// Of the unreferenced blocks, those in the cache.
    pub(super) num_cached: usize,
    /// `[num_blocks]` planned and launched copies that read the block; part of its reference count.
    pub(super) num_readers: Vec<u32>,
    /// Copies of the step that is being planned.
    pub(super) planned_copies: Vec<BlockCopy>,
    /// Launched steps, oldest first, with the blocks their copies read.
    pub(super) steps_in_flight: VecDeque<(u64, Vec<BlockId>)>,
    /// Tables of ended sequences with the step after which they are released.
    pub(super) retired: VecDeque<(u64, Vec<BlockId>)>,
}

impl KvCacheManager {
    /// An empty cache of `num_blocks` blocks, block 0 included.
    pub fn new(num_blocks: usize, block_size: usize, prefix_caching: bool) -> Self {
        KvCacheManager {
            block_size,
            prefix_caching,
            pool: BlockPool::new(num_blocks),
            cache: PrefixCache::new(num_blocks, block_size),
            ghosts: GhostList::new(if prefix_caching { num_blocks } else { 0 }, block_size),
            domains: RecentDomains::default(),
            num_cached: 0,
            num_readers: vec![0; num_blocks],
            planned_copies: Vec::new(),
            steps_in_flight: VecDeque::new(),
            retired: VecDeque::new(),
        }
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that can be handed out at all.
    pub fn num_total(&self) -> usize {
        self.pool.num_blocks() - 1
    }

    /// Blocks that can be handed out now: free and cached ones.
    pub fn num_available(&self) -> usize {
        self.pool.num_unreferenced()
    }

    /// Blocks that nobody holds but that can be matched.
    pub fn num_cached(&self) -> usize {
        self.num_cached
    }

    /// Blocks that nobody holds and that hold nothing.
    pub fn num_free(&self) -> usize {
        self.pool.num_unreferenced() - self.num_cached
    }

    /// Blocks held by tables and copies.
    pub fn num_referenced(&self) -> usize {
        self.num_total() - self.pool.num_unreferenced()
    }

    /// Evicted blocks that are remembered; at most as many as the pool has.
    pub fn num_ghosts(&self) -> usize {
        self.ghosts.len()
    }

    /// Gives an empty table the matched blocks and room for `num_tokens` tokens in all. `None`, and nothing changes, if
    /// there are not enough blocks.
    pub fn allocate(&mut self, table: &mut BlockTable, found: &PrefixMatch, num_tokens: usize) -> Option<()> {
        assert!(table.is_empty(), "a sequence takes a prefix once, this one holds {} blocks", table.len());
        assert!(num_tokens > found.num_tokens, "at least one token is always computed");
        if self.num_blocks_to_allocate(found, num_tokens) > self.num_available() {
            return None;
        }
        for &block in &found.blocks {
            self.retain(block);
        }
        table.blocks.extend_from_slice(&found.blocks);
        table.num_offered = found.blocks.len();
        if let Some((source, num_slots)) = found.partial {
            // Held before a target is taken, which could evict the source itself.
            self.retain(source);
            let target = self.take_block();
            table.blocks.push(target);
            self.plan_copy(source, target, num_slots);
        }
        self.extend(table, num_tokens);
        Some(())
    }

    /// Blocks that [`KvCacheManager::append`] would take.
    pub fn num_blocks_to_append(&self, table: &BlockTable, num_computed: usize, num_new: usize) -> usize {
        let num_blocks = (num_computed + num_new).div_ceil(self.block_size);
        num_blocks - table.len() + usize::from(self.must_copy_tail(table, num_computed))
    }

    /// Room for `num_new` more tokens behind `num_computed`, in blocks the sequence may write. A tail that others hold is
    /// copied. `None`, and nothing changes, if there are not enough blocks.
    pub fn append(&mut self, table: &mut BlockTable, num_computed: usize, num_new: usize) -> Option<()> {
        if self.num_blocks_to_append(table, num_computed, num_new) > self.num_available() {
            return None;
        }
        if self.must_copy_tail(table, num_computed) {
            let target = self.take_block();
            let tail = table.blocks.last_mut().expect("a tail to copy is there");
            let source = std::mem::replace(tail, target);
            // The table's hold on the source becomes the copy's.
            self.plan_copy(source, target, num_computed % self.block_size);
        }
        self.extend(table, num_computed + num_new);
        Some(())
    }

    /// A second sequence with the same blocks, the tail included; whoever writes first copies it.
    pub fn fork(&mut self, table: &BlockTable) -> BlockTable {
        for &block in &table.blocks {
            self.pool.retain(block);
        }
        BlockTable { blocks: table.blocks.clone(), num_offered: table.num_offered }
    }

    /// The KV of the first `num_computed` tokens is there: full blocks become matchable.
    pub fn commit(&mut self, table: &mut BlockTable, tokens: &HashedTokens, num_computed: usize) {
        let num_full = num_computed / self.block_size;
        for index in table.num_offered..num_full {
            self.offer(table.blocks[index], index, tokens, num_computed);
        }
        table.num_offered = table.num_offered.max(num_full);
    }

    /// Takes the blocks back, of which the first `num_computed` tokens are valid. While steps are in flight they are
    /// retired, else released at once.
    pub fn free(
        &mut self,
        table: &mut BlockTable,
        tokens: &HashedTokens,
        num_computed: usize,
        disposal: Disposal,
    ) {
        let blocks = std::mem::take(table).blocks;
        match disposal {
            // All blocks, not only the new ones: a block that lost against an equal one may serve now, if that one has
            // been evicted, and keeps its children reachable.
            Disposal::Reusable => self.offer_all(&blocks, tokens, num_computed),
            Disposal::Doubtful => self.forget(&blocks),
        }
        match self.steps_in_flight.back() {
            Some(&(newest, _)) => self.retired.push_back((newest, blocks)),
            None => self.release_all(&blocks),
        }
    }

    /// The copies planned since the last launch. They, and what is freed from now on, are tied to the step's end.
    pub fn launch_step(&mut self, step_id: u64, copies: &mut Vec<BlockCopy>) {
        let sources = self.planned_copies.iter().map(|copy| copy.source).collect();
        copies.append(&mut self.planned_copies);
        self.steps_in_flight.push_back((step_id, sources));
    }

    /// The oldest step has ended, well or badly: its copies' sources and what was retired until then are released.
    pub fn end_step(&mut self, step_id: u64) {
        let (oldest, sources) = self.steps_in_flight.pop_front().expect("a step that ends was launched");
        assert_eq!(oldest, step_id, "steps end in launch order");
        for source in sources {
            self.num_readers[source.0 as usize] -= 1;
            self.release(source);
        }
        while self.retired.front().is_some_and(|&(until, _)| until <= step_id) {
            let (_, blocks) = self.retired.pop_front().expect("the front was just seen");
            self.release_all(&blocks);
        }
    }

    /// Tables and copies that hold the block.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.pool.ref_count(block)
    }

    /// The tokens for which a block can be matched; empty if it cannot.
    pub fn cached_tokens(&self, block: BlockId) -> &[TokenId] {
        self.cache.tokens_of(block)
    }

    /// Launched steps that have not ended.
    pub fn num_steps_in_flight(&self) -> usize {
        self.steps_in_flight.len()
    }

    /// Slots of the table that hold no token, if no other table shares its tail.
    pub fn num_wasted_slots(&self, table: &BlockTable, num_tokens: usize) -> usize {
        let is_unshared = table.blocks.last().is_some_and(|&tail| self.num_owners(tail) == 1);
        if is_unshared { table.len() * self.block_size - num_tokens } else { 0 }
    }

    /// Whether the next write behind `num_computed` goes into a block that is not the table's alone.
    pub fn must_copy_tail(&self, table: &BlockTable, num_computed: usize) -> bool {
        if num_computed.is_multiple_of(self.block_size) {
            return false;
        }
        let tail = *table.blocks.last().expect("a computed token has a block");
        self.num_owners(tail) > 1 || self.cache.contains(tail)
    }

    /// Tables that hold the block.
    pub(super) fn num_owners(&self, block: BlockId) -> u32 {
        self.pool.ref_count(block) - self.num_readers[block.0 as usize]
    }

    fn extend(&mut self, table: &mut BlockTable, num_tokens: usize) {
        while table.len() < num_tokens.div_ceil(self.block_size) {
            let block = self.take_block();
            table.blocks.push(block);
        }
    }

    fn plan_copy(&mut self, source: BlockId, target: BlockId, num_slots: usize) {
        self.num_readers[source.0 as usize] += 1;
        self.planned_copies.push(BlockCopy { source, target, num_slots: num_slots as u32 });
    }

    /// The first block of the queue; whatever could be matched in it is evicted.
    fn take_block(&mut self) -> BlockId {
        let block = self.pool.take_first().expect("the caller has counted the available blocks");
        if self.cache.contains(block) {
            self.ghosts.remember(self.cache.parent_of(block), self.cache.tokens_of(block));
            self.cache.remove(block);
            self.num_cached -= 1;
        }
        block
    }

    fn retain(&mut self, block: BlockId) {
        if self.pool.retain(block) {
            debug_assert!(self.cache.contains(block), "{block} was matched but is not cached");
            self.num_cached -= 1;
        }
    }

    fn release_all(&mut self, blocks: &[BlockId]) {
        for &block in blocks.iter().rev() {
            self.release(block);
        }
    }

    fn release(&mut self, block: BlockId) {
        let is_cached = self.cache.contains(block);
        let end = if is_cached { QueueEnd::Back } else { QueueEnd::Front };
        if self.pool.release(block, end) == 0 && is_cached {
            self.num_cached += 1;
        }
    }
}
