//! Ops over the paged cache, which is filled with noise through `rope_store_kv` first.

use pagoda_backend::{
    Backend, BackendError, BatchMetadata, BlockCopy, HeadLayout, InputToken, KvLayout, PagedAttention,
    RopeStoreKv, RopeTable,
};

use super::case::{BLOCK_SIZE, Contexts, Pages};
use crate::bench::lengths::Random;
use crate::bench::subject::{Effort, Subject};

/// Layers taken in turn have at least so many bytes of cache together: no device's cache holds them all.
const ROTATED_BYTES: usize = 512 << 20;
/// Rows stored at a time while the cache is filled.
const FILL_ROWS: usize = 4096;
/// Slots of the largest block.
const LARGEST_BLOCK: usize = 256;
/// Positions of the rope table; they repeat.
const NUM_POSITIONS: usize = 4096;

/// The sequences of one call.
pub(super) struct Shape {
    block_size: usize,
    is_scattered: bool,
    batch_size: usize,
    context_len: usize,
    query_len: usize,
}

/// One query row behind each context.
pub(super) fn decode(contexts: Contexts, pages: Pages) -> Shape {
    let (block_size, is_scattered) = match pages {
        Pages::Scattered(block_size) => (block_size, true),
        Pages::InOrder => (LARGEST_BLOCK, false),
    };
    let Contexts { batch_size, len } = contexts;
    Shape { block_size, is_scattered, batch_size, context_len: len, query_len: 1 }
}

/// A whole prompt.
pub(super) fn prefill(len: usize) -> Shape {
    Shape { block_size: BLOCK_SIZE, is_scattered: true, batch_size: 1, context_len: len, query_len: len }
}

impl Shape {
    fn blocks_per_sequence(&self) -> usize {
        self.context_len.div_ceil(self.block_size)
    }

    fn layout(&self, heads: HeadLayout, num_layers: usize) -> KvLayout {
        KvLayout {
            num_layers,
            num_blocks: 1 + self.batch_size * self.blocks_per_sequence(),
            block_size: self.block_size,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
        }
    }

    /// Block numbers of all tables one after the other; block 0 is in none.
    fn blocks(&self) -> Vec<u32> {
        let mut blocks: Vec<u32> = (1..=(self.batch_size * self.blocks_per_sequence()) as u32).collect();
        if self.is_scattered {
            let mut random = Random::new(1);
            for index in (1..blocks.len()).rev() {
                blocks.swap(index, (random.bits() % (index as u64 + 1)) as usize);
            }
        }
        blocks
    }

    fn batch(&self) -> BatchMetadata {
        let blocks = self.blocks();
        let mut batch = BatchMetadata {
            query_start_loc: vec![0],
            block_table_starts: vec![0],
            ..BatchMetadata::default()
        };
        for table in blocks.chunks(self.blocks_per_sequence()) {
            for position in self.context_len - self.query_len..self.context_len {
                let block = table[position / self.block_size] as usize;
                push_row(&mut batch, position, block * self.block_size + position % self.block_size);
            }
            batch.query_start_loc.push(batch.input_tokens.len() as u32);
            batch.context_lens.push(self.context_len as u32);
            batch.block_tables.extend(table);
            batch.block_table_starts.push(batch.block_tables.len() as u32);
        }
        batch
    }
}

fn push_row(batch: &mut BatchMetadata, position: usize, slot: usize) {
    batch.input_tokens.push(InputToken::Known(0));
    batch.positions.push((position % NUM_POSITIONS) as u32);
    batch.slot_mapping.push(slot as u32);
}

/// The metadata of rows that go to these slots, as one sequence.
fn rows_to(slots: std::ops::Range<usize>) -> BatchMetadata {
    let mut batch =
        BatchMetadata { query_start_loc: vec![0, slots.len() as u32], ..BatchMetadata::default() };
    batch.context_lens.push(slots.len() as u32);
    batch.block_table_starts.extend([0, 0]);
    slots.enumerate().for_each(|(position, slot)| push_row(&mut batch, position, slot));
    batch
}

fn upload<B: Backend>(backend: &mut B, mut batch: BatchMetadata) -> Result<B::Batch, BackendError> {
    let (num_tokens, num_sequences) = (batch.num_tokens(), batch.num_sequences());
    let mut uploaded = backend.alloc_batch(num_tokens, num_sequences, batch.block_tables.len().max(1))?;
    backend.upload_batch(&mut uploaded, &mut batch)?;
    Ok(uploaded)
}

fn upload_rope<B: Backend>(backend: &mut B, heads: HeadLayout) -> Result<B::Rope, BackendError> {
    let half = heads.head_dim / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| 10_000f64.powf(-(i as f64) / half as f64)).collect();
    backend.upload_rope(&RopeTable::new(&frequencies, NUM_POSITIONS, 1.0))
}

/// A cache with noise in every slot.
fn filled_kv<B: Backend>(
    subject: &mut Subject<'_, B>,
    heads: HeadLayout,
    layout: KvLayout,
) -> Result<B::KvCache, BackendError> {
    let mut kv = subject.backend.alloc_kv(layout)?;
    let rope = upload_rope(subject.backend, heads)?;
    let num_slots = layout.num_blocks * layout.block_size;
    // Its Q and K are turned a little further by every store, and stay noise.
    let mut qkv = subject.noise(FILL_ROWS.min(num_slots), heads.qkv_width())?;
    for first in (0..num_slots).step_by(FILL_ROWS) {
        let slots = first..(first + FILL_ROWS).min(num_slots);
        let batch = upload(subject.backend, rows_to(slots))?;
        for layer in 0..layout.num_layers {
            let (qkv, kv, rope) = (&mut qkv, &mut kv, &rope);
            let op = RopeStoreKv { batch: &batch, qkv, heads, qk_norm: None, rope, kv, layer };
            subject.backend.rope_store_kv(op)?;
        }
        // The metadata is freed here, and may be in use up to now.
        (subject.wait)(subject.backend, &qkv)?;
    }
    Ok(kv)
}

/// `paged_attention`.
pub(super) fn attend<B: Backend>(
    subject: &mut Subject<'_, B>,
    effort: Effort,
    heads: HeadLayout,
    shape: &Shape,
) -> Result<f64, BackendError> {
    let one_layer = shape.layout(heads, 1);
    let layer_bytes = one_layer.num_bytes(subject.backend.kv_format());
    // A prompt reads its K and V many times: where they come from is part of the op.
    let num_layers = match shape.query_len {
        1 if layer_bytes > 1 << 20 => ROTATED_BYTES.div_ceil(layer_bytes).min(8),
        _ => 1,
    };
    let kv = filled_kv(subject, heads, shape.layout(heads, num_layers))?;
    let batch = upload(subject.backend, shape.batch())?;
    let num_rows = shape.batch_size * shape.query_len;
    let qkv = subject.noise(num_rows, heads.qkv_width())?;
    let mut out = subject.backend.alloc(num_rows, heads.q_width())?;
    subject.time(effort, &mut out, |backend, out, call| {
        backend.paged_attention(PagedAttention {
            batch: &batch,
            qkv: &qkv,
            heads,
            kv: &kv,
            layer: call % num_layers,
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
            window: None,
            softcap: None,
            out,
        })
    })
}

/// `rope_store_kv` to consecutive slots.
pub(super) fn rope<B: Backend>(
    subject: &mut Subject<'_, B>,
    effort: Effort,
    num_rows: usize,
    heads: HeadLayout,
) -> Result<f64, BackendError> {
    let num_blocks = num_rows.div_ceil(BLOCK_SIZE) + 1;
    let HeadLayout { num_kv_heads, head_dim, .. } = heads;
    let layout = KvLayout { num_layers: 1, num_blocks, block_size: BLOCK_SIZE, num_kv_heads, head_dim };
    let mut kv = subject.backend.alloc_kv(layout)?;
    let rope = upload_rope(subject.backend, heads)?;
    let batch = upload(subject.backend, rows_to(BLOCK_SIZE..BLOCK_SIZE + num_rows))?;
    let mut qkv = subject.noise(num_rows, heads.qkv_width())?;
    subject.time(effort, &mut qkv, |backend, qkv, _| {
        let (kv, rope) = (&mut kv, &rope);
        backend.rope_store_kv(RopeStoreKv { batch: &batch, qkv, heads, qk_norm: None, rope, kv, layer: 0 })
    })
}

/// `copy_blocks` of whole blocks.
pub(super) fn copy_blocks<B: Backend>(
    subject: &mut Subject<'_, B>,
    effort: Effort,
    num_blocks: usize,
    heads: HeadLayout,
) -> Result<f64, BackendError> {
    let HeadLayout { num_kv_heads, head_dim, .. } = heads;
    let layout = KvLayout {
        num_layers: 1,
        num_blocks: 1 + 2 * num_blocks,
        block_size: BLOCK_SIZE,
        num_kv_heads,
        head_dim,
    };
    let mut kv = filled_kv(subject, heads, layout)?;
    let copy = |index: usize| BlockCopy {
        source: 1 + index as u32,
        target: (1 + num_blocks + index) as u32,
        num_slots: BLOCK_SIZE as u32,
    };
    let copies: Vec<BlockCopy> = (0..num_blocks).map(copy).collect();
    // Nothing is computed: the wait is for a matrix that was there before.
    let mut bystander = subject.noise(1, 8)?;
    subject.time(effort, &mut bystander, |backend, _, _| backend.copy_blocks(&mut kv, &copies))
}
