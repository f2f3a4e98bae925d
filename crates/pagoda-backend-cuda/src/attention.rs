//! How a step's attention is cut into blocks of work, and the geometry of both kernels.
//!
//! Cuts depend on a sequence's own lengths only: splits of [`SPLIT_KEYS`] keys from position 0 for sequences with one query row,
//! tiles of [`TILE_ROWS`] rows for the others. So the order of every sum is the same whatever else is in the batch.

mod launches;

use std::ops::Range;

use pagoda_backend::{BatchMetadata, HeadLayout, KvFormat};

use crate::element::{Element, kernel};
use crate::params::{AttentionWork, NONE};

/// Head dimensions that the kernels are compiled for.
pub(crate) const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];
/// `DECODE_SPLIT_KEYS` of the header.
const SPLIT_KEYS: u32 = 256;
/// `DECODE_HEADS` of the header.
const DECODE_HEADS: usize = 16;
/// `PREFILL_ROWS` of the header.
const TILE_ROWS: u32 = 64;
/// Work that a thread block leaves at once: a split behind the sequence's last.
const PADDING: AttentionWork = AttentionWork { sequence: 0, index: NONE };
/// `WGMMA_PREFILL_ROWS` of the header.
const WGMMA_TILE_ROWS: u32 = 128;

/// Which kernel does the attention of prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefillKernel {
    /// mma.sync: every architecture, every shape.
    #[default]
    Mma,
    /// wgmma and TMA, on sm_90a only, where the head dimension is 64 or 128 and K and V are not codes; else as `Mma`. *Not yet run
    /// on a GPU.*
    Wgmma,
}

impl PrefillKernel {
    /// What serves a cache of this shape if this kernel is asked for.
    pub(crate) fn for_cache(self, head_dim: usize, format: KvFormat) -> Self {
        let has_kernel = matches!(head_dim, 64 | 128) && format != KvFormat::E4m3;
        if has_kernel { self } else { PrefillKernel::Mma }
    }

    /// Query rows of a block.
    fn tile_rows(self) -> u32 {
        match self {
            PrefillKernel::Mma => TILE_ROWS,
            PrefillKernel::Wgmma => WGMMA_TILE_ROWS,
        }
    }
}

/// How a batch is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cuts {
    /// Splits of one launch of the decode kernel, at most; a sequence is in one launch.
    pub(crate) max_splits: usize,
    /// Whose tiles the prompts are cut into.
    pub(crate) prefill: PrefillKernel,
}

/// The work lists of a step.
#[derive(Default)]
pub(crate) struct AttentionPlan {
    /// Splits of sequences with one query row, a sequence's splits in a row.
    pub(crate) decode: Vec<AttentionWork>,
    /// Ranges of `decode` that are launched one after the other, so that the parts of their outputs fit the memory for them.
    pub(crate) decode_launches: Vec<Range<usize>>,
    /// Tiles of sequences with more rows, the longest work first, so that no long tile starts when the others are done.
    pub(crate) prefill: Vec<AttentionWork>,
    /// Whose tiles they are.
    pub(crate) kernel: PrefillKernel,
}

impl AttentionPlan {
    /// Plans a batch.
    pub(crate) fn make(&mut self, batch: &BatchMetadata, cuts: Cuts) {
        let tile_rows = cuts.prefill.tile_rows();
        self.kernel = cuts.prefill;
        self.decode.clear();
        self.decode_launches.clear();
        self.prefill.clear();
        for (sequence, &context_len) in batch.context_lens.iter().enumerate() {
            let query_len = batch.query_start_loc[sequence + 1] - batch.query_start_loc[sequence];
            let work = |index| AttentionWork { sequence: sequence as u32, index };
            match query_len {
                0 => {}
                1 => {
                    let first = self.decode.len();
                    self.decode.extend((0..context_len.div_ceil(SPLIT_KEYS)).map(work));
                    self.add_to_launch(first..self.decode.len(), cuts.max_splits);
                }
                _ => self.prefill.extend((0..query_len.div_ceil(tile_rows)).map(work)),
            }
        }
        self.pad_decode(cuts.max_splits);
        let last_key = |work: &AttentionWork| {
            let sequence = work.sequence as usize;
            let query_len = batch.query_start_loc[sequence + 1] - batch.query_start_loc[sequence];
            batch.context_lens[sequence] - query_len + (work.index + 1) * tile_rows
        };
        self.prefill.sort_unstable_by_key(|work| (u32::MAX - last_key(work), work.sequence, work.index));
    }

    /// Fills a batch of sequences with one row each up to a power of two, so that few captures serve every context length.
    fn pad_decode(&mut self, max_splits: usize) {
        let [launch] = &mut self.decode_launches[..] else { return };
        let num_splits = launch.len().next_power_of_two().min(max_splits);
        if self.prefill.is_empty() {
            self.decode.resize(num_splits, PADDING);
            launch.end = num_splits;
        }
    }

    /// Splits of the one decode launch, if the batch is nothing else.
    pub(crate) fn captured_splits(&self) -> Option<usize> {
        match &self.decode_launches[..] {
            [launch] if self.prefill.is_empty() => Some(launch.len()),
            _ => None,
        }
    }

    fn add_to_launch(&mut self, splits: Range<usize>, max_splits: usize) {
        assert!(splits.len() <= max_splits, "{} splits of {max_splits}", splits.len());
        match self.decode_launches.last_mut() {
            Some(launch) if splits.end - launch.start <= max_splits => launch.end = splits.end,
            _ => self.decode_launches.push(splits),
        }
    }
}

/// Splits of a sequence of this length.
pub(crate) fn num_splits(context_len: usize) -> usize {
    context_len.div_ceil(SPLIT_KEYS as usize)
}

/// Blocks in y of the decode kernel.
pub(crate) fn decode_parts(heads: HeadLayout) -> usize {
    heads.num_kv_heads * (heads.num_q_heads / heads.num_kv_heads).div_ceil(DECODE_HEADS)
}

/// What the attention kernels are instantiated for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    pub(crate) element: Element,
    pub(crate) kv: KvFormat,
    pub(crate) head_dim: usize,
}

/// Threads and bytes of shared memory of a block.
type Geometry = (u32, u32);

/// The kernel of a shape: elements, formats and head dimensions are all in its name.
macro_rules! shape_kernel {
    ($shape:expr, $name:literal) => {
        match ($shape.kv, $shape.head_dim) {
            (KvFormat::E4m3, 64) => shape_kernel!($shape, $name, "_e4m3", "_d64"),
            (KvFormat::E4m3, 96) => shape_kernel!($shape, $name, "_e4m3", "_d96"),
            (KvFormat::E4m3, 128) => shape_kernel!($shape, $name, "_e4m3", "_d128"),
            (KvFormat::E4m3, 256) => shape_kernel!($shape, $name, "_e4m3", "_d256"),
            (_, 64) => shape_kernel!($shape, $name, "", "_d64"),
            (_, 96) => shape_kernel!($shape, $name, "", "_d96"),
            (_, 128) => shape_kernel!($shape, $name, "", "_d128"),
            (_, 256) => shape_kernel!($shape, $name, "", "_d256"),
            (_, head_dim) => unreachable!("alloc_kv refuses head_dim {head_dim}"),
        }
    };
    ($shape:expr, $name:literal, $kv:literal, $head_dim:literal) => {
        $shape.element.kernel(concat!($name, $kv, "_bf16", $head_dim), concat!($name, $kv, "_f16", $head_dim))
    };
}

impl AttentionShape {
    pub(crate) fn decode_kernel(self) -> &'static str {
        shape_kernel!(self, "paged_attention_decode")
    }

    pub(crate) fn prefill_kernel(self) -> &'static str {
        shape_kernel!(self, "paged_attention_prefill")
    }

    /// The decode kernel's `Shared` in numbers.
    pub(crate) fn decode_geometry(self) -> Geometry {
        let num_warps = if self.head_dim == 256 { 2 } else { 4 };
        let num_stages = match self.head_dim {
            64 => 4,
            96 => 3,
            _ => 2,
        };
        let stages = num_warps * num_stages * 2 * self.tile_bytes(16);
        let gathered = num_warps * DECODE_HEADS * 4 * (self.head_dim + 2);
        let q_bytes = DECODE_HEADS * self.q_row_bytes();
        // The flag behind them, and what aligns the whole.
        let num_bytes = (q_bytes + stages.max(gathered) + 4).next_multiple_of(16);
        ((num_warps * 32) as u32, num_bytes as u32)
    }

    /// As [`AttentionShape::decode_geometry`], of the prefill kernel.
    pub(crate) fn prefill_geometry(self) -> Geometry {
        let tile_keys = if self.head_dim == 256 { 32 } else { 64 };
        (128, (TILE_ROWS as usize * self.q_row_bytes() + 4 * self.tile_bytes(tile_keys)) as u32)
    }

    pub(crate) fn wgmma_prefill_kernel(self) -> &'static str {
        match self.head_dim {
            64 => kernel!(self.element, "paged_attention_prefill_wgmma", "_d64"),
            128 => kernel!(self.element, "paged_attention_prefill_wgmma", "_d128"),
            head_dim => unreachable!("no wgmma kernel of head_dim {head_dim}"),
        }
    }

    /// As [`AttentionShape::decode_geometry`], of the wgmma prefill kernel: two stages of K and V, and the barriers behind.
    pub(crate) fn wgmma_prefill_geometry(self) -> Geometry {
        (384, (2 * 2 * 128 * self.head_dim * 2 + 1024) as u32)
    }

    /// `Q_STRIDE` of the kernels.
    fn q_row_bytes(self) -> usize {
        2 * (self.head_dim + if self.kv == KvFormat::E4m3 { 16 } else { 8 })
    }

    /// `KvTile` of the kernels.
    fn tile_bytes(self, num_keys: usize) -> usize {
        num_keys * (self.kv.head_bytes(self.head_dim) + 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequences of `(query_len, context_len)`.
    fn plan(sequences: &[(u32, u32)], max_splits: usize) -> AttentionPlan {
        let mut batch = BatchMetadata { query_start_loc: vec![0], ..BatchMetadata::default() };
        for (query_len, context_len) in sequences {
            batch.query_start_loc.push(batch.query_start_loc.last().unwrap() + query_len);
            batch.context_lens.push(*context_len);
        }
        let mut plan = AttentionPlan::default();
        plan.make(&batch, Cuts { max_splits, prefill: PrefillKernel::Mma });
        plan
    }

    #[test]
    fn a_launch_ends_before_a_sequence_that_would_not_fit() {
        // 1, 3, 2, (a prefill), 4 splits.
        let sequences = [(1, 256), (1, 513), (1, 512), (5, 300), (1, 1000)];
        assert_eq!(plan(&sequences, 4).decode_launches, [0..4, 4..6, 6..10]);
        assert_eq!(plan(&sequences, 100).decode_launches[..], *std::slice::from_ref(&(0..10)));
        assert_eq!(plan(&sequences, 100).captured_splits(), None);
        assert_eq!(plan(&sequences, 100).prefill.len(), 1);
        assert!(plan(&[(7, 7)], 4).decode_launches.is_empty());
    }

    #[test]
    fn a_batch_of_single_rows_is_filled_up_with_work_that_is_none() {
        let sequences = [(1, 256), (1, 513), (1, 257)];
        let padded = plan(&sequences, 100);
        assert_eq!((padded.decode.len(), padded.captured_splits()), (8, Some(8)));
        assert_eq!(padded.decode.iter().filter(|work| work.index == PADDING.index).count(), 2);
        assert_eq!(plan(&sequences, 7).captured_splits(), Some(7));
        assert_eq!(plan(&sequences, 4).captured_splits(), None);
    }
}
