//! The shape of a step: which rows belong to which sequence, and where their KV lies.

use crate::KvFormat;

/// The KV cache of all layers: `num_blocks` blocks of `block_size` slots, each holding K and V of every KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers that have attention.
    pub num_layers: usize,
    /// Physical blocks, block 0 included.
    pub num_blocks: usize,
    /// Slots per block.
    pub block_size: usize,
    /// KV heads per layer.
    pub num_kv_heads: usize,
    /// Channels per head.
    pub head_dim: usize,
}

impl KvLayout {
    /// Bytes of the K (or V) of one head in one block.
    pub fn tile_bytes(&self, format: KvFormat) -> usize {
        self.block_size * format.head_bytes(self.head_dim)
    }

    /// Bytes of the whole cache.
    pub fn num_bytes(&self, format: KvFormat) -> usize {
        2 * self.num_layers * self.num_blocks * self.num_kv_heads * self.tile_bytes(format)
    }

    /// K and V numbers of one block over all layers.
    pub fn elements_per_block(&self) -> usize {
        2 * self.num_layers * self.block_size * self.num_kv_heads * self.head_dim
    }
}

/// How a fused QKV row is cut: `[q heads | k heads | v heads]`, each `head_dim` wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_q_heads: usize,
    /// KV heads; each serves `num_q_heads / num_kv_heads` query heads (GQA).
    pub num_kv_heads: usize,
    /// Channels per head.
    pub head_dim: usize,
}

impl HeadLayout {
    /// Width of a fused QKV row.
    pub fn qkv_width(&self) -> usize {
        (self.num_q_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Width of the attention output.
    pub fn q_width(&self) -> usize {
        self.num_q_heads * self.head_dim
    }
}

/// One row's token: known, or still on the device as the given entry of the previous step's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputToken {
    /// The id.
    Known(u32),
    /// An entry of the previous step's sample rows (pipeline depth 2).
    LastSampled(u32),
}

/// The attention metadata of one step. A sequence's query rows are the last `query_len` positions of its context.
#[derive(Clone, Debug, Default)]
pub struct BatchMetadata {
    /// `[num_tokens]`
    pub input_tokens: Vec<InputToken>,
    /// `[num_tokens]` position in the sequence.
    pub positions: Vec<u32>,
    /// `[num_tokens]` slot that receives the row's K and V.
    pub slot_mapping: Vec<u32>,
    /// `[num_sequences + 1]` first row of each sequence, and the end.
    pub query_start_loc: Vec<u32>,
    /// `[num_sequences]` tokens in the sequence's KV after this step's are stored.
    pub context_lens: Vec<u32>,
    /// Block tables one after the other.
    pub block_tables: Vec<u32>,
    /// `[num_sequences + 1]` first entry of each table, and the end.
    pub block_table_starts: Vec<u32>,
}

impl BatchMetadata {
    /// Rows of the step.
    pub fn num_tokens(&self) -> usize {
        self.input_tokens.len()
    }

    /// Sequences of the step.
    pub fn num_sequences(&self) -> usize {
        self.context_lens.len()
    }

    /// The block table of one sequence.
    pub fn block_table(&self, sequence: usize) -> &[u32] {
        &self.block_tables
            [self.block_table_starts[sequence] as usize..self.block_table_starts[sequence + 1] as usize]
    }
}

/// Copy the first `num_slots` slots of block `source` to block `target`, in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Block read.
    pub source: u32,
    /// Block written.
    pub target: u32,
    /// Leading slots to copy.
    pub num_slots: u32,
}

/// Identifies a captured body in [`crate::Backend::run`]: equal keys launch equal work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphKey {
    /// Which body (forward, sample).
    pub name: &'static str,
    /// Rows after padding to a bucket; 0 forbids capture.
    pub num_rows: usize,
}
