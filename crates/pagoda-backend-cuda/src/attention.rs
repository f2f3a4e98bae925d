//! How a step's attention is cut into blocks of work, and the geometry of both kernels.
//!
//! Cuts depend on a sequence's own lengths only: splits of [`SPLIT_KEYS`] keys from position 0 for sequences with one query row,
//! tiles of [`TILE_ROWS`] rows for the others. So the order of every sum is the same whatever else is in the batch.

use pagoda_backend::{BatchMetadata, HeadLayout};

use crate::element::Element;
use crate::params::AttentionWork;

/// Head dimensions that the kernels are compiled for.
pub(crate) const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];
/// `DECODE_SPLIT_KEYS` of the header.
const SPLIT_KEYS: u32 = 256;
/// `DECODE_HEADS` of the header.
const DECODE_HEADS: usize = 16;
/// `PREFILL_ROWS` of the header.
const TILE_ROWS: u32 = 64;

/// The work lists of a step.
#[derive(Default)]
pub(crate) struct AttentionPlan {
    /// Splits of sequences with one query row, a sequence's splits in a row.
    pub(crate) decode: Vec<AttentionWork>,
    /// Tiles of sequences with more rows, the longest work first, so that no long tile starts when the others are done.
    pub(crate) prefill: Vec<AttentionWork>,
}

impl AttentionPlan {
    pub(crate) fn make(&mut self, batch: &BatchMetadata) {
        self.decode.clear();
        self.prefill.clear();
        for (sequence, &context_len) in batch.context_lens.iter().enumerate() {
            let query_len = batch.query_start_loc[sequence + 1] - batch.query_start_loc[sequence];
            let work = |index| AttentionWork { sequence: sequence as u32, index };
            match query_len {
                0 => {}
                1 => self.decode.extend((0..context_len.div_ceil(SPLIT_KEYS)).map(work)),
                _ => self.prefill.extend((0..query_len.div_ceil(TILE_ROWS)).map(work)),
            }
        }
        let last_key = |work: &AttentionWork| {
            let sequence = work.sequence as usize;
            let query_len = batch.query_start_loc[sequence + 1] - batch.query_start_loc[sequence];
            batch.context_lens[sequence] - query_len + (work.index + 1) * TILE_ROWS
        };
        self.prefill.sort_unstable_by_key(|work| (u32::MAX - last_key(work), work.sequence, work.index));
    }
}

/// Blocks in y of the decode kernel.
pub(crate) fn decode_parts(heads: HeadLayout) -> usize {
    heads.num_kv_heads * (heads.num_q_heads / heads.num_kv_heads).div_ceil(DECODE_HEADS)
}

/// Threads and bytes of shared memory of a block; the kernels' `Shared` structs in numbers.
pub(crate) fn decode_geometry(head_dim: usize) -> (u32, u32) {
    let num_warps = if head_dim == 256 { 2 } else { 4 };
    let num_stages = match head_dim {
        64 => 4,
        96 => 3,
        _ => 2,
    };
    let row_bytes = 2 * (head_dim + 8);
    let stages = num_warps * num_stages * 2 * 16 * row_bytes;
    let gathered = num_warps * DECODE_HEADS * 4 * (head_dim + 2);
    ((num_warps * 32) as u32, (DECODE_HEADS * row_bytes + stages.max(gathered) + 4) as u32)
}

/// As [`decode_geometry`], of the prefill kernel.
pub(crate) fn prefill_geometry(head_dim: usize) -> (u32, u32) {
    let tile_keys = if head_dim == 256 { 32 } else { 64 };
    (128, ((TILE_ROWS as usize + 4 * tile_keys) * 2 * (head_dim + 8)) as u32)
}

/// The decode kernel of a head dimension.
pub(crate) fn decode_kernel(element: Element, head_dim: usize) -> &'static str {
    match head_dim {
        64 => element.kernel("paged_attention_decode_bf16_d64", "paged_attention_decode_f16_d64"),
        96 => element.kernel("paged_attention_decode_bf16_d96", "paged_attention_decode_f16_d96"),
        128 => element.kernel("paged_attention_decode_bf16_d128", "paged_attention_decode_f16_d128"),
        256 => element.kernel("paged_attention_decode_bf16_d256", "paged_attention_decode_f16_d256"),
        _ => unreachable!("alloc_kv refuses head_dim {head_dim}"),
    }
}

/// The prefill kernel of a head dimension.
pub(crate) fn prefill_kernel(element: Element, head_dim: usize) -> &'static str {
    match head_dim {
        64 => element.kernel("paged_attention_prefill_bf16_d64", "paged_attention_prefill_f16_d64"),
        96 => element.kernel("paged_attention_prefill_bf16_d96", "paged_attention_prefill_f16_d96"),
        128 => element.kernel("paged_attention_prefill_bf16_d128", "paged_attention_prefill_f16_d128"),
        256 => element.kernel("paged_attention_prefill_bf16_d256", "paged_attention_prefill_f16_d256"),
        _ => unreachable!("alloc_kv refuses head_dim {head_dim}"),
    }
}
