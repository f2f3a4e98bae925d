//! RoPE, the KV cache and paged attention, one number at a time.

use pagoda_backend::{BatchMetadata, BlockCopy, HeadLayout, KvLayout, RopeTable};

/// K and V of all layers as plain arrays `[layer][slot][kv head][channel]`.
#[derive(Clone, Debug, PartialEq)]
pub struct KvCache {
    /// Sizes.
    pub layout: KvLayout,
    /// Keys.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
}

impl KvCache {
    /// All slots NaN, so that a read of an unwritten slot shows.
    pub fn new(layout: KvLayout) -> Self {
        let len = layout.elements_per_block() / 2 * layout.num_blocks;
        KvCache { layout, k: vec![f32::NAN; len], v: vec![f32::NAN; len] }
    }

    /// Where the channels of one head of one slot begin.
    pub fn offset(&self, layer: usize, slot: usize, kv_head: usize) -> usize {
        let num_slots = self.layout.num_blocks * self.layout.block_size;
        ((layer * num_slots + slot) * self.layout.num_kv_heads + kv_head) * self.layout.head_dim
    }
}

/// What [`rope_store_kv`] needs besides the rows and the cache.
pub struct RopeInput<'a> {
    /// Positions and slots.
    pub batch: &'a BatchMetadata,
    /// Where each head lies in a row.
    pub heads: HeadLayout,
    /// `(q weight, k weight, eps)` of the head norms, if the family has them.
    pub qk_norm: Option<(&'a [f32], &'a [f32], f32)>,
    /// Rotation by position.
    pub rope: &'a RopeTable,
    /// Which layer of the cache.
    pub layer: usize,
}

/// Norm of each Q and K head, RoPE on both in place, K and V to their slots.
pub fn rope_store_kv(input: &RopeInput<'_>, qkv: &mut [f32], kv: &mut KvCache) {
    let HeadLayout { num_q_heads, num_kv_heads, head_dim } = input.heads;
    for (row_index, row) in qkv.chunks_exact_mut(input.heads.qkv_width()).enumerate() {
        if row_index >= input.batch.num_tokens() {
            break;
        }
        let position = input.batch.positions[row_index] as usize;
        for (head, channels) in row.chunks_exact_mut(head_dim).enumerate().take(num_q_heads + num_kv_heads) {
            if let Some((q_weight, k_weight, eps)) = input.qk_norm {
                let weight = if head < num_q_heads { q_weight } else { k_weight };
                let normed = super::rms_norm(channels, weight, eps);
                channels.copy_from_slice(&normed);
            }
            rotate(input.rope, position, channels);
        }
        let slot = input.batch.slot_mapping[row_index] as usize;
        for kv_head in 0..num_kv_heads {
            let to = kv.offset(input.layer, slot, kv_head);
            let k_from = (num_q_heads + kv_head) * head_dim;
            let v_from = (num_q_heads + num_kv_heads + kv_head) * head_dim;
            kv.k[to..to + head_dim].copy_from_slice(&row[k_from..k_from + head_dim]);
            kv.v[to..to + head_dim].copy_from_slice(&row[v_from..v_from + head_dim]);
        }
    }
}

/// Channel `i` turns with channel `i + rotary_dim / 2`.
fn rotate(rope: &RopeTable, position: usize, channels: &mut [f32]) {
    let half = rope.rotary_dim / 2;
    for i in 0..half {
        let cos = f64::from(rope.cos[position * half + i]);
        let sin = f64::from(rope.sin[position * half + i]);
        let (a, b) = (f64::from(channels[i]), f64::from(channels[i + half]));
        channels[i] = (a * cos - b * sin) as f32;
        channels[i + half] = (a * sin + b * cos) as f32;
    }
}

/// What [`paged_attention`] needs besides the rows and the cache.
pub struct AttentionInput<'a> {
    /// Query ranges, context lengths and block tables.
    pub batch: &'a BatchMetadata,
    /// Where each head lies in a row.
    pub heads: HeadLayout,
    /// Which layer of the cache.
    pub layer: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// A query sees this many keys, itself included.
    pub window: Option<u32>,
    /// `cap * tanh(score / cap)`
    pub softcap: Option<f32>,
}

/// `[n, q_width]`: causal attention of every query row over its sequence's cached keys, read through the block table.
pub fn paged_attention(input: &AttentionInput<'_>, qkv: &[f32], kv: &KvCache) -> Vec<f32> {
    let mut out = vec![0.0; input.batch.num_tokens() * input.heads.q_width()];
    for sequence in 0..input.batch.num_sequences() {
        let rows = input.batch.query_start_loc[sequence]..input.batch.query_start_loc[sequence + 1];
        let first_position = input.batch.context_lens[sequence] - (rows.end - rows.start);
        for (index, row) in rows.enumerate() {
            for head in 0..input.heads.num_q_heads {
                let position = first_position as usize + index;
                attend(input, (sequence, row as usize, head, position), qkv, kv, &mut out);
            }
        }
    }
    out
}

fn attend(
    input: &AttentionInput<'_>,
    (sequence, row, head, position): (usize, usize, usize, usize),
    qkv: &[f32],
    kv: &KvCache,
    out: &mut [f32],
) {
    let head_dim = input.heads.head_dim;
    let table = input.batch.block_table(sequence);
    let block_size = kv.layout.block_size;
    let kv_head = head / (input.heads.num_q_heads / input.heads.num_kv_heads);
    let offset_of = |key: usize| {
        let slot = table[key / block_size] as usize * block_size + key % block_size;
        kv.offset(input.layer, slot, kv_head)
    };
    let q = &qkv[row * input.heads.qkv_width() + head * head_dim..][..head_dim];
    let first_key = input.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
    let scores: Vec<f64> = (first_key..=position)
        .map(|key| {
            let k = &kv.k[offset_of(key)..][..head_dim];
            let dot: f64 = q.iter().zip(k).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let score = dot * f64::from(input.scale);
            input.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    for channel in 0..head_dim {
        let weighted: f64 = scores
            .iter()
            .enumerate()
            .map(|(index, score)| {
                (score - max).exp() * f64::from(kv.v[offset_of(first_key + index) + channel])
            })
            .sum();
        out[row * input.heads.q_width() + head * head_dim + channel] = (weighted / sum) as f32;
    }
}

/// Copies the first `num_slots` slots of each source block to its target, in every layer.
pub fn copy_blocks(kv: &mut KvCache, copies: &[BlockCopy]) {
    let slot_len = kv.layout.num_kv_heads * kv.layout.head_dim;
    for layer in 0..kv.layout.num_layers {
        for copy in copies {
            let source = kv.offset(layer, copy.source as usize * kv.layout.block_size, 0);
            let target = kv.offset(layer, copy.target as usize * kv.layout.block_size, 0);
            let len = copy.num_slots as usize * slot_len;
            kv.k.copy_within(source..source + len, target);
            kv.v.copy_within(source..source + len, target);
        }
    }
}
