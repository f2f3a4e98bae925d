//! Copy-on-write, partial hits and eviction, each as the guarantee it gives. Block size 2 unless said otherwise.

use pagoda_engine::{
    BlockCopy, BlockId, BlockTable, CacheSalt, Disposal, HashedTokens, KvCacheManager, PrefixMatch, TokenId,
};

const BLOCK_SIZE: usize = 2;

/// A manager with 9 blocks to hand out, and its running step number.
struct Cache {
    kv: KvCacheManager,
    next_step: u64,
}

impl Cache {
    fn new() -> Self {
        Cache { kv: KvCacheManager::new(10, BLOCK_SIZE, true), next_step: 0 }
    }

    /// Launches what is planned and lets it end; returns the copies.
    fn run_step(&mut self) -> Vec<BlockCopy> {
        let mut copies = Vec::new();
        self.kv.launch_step(self.next_step, &mut copies);
        self.kv.end_step(self.next_step);
        self.next_step += 1;
        copies
    }

    /// A sequence whose tokens are all computed.
    fn sequence(&mut self, tokens: &[TokenId]) -> (BlockTable, HashedTokens) {
        let tokens = HashedTokens::new(tokens.to_vec(), &CacheSalt::default(), BLOCK_SIZE);
        let mut table = BlockTable::default();
        self.kv.allocate(&mut table, &PrefixMatch::default(), tokens.len()).expect("the tests are small");
        self.run_step();
        self.kv.commit(&mut table, &tokens, tokens.len());
        (table, tokens)
    }

    /// A sequence that has come and gone.
    fn past(&mut self, tokens: &[TokenId]) -> Vec<BlockId> {
        let (mut table, tokens) = self.sequence(tokens);
        let blocks = table.blocks().to_vec();
        self.kv.free(&mut table, &tokens, tokens.len(), Disposal::Reusable);
        blocks
    }

    fn find(&self, tokens: &[TokenId]) -> PrefixMatch {
        let tokens = HashedTokens::new(tokens.to_vec(), &CacheSalt::default(), BLOCK_SIZE);
        self.kv.match_prefix(&tokens, tokens.len() - 1)
    }
}

fn blocks(ids: &[u32]) -> Vec<BlockId> {
    ids.iter().copied().map(BlockId).collect()
}

#[test]
fn fork_then_append_copies_only_the_shared_tail() {
    let mut cache = Cache::new();
    let (mut first, _) = cache.sequence(&[1, 2, 3]);
    let mut second = cache.kv.fork(&first);
    assert_eq!(cache.kv.num_referenced(), 2, "a fork takes no block");

    cache.kv.append(&mut first, 3, 1).unwrap();
    assert_eq!(first.blocks(), blocks(&[1, 3]), "the head stays shared");
    cache.kv.append(&mut second, 3, 1).unwrap();
    assert_eq!(second.blocks(), blocks(&[1, 2]), "the last owner writes in place");
    assert_eq!(cache.run_step(), [BlockCopy { source: BlockId(2), target: BlockId(3), num_slots: 1 }]);
    assert_eq!(cache.kv.num_referenced(), 3);
}

#[test]
fn n_forks_of_a_tail_cost_n_minus_one_copies() {
    let mut cache = Cache::new();
    let (first, _) = cache.sequence(&[1, 2, 3]);
    let mut tables = vec![first];
    for _ in 1..4 {
        let fork = cache.kv.fork(&tables[0]);
        tables.push(fork);
    }
    for table in &mut tables {
        cache.kv.append(table, 3, 1).unwrap();
    }
    assert_eq!(cache.run_step().len(), 3);
}

#[test]
fn fork_at_a_block_boundary_copies_nothing() {
    let mut cache = Cache::new();
    let (mut first, _) = cache.sequence(&[1, 2, 3, 4]);
    let mut second = cache.kv.fork(&first);
    cache.kv.append(&mut first, 4, 1).unwrap();
    cache.kv.append(&mut second, 4, 1).unwrap();
    assert_eq!(first.blocks()[..2], second.blocks()[..2]);
    assert_ne!(first.blocks()[2], second.blocks()[2]);
    assert_eq!(cache.run_step(), []);
}

#[test]
fn a_copied_block_is_held_until_the_copy_has_ended() {
    let mut cache = Cache::new();
    cache.past(&[1, 2, 3]);
    let found = cache.find(&[1, 2, 3, 9]);
    assert_eq!((&found.blocks, found.partial, found.num_tokens), (&blocks(&[1]), Some((BlockId(2), 1)), 3));

    let mut table = BlockTable::default();
    cache.kv.allocate(&mut table, &found, 4).unwrap();
    assert_eq!(cache.kv.num_referenced(), 3, "head, target and the source of the copy");
    let mut copies = Vec::new();
    cache.kv.launch_step(0, &mut copies);
    assert_eq!(copies, [BlockCopy { source: BlockId(2), target: table.blocks()[1], num_slots: 1 }]);
    assert_eq!(cache.kv.num_referenced(), 3);
    cache.kv.end_step(0);
    assert_eq!(cache.kv.num_referenced(), 2);
}

#[test]
fn a_full_block_is_matched_in_part_when_the_sequences_part_ways_inside_it() {
    let mut cache = Cache::new();
    cache.past(&[1, 2, 3, 4]);
    let found = cache.find(&[1, 2, 3, 9, 9]);
    assert_eq!((found.num_tokens, found.partial), (3, Some((BlockId(2), 1))));
}

#[test]
fn one_prompt_token_is_always_left_to_compute() {
    let mut cache = Cache::new();
    cache.past(&[1, 2, 3, 4]);
    let found = cache.find(&[1, 2, 3, 4]);
    assert_eq!((found.num_tokens, found.partial), (3, Some((BlockId(2), 1))));
}

#[test]
fn another_salt_finds_nothing() {
    let mut cache = Cache::new();
    cache.past(&[1, 2, 3, 4]);
    let other =
        HashedTokens::new(vec![1, 2, 3, 4, 5], &CacheSalt { tenant: 0, salt: b"salt".to_vec() }, BLOCK_SIZE);
    assert_eq!(cache.kv.match_prefix(&other, 4), PrefixMatch::default());
}

#[test]
fn a_block_is_matchable_after_the_commit_and_not_before() {
    let mut cache = Cache::new();
    let tokens = HashedTokens::new(vec![1, 2, 3], &CacheSalt::default(), BLOCK_SIZE);
    let mut table = BlockTable::default();
    cache.kv.allocate(&mut table, &PrefixMatch::default(), 3).unwrap();
    cache.run_step();
    assert_eq!(cache.find(&[1, 2, 9]).num_tokens, 0);
    cache.kv.commit(&mut table, &tokens, 3);
    assert_eq!(cache.find(&[1, 2, 9]).num_tokens, 2);
    // The tail still grows, and is nobody else's until its sequence has ended.
    assert_eq!(cache.find(&[1, 2, 3, 9]).num_tokens, 2);
}

#[test]
fn tails_are_evicted_before_heads_and_older_sequences_before_newer_ones() {
    let mut cache = Cache::new();
    let old = cache.past(&[1, 2, 3, 4, 5]); // blocks 1 2 3
    let new = cache.past(&[6, 7, 8, 9]); // blocks 4 5
    assert_eq!((old, new), (blocks(&[1, 2, 3]), blocks(&[4, 5])));
    // Four free blocks go first, then what is cached.
    let tokens = HashedTokens::new(vec![0; 16], &CacheSalt::default(), BLOCK_SIZE);
    let mut table = BlockTable::default();
    cache.kv.allocate(&mut table, &PrefixMatch::default(), 8).unwrap();
    for (num_tokens, next) in [(8, 3), (10, 2), (12, 1), (14, 5)] {
        cache.kv.append(&mut table, num_tokens, 2).unwrap();
        assert_eq!(table.blocks().last(), Some(&BlockId(next)));
    }
    assert_eq!(cache.find(&[1, 2, 3]).num_tokens, 0);
    assert_eq!(cache.find(&[6, 7, 8, 9, 9]).num_tokens, 2);
    cache.run_step();
    cache.kv.free(&mut table, &tokens, 16, Disposal::Reusable);
}

#[test]
fn what_is_freed_while_a_step_is_in_flight_returns_when_it_has_ended() {
    let mut cache = Cache::new();
    let (mut table, tokens) = cache.sequence(&[1, 2, 3]);
    let mut copies = Vec::new();
    cache.kv.launch_step(1, &mut copies);
    cache.kv.free(&mut table, &tokens, 3, Disposal::Reusable);
    assert_eq!((cache.kv.num_referenced(), cache.kv.num_available()), (2, 7));
    // Its blocks can be matched already: the step writes behind the valid tokens only.
    assert_eq!(cache.find(&[1, 2, 3, 4]).num_tokens, 3);
    cache.kv.end_step(1);
    assert_eq!((cache.kv.num_referenced(), cache.kv.num_cached()), (0, 2));
}

#[test]
fn doubtful_blocks_are_forgotten_unless_another_sequence_holds_them() {
    let mut cache = Cache::new();
    let (mut bad, tokens) = cache.sequence(&[1, 2, 3, 4]);
    let mut good = cache.kv.fork(&bad);
    cache.kv.append(&mut bad, 4, 2).unwrap();
    cache.run_step();
    let mut longer = tokens.clone();
    longer.push(5);
    longer.push(6);
    cache.kv.commit(&mut bad, &longer, 6);
    cache.kv.free(&mut bad, &longer, 6, Disposal::Doubtful);
    assert_eq!(cache.find(&[1, 2, 3, 4, 5, 6, 7]).num_tokens, 4);
    cache.kv.free(&mut good, &tokens, 4, Disposal::Doubtful);
    assert_eq!(cache.find(&[1, 2, 3, 4, 5]).num_tokens, 0);
    assert_eq!(cache.kv.num_free(), cache.kv.num_total());
}
