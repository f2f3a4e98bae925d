//! Ops that write the KV cache.

use std::fmt;

use pagoda_backend::{
    Backend, BatchMetadata, BlockCopy, HeadLayout, KvLayout, QkNorm, RopeStoreKv, RopeTable,
};
use pagoda_backend_cpu::reference::{self, KvCache, RopeInput};

use crate::compare::{equal, worst_row};
use crate::random::Random;
use crate::subject::{Subject, text};

/// `rope_store_kv` at one shape.
#[derive(Clone, Copy, Debug)]
pub(super) struct RopeCase {
    heads: HeadLayout,
    block_size: usize,
    rotary_dim: usize,
    has_norm: bool,
}

impl fmt::Display for RopeCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HeadLayout { num_q_heads, num_kv_heads, head_dim } = self.heads;
        let norm = if self.has_norm { "/qk_norm" } else { "" };
        write!(
            f,
            "{num_q_heads}:{num_kv_heads}/d{head_dim}/block{}/rotary{}{norm}",
            self.block_size, self.rotary_dim
        )
    }
}

pub(super) fn rope_cases() -> Vec<RopeCase> {
    let case = |num_q_heads, num_kv_heads, head_dim, block_size, rotary_dim, has_norm| RopeCase {
        heads: HeadLayout { num_q_heads, num_kv_heads, head_dim },
        block_size,
        rotary_dim,
        has_norm,
    };
    vec![
        case(1, 1, 64, 16, 64, false),
        case(9, 3, 64, 16, 64, false),
        case(4, 1, 96, 32, 96, true),
        case(3, 3, 96, 16, 32, false),
        case(8, 2, 128, 32, 128, true),
        case(4, 4, 256, 16, 256, true),
        case(2, 1, 256, 32, 64, false),
    ]
}

pub(super) fn rope_store_kv<B: Backend>(
    subject: &mut Subject<B>,
    random: &mut Random,
    case: &RopeCase,
) -> Result<f64, String> {
    let RopeCase { heads, block_size, rotary_dim, has_norm } = *case;
    let HeadLayout { num_q_heads, num_kv_heads, head_dim } = heads;
    let layout = KvLayout { num_layers: 2, num_blocks: 12, block_size, num_kv_heads, head_dim };
    let frequencies: Vec<f64> = (0..rotary_dim / 2).map(|i| 0.7f64.powi(i as i32)).collect();
    let rope = RopeTable::new(&frequencies, 3 * block_size, 1.0);
    let batch = random.batch(layout, &[(block_size + 1, 3), (1, 1), (2 * block_size, block_size + 1)]);
    let (rows, width) = (batch.num_tokens(), heads.qkv_width());
    let qkv = random.rounded(rows * width, subject.round);
    let norms = [random.rounded(head_dim, subject.round), random.rounded(head_dim, subject.round)];

    let mut expected_kv = KvCache::new(layout);
    let mut expected = qkv.clone();
    let qk_norm = has_norm.then_some((&norms[0][..], &norms[1][..], 1e-6));
    let input = RopeInput { batch: &batch, heads, qk_norm, rope: &rope, layer: 1 };
    reference::rope_store_kv(&input, &mut expected, &mut expected_kv);
    round_heads(subject, &batch, &mut expected_kv, 1);

    let mut tensor = subject.tensor(&qkv, width)?;
    let mut kv = subject.backend.alloc_kv(layout).map_err(text)?;
    let mut device_batch = subject.backend.alloc_batch(rows, 3, 12).map_err(text)?;
    subject.backend.upload_batch(&mut device_batch, &mut batch.clone()).map_err(text)?;
    let rope = subject.backend.upload_rope(&rope).map_err(text)?;
    let q_weight = subject.backend.upload_vector(&norms[0]).map_err(text)?;
    let k_weight = subject.backend.upload_vector(&norms[1]).map_err(text)?;
    let qk_norm = has_norm.then_some(QkNorm { q_weight: &q_weight, k_weight: &k_weight, eps: 1e-6 });
    let op = RopeStoreKv {
        batch: &device_batch,
        qkv: &mut tensor,
        heads,
        qk_norm,
        rope: &rope,
        kv: &mut kv,
        layer: 1,
    };
    subject.backend.rope_store_kv(op).map_err(text)?;

    let q_of = |rows: &[f32]| -> Vec<f32> {
        rows.chunks(width).flat_map(|row| &row[..num_q_heads * head_dim]).copied().collect()
    };
    let actual = subject.output(&tensor, rows, width)?;
    let worst = worst_row(&q_of(&actual), &q_of(&expected), head_dim)?;
    let mut worst_k = 0.0f64;
    for slot in 0..layout.num_blocks * block_size {
        let (k, v) = (subject.read_slot)(&mut subject.backend, &kv, 1, slot).map_err(text)?;
        let at = expected_kv.offset(1, slot, 0);
        equal(&v, &expected_kv.v[at..at + v.len()], "V")?;
        let expected_k = &expected_kv.k[at..at + k.len()];
        if expected_k[0].is_nan() {
            equal(&k, expected_k, "K of a slot that nobody wrote")?;
        } else {
            worst_k = worst_k.max(worst_row(&k, expected_k, head_dim)?);
        }
    }
    if worst_k > subject.kv_tolerance {
        return Err(format!("K: relative L2 {worst_k:.3e} > {:.1e}", subject.kv_tolerance));
    }
    subject.accept(worst, 1.0)
}

/// What the cache keeps of the heads that `batch` wrote.
fn round_heads<B: Backend>(
    subject: &Subject<B>,
    batch: &BatchMetadata,
    expected: &mut KvCache,
    layer: usize,
) {
    let KvLayout { num_kv_heads, head_dim, .. } = expected.layout;
    for (&slot, head) in batch.slot_mapping.iter().flat_map(|slot| (0..num_kv_heads).map(move |h| (slot, h)))
    {
        let at = expected.offset(layer, slot as usize, head);
        (subject.round_head)(&mut expected.k[at..at + head_dim]);
        (subject.round_head)(&mut expected.v[at..at + head_dim]);
    }
}

/// Heads of every magnitude, of zeros, and one that is not finite: the cache keeps what the format can, and says the last.
pub(super) fn kv_range<B: Backend>(subject: &mut Subject<B>, random: &mut Random) -> Result<f64, String> {
    let heads = HeadLayout { num_q_heads: 1, num_kv_heads: 1, head_dim: 64 };
    let layout = KvLayout { num_layers: 1, num_blocks: 6, block_size: 16, num_kv_heads: 1, head_dim: 64 };
    let batch = random.batch(layout, &[(48, 48)]);
    let mut rows = Vec::new();
    for row in 0..48 {
        // 2^-30 .. 2^15; f16 has nothing below 2^-24.
        let scale = if row == 46 { 0.0 } else { 2f32.powi(row - 30) };
        rows.extend(
            random.rounded(heads.qkv_width(), subject.round).iter().map(|x| (subject.round)(x * scale)),
        );
    }
    rows[47 * heads.qkv_width() + 64..][..128].fill(f32::NAN);
    let mut expected = KvCache::new(layout);
    let mut kv = subject.backend.alloc_kv(layout).map_err(text)?;
    store(subject, &mut kv, &mut expected, &Rows { batch: &batch, heads, layer: 0, rows: &rows })?;
    for &slot in &batch.slot_mapping {
        let (k, v) = (subject.read_slot)(&mut subject.backend, &kv, 0, slot as usize).map_err(text)?;
        let at = expected.offset(0, slot as usize, 0);
        equal(&k, &expected.k[at..at + 64], "K")?;
        equal(&v, &expected.v[at..at + 64], "V")?;
    }
    Ok(0.0)
}

/// Whole blocks and parts of them; every slot of both layers is compared.
pub(super) fn copy_blocks<B: Backend>(
    subject: &mut Subject<B>,
    random: &mut Random,
    block_size: usize,
    head_dim: usize,
) -> Result<f64, String> {
    let heads = HeadLayout { num_q_heads: 2, num_kv_heads: 2, head_dim };
    let layout = KvLayout { num_layers: 2, num_blocks: 9, block_size, num_kv_heads: 2, head_dim };
    let batch = random.batch(layout, &[(4 * block_size, 4 * block_size)]);
    let mut expected = KvCache::new(layout);
    let mut kv = subject.backend.alloc_kv(layout).map_err(text)?;
    for layer in 0..2 {
        let rows = random.heads(batch.num_tokens() * heads.qkv_width(), head_dim, subject.round);
        store(subject, &mut kv, &mut expected, &Rows { batch: &batch, heads, layer, rows: &rows })?;
    }
    let table = batch.block_table(0).to_vec();
    let free: Vec<u32> = (1..9).filter(|block| !table.contains(block)).collect();
    let copies = [
        BlockCopy { source: table[0], target: free[0], num_slots: block_size as u32 },
        BlockCopy { source: table[1], target: free[1], num_slots: 1 },
        BlockCopy { source: table[1], target: free[2], num_slots: block_size as u32 - 1 },
    ];
    reference::copy_blocks(&mut expected, &copies);
    subject.backend.copy_blocks(&mut kv, &copies).map_err(text)?;
    for (layer, slot) in (0..2).flat_map(|layer| (0..9 * block_size).map(move |slot| (layer, slot))) {
        let (k, v) = (subject.read_slot)(&mut subject.backend, &kv, layer, slot).map_err(text)?;
        let at = expected.offset(layer, slot, 0);
        equal(&k, &expected.k[at..at + k.len()], "K")?;
        equal(&v, &expected.v[at..at + v.len()], "V")?;
    }
    Ok(0.0)
}

/// Rows whose K and V go into a layer as they are.
pub(super) struct Rows<'a> {
    pub(super) batch: &'a BatchMetadata,
    pub(super) heads: HeadLayout,
    pub(super) layer: usize,
    /// `[num_tokens, qkv_width]`
    pub(super) rows: &'a [f32],
}

/// Fills both caches through `rope_store_kv` with a rotation by nothing.
pub(super) fn store<B: Backend>(
    subject: &mut Subject<B>,
    kv: &mut B::KvCache,
    expected: &mut KvCache,
    input: &Rows<'_>,
) -> Result<(), String> {
    let Rows { batch, heads, layer, rows } = *input;
    let num_positions = batch.positions.iter().max().map_or(1, |&position| position as usize + 1);
    let rope = RopeTable::new(&[0.0], num_positions, 1.0);
    let reference_input = RopeInput { batch, heads, qk_norm: None, rope: &rope, layer };
    reference::rope_store_kv(&reference_input, &mut rows.to_vec(), expected);
    round_heads(subject, batch, expected, layer);
    let rope = subject.backend.upload_rope(&rope).map_err(text)?;
    let mut qkv = subject.tensor(rows, heads.qkv_width())?;
    let (num_sequences, table_len) = (batch.num_sequences(), batch.block_tables.len());
    let mut device_batch =
        subject.backend.alloc_batch(batch.num_tokens(), num_sequences, table_len).map_err(text)?;
    subject.backend.upload_batch(&mut device_batch, &mut batch.clone()).map_err(text)?;
    let op =
        RopeStoreKv { batch: &device_batch, qkv: &mut qkv, heads, qk_norm: None, rope: &rope, kv, layer };
    subject.backend.rope_store_kv(op).map_err(text)
}
