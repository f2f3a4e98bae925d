//! A KV cache that stores `(token, position)` in each slot: what a real one would compute from them, without the floats.

use pagoda_engine::{BlockCopy, BlockId, Slot, TokenId};

/// The fake memory. Reading what was never written, or was written for another position, panics.
#[derive(Clone, Debug)]
pub struct KvMemory {
    block_size: usize,
    /// `[num_blocks * block_size]`
    slots: Vec<Option<(TokenId, u32)>>,
}

impl KvMemory {
    /// An empty memory.
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        KvMemory { block_size, slots: vec![None; num_blocks * block_size] }
    }

    /// Runs the copies of one step. A device may run them in any order, hence none may touch another's target.
    pub fn copy_all(&mut self, copies: &[BlockCopy]) {
        for (index, copy) in copies.iter().enumerate() {
            for other in &copies[index + 1..] {
                let is_independent =
                    copy.target != other.target && copy.target != other.source && copy.source != other.target;
                assert!(is_independent, "{copy} and {other} depend on their order");
            }
            self.copy(*copy);
        }
    }

    /// Copies the leading slots; what stood behind them in the target is lost.
    pub fn copy(&mut self, copy: BlockCopy) {
        let source = copy.source.0 as usize * self.block_size;
        let target = copy.target.0 as usize * self.block_size;
        self.slots[target..target + self.block_size].fill(None);
        self.slots.copy_within(source..source + copy.num_slots as usize, target);
    }

    /// Forgets what a block holds, so that whoever still reads it is found out.
    pub fn poison(&mut self, block: BlockId) {
        self.slots[block.0 as usize * self.block_size..][..self.block_size].fill(None);
    }

    /// Stores a token.
    pub fn write(&mut self, slot: Slot, token: TokenId, position: u32) {
        assert!(slot.0 as usize >= self.block_size, "slot {} is in block 0", slot.0);
        self.slots[slot.0 as usize] = Some((token, position));
    }

    /// The token stored in a block's slot, whatever its position.
    pub fn token_at(&self, block: BlockId, offset: usize) -> Option<TokenId> {
        let slot = Slot::new(block, offset, self.block_size);
        self.slots[slot.0 as usize].map(|(token, _)| token)
    }

    /// The token stored for a position of a sequence with these blocks.
    pub fn read(&self, blocks: &[BlockId], position: usize) -> TokenId {
        let slot = Slot::new(blocks[position / self.block_size], position % self.block_size, self.block_size);
        match self.slots[slot.0 as usize] {
            Some((token, stored)) if stored as usize == position => token,
            other => panic!("position {position} of {blocks:?} holds {other:?}"),
        }
    }

    /// The first `len` tokens of a sequence with these blocks.
    pub fn read_all(&self, blocks: &[BlockId], len: usize) -> Vec<TokenId> {
        (0..len).map(|position| self.read(blocks, position)).collect()
    }
}
