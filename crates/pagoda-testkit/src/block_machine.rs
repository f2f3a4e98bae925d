//! Drives the block manager alone with a script of numbers, each of which is one operation, and checks every law and every
//! stored token after each. Any script is valid, so that a failing one can be shortened by leaving operations out.

use std::collections::VecDeque;

use pagoda_engine::{
    BlockCopy, BlockId, BlockTable, CacheSalt, Disposal, HashedTokens, KvCacheManager, PipelineDepth, TokenId,
};

use crate::KvMemory;

const BLOCK_SIZE: usize = 2;
const NUM_BLOCKS: usize = 11;
const MAX_SEQUENCES: usize = 4;
const MAX_TOKENS: usize = 9;

/// What the scripts have done, to prove that they went everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockMachineCounts {
    /// Operations, those without effect included.
    pub num_operations: u64,
    /// Those with an effect, counting a launch that another operation needed.
    pub num_effective: u64,
    /// Sequences that found something in the cache.
    pub num_hits: u64,
    /// Of these, by copying a part of a block.
    pub num_partial_hits: u64,
    /// Tails copied before a write.
    pub num_copied_tails: u64,
    /// Times there was no block.
    pub num_exhausted: u64,
    /// Sequences freed while a step that knows them was in flight.
    pub num_retired: u64,
}

struct Sequence {
    /// Never used twice, so that a step in flight cannot mistake one for another.
    name: u64,
    salt: u32,
    tokens: HashedTokens,
    table: BlockTable,
    /// Tokens whose KV is planned, launched or there.
    num_computed: usize,
    /// Of these, written by a launched step.
    num_launched: usize,
    num_committed: usize,
    /// Whether the plan being made has a part for it; its blocks are not filled yet.
    is_planned: bool,
}

/// A launched step: sequences and how many of their tokens are computed when it ends.
type Launched = (u64, Vec<(u64, usize)>);

/// The machine: the manager under test, the fake memory, and a few sequences over a vocabulary of 2.
pub struct BlockMachine {
    kv: KvCacheManager,
    memory: KvMemory,
    sequences: Vec<Sequence>,
    in_flight: VecDeque<Launched>,
    depth: usize,
    next_step: u64,
    next_name: u64,
    copies: Vec<BlockCopy>,
    counts: BlockMachineCounts,
}

impl BlockMachine {
    /// An empty machine.
    pub fn new(depth: PipelineDepth) -> Self {
        BlockMachine {
            kv: KvCacheManager::new(NUM_BLOCKS, BLOCK_SIZE, true),
            memory: KvMemory::new(NUM_BLOCKS, BLOCK_SIZE),
            sequences: Vec::new(),
            in_flight: VecDeque::new(),
            depth: depth.num_steps(),
            next_step: 0,
            next_name: 0,
            copies: Vec::new(),
            counts: BlockMachineCounts::default(),
        }
    }

    /// What has been done so far.
    pub fn counts(&self) -> BlockMachineCounts {
        self.counts
    }

    /// Runs one operation and checks everything. The number's low digits choose the operation, the others its details.
    pub fn run(&mut self, operation: u32) -> Result<(), String> {
        self.counts.num_operations += 1;
        let detail = operation / 16;
        let kind = operation % 16;
        // Only what is launched can be appended to, forked or freed.
        if (3..=10).contains(&kind)
            && pick(&mut self.sequences, detail).is_some_and(|picked| picked.is_planned)
        {
            self.launch();
        }
        match kind {
            0..=2 => self.admit(detail),
            3..=7 => self.append(detail),
            8 => self.fork(detail),
            9 | 10 => self.free(detail),
            11..=13 => self.launch(),
            _ => self.end_oldest(),
        }
        self.poison_free_blocks();
        self.check()
    }

    /// Ends everything; afterwards no block is held.
    pub fn finish(&mut self) -> Result<(), String> {
        self.launch();
        while !self.in_flight.is_empty() {
            self.end_oldest();
        }
        while !self.sequences.is_empty() {
            self.free(0);
        }
        self.check()?;
        match self.kv.num_free() + self.kv.num_cached() {
            returned if returned == self.kv.num_total() => Ok(()),
            returned => Err(format!("{returned} of {} blocks came back", self.kv.num_total())),
        }
    }

    fn admit(&mut self, detail: u32) {
        if self.sequences.len() == MAX_SEQUENCES {
            return;
        }
        self.counts.num_effective += 1;
        let num_tokens = 1 + detail as usize % 7;
        let prompt: Vec<TokenId> = (0..num_tokens).map(|bit| (detail >> (3 + bit)) & 1).collect();
        let salt = (detail >> 12) & 1;
        let tokens = HashedTokens::new(prompt, &CacheSalt { tenant: 0, salt: vec![salt as u8] }, BLOCK_SIZE);
        let found = self.kv.match_prefix(&tokens, num_tokens - 1);
        // A chunk of the prompt: one token at least.
        let num_computed = found.num_tokens + 1 + (detail >> 13) as usize % (num_tokens - found.num_tokens);
        let mut table = BlockTable::default();
        if self.kv.allocate(&mut table, &found, num_computed).is_none() {
            self.counts.num_exhausted += 1;
            return;
        }
        self.counts.num_hits += u64::from(found.num_tokens > 0);
        self.counts.num_partial_hits += u64::from(found.partial.is_some());
        self.next_name += 1;
        self.sequences.push(Sequence {
            name: self.next_name,
            salt,
            tokens,
            table,
            num_computed,
            num_launched: found.num_tokens,
            num_committed: found.num_tokens,
            is_planned: true,
        });
    }

    fn append(&mut self, detail: u32) {
        let Some(sequence) = pick(&mut self.sequences, detail) else { return };
        let num_new = 1 + (detail / 4) as usize % 3;
        if sequence.num_computed + num_new > MAX_TOKENS {
            return;
        }
        self.counts.num_effective += 1;
        let num_copied = usize::from(self.kv.must_copy_tail(&sequence.table, sequence.num_computed));
        if self.kv.append(&mut sequence.table, sequence.num_computed, num_new).is_none() {
            self.counts.num_exhausted += 1;
            return;
        }
        self.counts.num_copied_tails += num_copied as u64;
        sequence.num_computed += num_new;
        while sequence.tokens.len() < sequence.num_computed {
            sequence.tokens.push((detail >> (4 + sequence.tokens.len())) & 1);
        }
        sequence.is_planned = true;
    }

    fn fork(&mut self, detail: u32) {
        if self.sequences.len() == MAX_SEQUENCES {
            return;
        }
        let name = self.next_name + 1;
        let Some(parent) = pick(&mut self.sequences, detail) else { return };
        self.counts.num_effective += 1;
        let child = Sequence {
            name,
            salt: parent.salt,
            tokens: parent.tokens.clone(),
            table: self.kv.fork(&parent.table),
            num_computed: parent.num_computed,
            num_launched: parent.num_launched,
            num_committed: parent.num_committed,
            is_planned: false,
        };
        self.next_name = name;
        self.sequences.push(child);
    }

    fn free(&mut self, detail: u32) {
        let Some(sequence) = pick(&mut self.sequences, detail) else { return };
        self.counts.num_effective += 1;
        let is_known = |(_, parts): &Launched| parts.iter().any(|&(name, _)| name == sequence.name);
        self.counts.num_retired += u64::from(self.in_flight.iter().any(is_known));
        let disposal = if detail.is_multiple_of(64) { Disposal::Doubtful } else { Disposal::Reusable };
        let valid = sequence.num_committed;
        self.kv.free(&mut sequence.table, &sequence.tokens, valid, disposal);
        self.sequences.retain(|sequence| !sequence.table.is_empty());
    }

    /// Launches what is planned: copies first, then the writes.
    fn launch(&mut self) {
        if !self.sequences.iter().any(|sequence| sequence.is_planned) {
            return;
        }
        self.counts.num_effective += 1;
        if self.in_flight.len() == self.depth {
            self.end_oldest();
        }
        self.copies.clear();
        self.kv.launch_step(self.next_step, &mut self.copies);
        self.memory.copy_all(&self.copies);
        let mut parts = Vec::new();
        for sequence in self.sequences.iter_mut().filter(|sequence| sequence.is_planned) {
            sequence.is_planned = false;
            for position in sequence.num_launched..sequence.num_computed {
                let slot = sequence.table.slot(position, BLOCK_SIZE);
                self.memory.write(slot, stored(sequence, position), position as u32);
            }
            sequence.num_launched = sequence.num_computed;
            parts.push((sequence.name, sequence.num_computed));
        }
        self.in_flight.push_back((self.next_step, parts));
        self.next_step += 1;
    }

    /// The oldest step ends: what it computed becomes matchable.
    fn end_oldest(&mut self) {
        let Some((step, parts)) = self.in_flight.pop_front() else { return };
        self.counts.num_effective += 1;
        self.kv.end_step(step);
        for (name, num_computed) in parts {
            if let Some(sequence) = self.sequences.iter_mut().find(|sequence| sequence.name == name) {
                sequence.num_committed = num_computed;
                self.kv.commit(&mut sequence.table, &sequence.tokens, num_computed);
            }
        }
    }

    fn poison_free_blocks(&mut self) {
        for block in (1..NUM_BLOCKS as u32).map(BlockId) {
            if self.kv.ref_count(block) == 0 && self.kv.cached_tokens(block).is_empty() {
                self.memory.poison(block);
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let tables = self.sequences.iter().map(|sequence| (&sequence.table, sequence.num_computed));
        self.kv.check_integrity(tables).map_err(|error| error.to_string())?;
        for sequence in self.sequences.iter().filter(|sequence| !sequence.is_planned) {
            for position in 0..sequence.num_computed {
                let read = self.memory.read(sequence.table.blocks(), position);
                let wanted = stored(sequence, position);
                if read != wanted {
                    return Err(format!(
                        "position {position} of sequence {} is {read}, not {wanted}",
                        sequence.name
                    ));
                }
            }
        }
        self.check_cached()
    }

    /// Law 4: what can be matched is still what it was when it was frozen.
    fn check_cached(&self) -> Result<(), String> {
        for block in (1..NUM_BLOCKS as u32).map(BlockId) {
            for (offset, &token) in self.kv.cached_tokens(block).iter().enumerate() {
                let read = self.memory.token_at(block, offset);
                if read.map(|token| token & 1) != Some(token) {
                    return Err(format!("{block} was frozen with {token} at {offset}, but holds {read:?}"));
                }
            }
        }
        Ok(())
    }
}

/// What is stored for a position: the token, marked with the salt, so that a hit across salts shows.
fn stored(sequence: &Sequence, position: usize) -> TokenId {
    sequence.tokens.tokens()[position] | (sequence.salt << 1)
}

fn pick(sequences: &mut [Sequence], detail: u32) -> Option<&mut Sequence> {
    let count = sequences.len();
    (count > 0).then(|| &mut sequences[detail as usize % count])
}
