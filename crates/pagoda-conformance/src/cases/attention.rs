//! Paged attention: edges of blocks, tiles and splits, ragged batches, every head ratio and head dimension.

use std::fmt;

use pagoda_backend::{Backend, HeadLayout, KvLayout, PagedAttention};
use pagoda_backend_cpu::reference::{self, AttentionInput, KvCache};

use super::kv::{Rows, store};
use crate::compare::worst_row;
use crate::random::{Random, batch_of};
use crate::subject::{Subject, text};

/// `paged_attention` at one shape.
#[derive(Clone, Debug)]
pub(super) struct AttentionCase {
    heads: HeadLayout,
    block_size: usize,
    /// `(context_len, query_len)`
    sequences: Vec<(usize, usize)>,
    window: Option<u32>,
    softcap: Option<f32>,
}

impl fmt::Display for AttentionCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HeadLayout { num_q_heads, num_kv_heads, head_dim } = self.heads;
        write!(f, "{num_q_heads}:{num_kv_heads}/d{head_dim}/block{}/", self.block_size)?;
        for (index, (context_len, query_len)) in self.sequences.iter().enumerate() {
            write!(f, "{}{query_len}@{context_len}", if index == 0 { "" } else { "+" })?;
        }
        if let Some(window) = self.window {
            write!(f, "/window{window}")?;
        }
        if let Some(softcap) = self.softcap {
            write!(f, "/cap{softcap}")?;
        }
        Ok(())
    }
}

pub(super) fn cases() -> Vec<AttentionCase> {
    let case =
        |(num_q_heads, num_kv_heads, head_dim), block_size, sequences: &[(usize, usize)]| AttentionCase {
            heads: HeadLayout { num_q_heads, num_kv_heads, head_dim },
            block_size,
            sequences: sequences.to_vec(),
            window: None,
            softcap: None,
        };
    // One block, one step, one tile: where most mistakes do not show.
    let mut cases = vec![case((2, 1, 64), 16, &[(16, 1)]), case((2, 1, 64), 16, &[(64, 64)])];
    // The edges of a block, a step of 16 keys, a tile of 64, a split of 256.
    let edges = [1, 15, 16, 17, 63, 64, 65, 255, 256, 257].map(|context_len| (context_len, 1));
    for head_dim in [64, 96, 128, 256] {
        cases.push(case((2, 1, head_dim), 16, &edges));
        cases.push(case((2, 1, head_dim), 32, &[(1, 1), (33, 1), (513, 1)]));
        // A whole prompt, a chunk behind earlier keys, both next to decodes.
        cases.push(case((2, 1, head_dim), 16, &[(2, 2), (17, 17), (64, 64), (65, 65)]));
        cases.push(case((2, 1, head_dim), 32, &[(100, 3), (40, 1), (130, 70), (7, 1)]));
    }
    for (num_q_heads, num_kv_heads) in [(1, 1), (3, 1), (9, 3), (7, 1), (8, 1), (16, 1), (18, 1)] {
        cases.push(case((num_q_heads, num_kv_heads, 64), 16, &[(40, 1), (300, 1), (20, 5)]));
    }
    for window in [1, 16, 40, 300] {
        let windowed = case((4, 2, 64), 16, &[(600, 1), (50, 1), (330, 30), (16, 16)]);
        cases.push(AttentionCase { window: Some(window), ..windowed });
    }
    for (softcap, head_dim) in [(2.0, 64), (30.0, 256)] {
        let capped = case((4, 2, head_dim), 32, &[(90, 1), (70, 20)]);
        cases.push(AttentionCase { softcap: Some(softcap), window: Some(48), ..capped });
    }
    cases.push(case((4, 1, 128), 16, &[(1100, 1)]));
    cases.push(case((1, 1, 64), 64, &[(900, 130)]));
    cases
}

pub(super) fn paged_attention<B: Backend>(
    subject: &mut Subject<B>,
    random: &mut Random,
    case: &AttentionCase,
) -> Result<f64, String> {
    let (heads, block_size) = (case.heads, case.block_size);
    let HeadLayout { num_kv_heads, head_dim, .. } = heads;
    let num_blocks = 3 + case.sequences.iter().map(|(len, _)| len.div_ceil(block_size)).sum::<usize>();
    let layout = KvLayout { num_layers: 2, num_blocks, block_size, num_kv_heads, head_dim };
    let batch = random.batch(layout, &case.sequences);
    let tables: Vec<Vec<u32>> =
        (0..case.sequences.len()).map(|index| batch.block_table(index).to_vec()).collect();
    let whole: Vec<(usize, usize)> = case.sequences.iter().map(|&(len, _)| (len, len)).collect();
    let filling = batch_of(block_size, &whole, &tables);
    let mut expected_kv = KvCache::new(layout);
    let mut kv = subject.backend.alloc_kv(layout).map_err(text)?;
    let rows = random.heads(filling.num_tokens() * heads.qkv_width(), head_dim, subject.round);
    store(subject, &mut kv, &mut expected_kv, &Rows { batch: &filling, heads, layer: 1, rows: &rows })?;

    let (num_rows, width) = (batch.num_tokens(), heads.qkv_width());
    let qkv = random.rounded(num_rows * width, subject.round);
    // Scores of a few units, so that the softmax is neither flat nor a choice.
    let scale = 4.0 / (head_dim as f32).sqrt();
    let (window, softcap) = (case.window, case.softcap);
    let input = AttentionInput { batch: &batch, heads, layer: 1, scale, window, softcap };
    let expected = reference::paged_attention(&input, &qkv, &expected_kv);

    let tensor = subject.tensor(&qkv, width)?;
    let (num_sequences, table_len) = (batch.num_sequences(), batch.block_tables.len());
    let mut device_batch = subject.backend.alloc_batch(num_rows, num_sequences, table_len).map_err(text)?;
    subject.backend.upload_batch(&mut device_batch, &mut batch.clone()).map_err(text)?;
    // Twice: the second run finds what the first left behind.
    let mut outputs = Vec::new();
    for _ in 0..2 {
        let mut out = subject.poisoned(num_rows, heads.q_width())?;
        let op = PagedAttention {
            batch: &device_batch,
            qkv: &tensor,
            heads,
            kv: &kv,
            layer: 1,
            scale,
            window,
            softcap,
            out: &mut out,
        };
        subject.backend.paged_attention(op).map_err(text)?;
        outputs.push(subject.output(&out, num_rows, heads.q_width())?);
    }
    if outputs[0].iter().zip(&outputs[1]).any(|(a, b)| a.to_bits() != b.to_bits()) {
        return Err("a second run gives other bits".to_owned());
    }
    subject.accept(worst_row(&outputs[0], &expected, head_dim)?, 2.0)
}
