//! Causal attention of a few query rows over one KV head of one sequence, read through its block table.
//!
//! ```text
//! rows     (token, query head) pairs that share the KV head: at most MAX_ROWS
//! keys     tiles of TILE_KEYS positions counted from position 0 of the sequence
//! per tile s = scale * q k^T (lanes: keys), softcap, mask
//!          m' = max(m, max s)   p = e^(s - m')   l = l e^(m - m') + p   o = o e^(m - m') + p v (lanes: channels)
//! end      out = o / sum(l)
//! ```
//!
//! A score sums its channels in index order, an output its keys in index order; `l` is kept per lane (key mod 16). All of
//! it depends on positions alone, so a row has the same bits alone, in a prefill chunk of any size, and in decode. A tile
//! that a row sees nothing of changes nothing: `p = 0` and the factor is exactly 1.
//!
//! K of a block is `[head_dim, block_size]` and V `[block_size, head_dim]`: sixteen keys of one channel, or sixteen channels
//! of one key, are two loads of eight numbers, for block sizes that are multiples of 8.

use crate::simd::{LANES, Simd, exp, for_height, isa_entry, sum_lanes, tanh};

/// Keys of a tile; a multiple of 16.
pub(crate) const TILE_KEYS: usize = 64;
/// Rows of a task at most: 72 KiB of scratch at head_dim 64 leave room in L2 for the tile's K and V.
pub(crate) const MAX_ROWS: usize = 96;
/// Largest head_dim.
pub(crate) const MAX_HEAD_DIM: usize = 256;
/// f32 that `AttentionTask::scratch` must hold.
pub(crate) const SCRATCH_LEN: usize = MAX_ROWS * (2 * MAX_HEAD_DIM + TILE_KEYS + LANES + 1);

/// One task of the attention op.
pub(crate) struct AttentionTask<'a> {
    /// The first query head of the first token: `[num_tokens, qkv_stride]`, heads next to each other.
    pub(crate) q: *const f32,
    pub(crate) q_stride: usize,
    pub(crate) num_tokens: usize,
    /// Query heads, all served by one KV head; `num_tokens * num_heads <= MAX_ROWS`.
    pub(crate) num_heads: usize,
    pub(crate) head_dim: usize,
    /// Position of the first token.
    pub(crate) first_position: usize,
    /// The sequence's blocks, up to the last token's.
    pub(crate) table: &'a [u32],
    /// K of the KV head in block 0 of the layer, V right behind it.
    pub(crate) kv: *const f32,
    /// Numbers from block to block.
    pub(crate) block_stride: usize,
    pub(crate) block_size: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<u32>,
    pub(crate) softcap: Option<f32>,
    /// As `q`, in the output.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// [`SCRATCH_LEN`] numbers of this thread's own.
    pub(crate) scratch: *mut f32,
}

isa_entry!(fn paged_attention(AttentionTask<'_>) = attention_task);

/// The task's scratch: `R` rows.
#[derive(Clone, Copy)]
struct Scratch {
    /// `[R, head_dim]`, times the scale.
    q: *mut f32,
    /// `[R, head_dim]`
    o: *mut f32,
    /// `[R, TILE_KEYS]` scores, then probabilities.
    s: *mut f32,
    /// `[R, 16]`
    l: *mut f32,
    /// `[R]`
    m: *mut f32,
}

/// One tile of keys, cut at the last key that any row sees.
struct Tile {
    first_key: usize,
    num_keys: usize,
    /// K of key `8 i`: channel `c` is `block_size * c` behind.
    k: [*const f32; TILE_KEYS / 8],
    /// V of every key.
    v: [*const f32; TILE_KEYS],
}

#[inline(always)]
unsafe fn attention_task<S: Simd>(task: &AttentionTask<'_>) {
    let num_rows = task.num_tokens * task.num_heads;
    let q = task.scratch;
    let o = q.wrapping_add(num_rows * task.head_dim);
    let s = o.wrapping_add(num_rows * task.head_dim);
    let l = s.wrapping_add(num_rows * TILE_KEYS);
    let scratch = Scratch { q, o, s, l, m: l.wrapping_add(num_rows * LANES) };
    let num_keys = task.first_position + task.num_tokens;
    let first_key = task.window.map_or(0, |window| (task.first_position + 1).saturating_sub(window as usize));
    // SAFETY: the scratch holds all rows; the table reaches the last key.
    unsafe {
        begin::<S>(task, scratch);
        for first in (first_key / TILE_KEYS * TILE_KEYS..num_keys).step_by(TILE_KEYS) {
            let tile = locate(task, first, (num_keys - first).min(TILE_KEYS));
            score_rows::<S>(task, scratch, &tile, num_rows);
            for row in 0..num_rows {
                soften::<S>(task, scratch, &tile, row);
            }
            weigh_rows::<S>(task, scratch, &tile, num_rows);
        }
        finish::<S>(task, scratch);
    }
}

#[inline(always)]
unsafe fn begin<S: Simd>(task: &AttentionTask<'_>, scratch: Scratch) {
    // SAFETY: every row of the task is in `q` and in the scratch; `head_dim` is a multiple of 16.
    unsafe {
        let (mut q, mut o) = (scratch.q, scratch.o);
        for token in 0..task.num_tokens {
            let from = task.q.wrapping_add(token * task.q_stride);
            for channel in (0..task.num_heads * task.head_dim).step_by(LANES) {
                S::store(q, S::mul(S::load(from.wrapping_add(channel)), S::splat(task.scale)));
                S::store(o, S::splat(0.0));
                q = q.wrapping_add(LANES);
                o = o.wrapping_add(LANES);
            }
        }
        for row in 0..task.num_tokens * task.num_heads {
            S::store(scratch.l.wrapping_add(row * LANES), S::splat(0.0));
            scratch.m.wrapping_add(row).write(f32::NEG_INFINITY);
        }
    }
}

#[inline(always)]
fn locate(task: &AttentionTask<'_>, first_key: usize, num_keys: usize) -> Tile {
    let head_len = task.head_dim * task.block_size;
    let mut tile = Tile { first_key, num_keys, k: [task.kv; TILE_KEYS / 8], v: [task.kv; TILE_KEYS] };
    for eighth in 0..num_keys.div_ceil(8) {
        let key = first_key + eighth * 8;
        let block = task.kv.wrapping_add(task.table[key / task.block_size] as usize * task.block_stride);
        let offset = key % task.block_size;
        tile.k[eighth] = block.wrapping_add(offset);
        for index in 0..8 {
            tile.v[eighth * 8 + index] = block.wrapping_add(head_len + (offset + index) * task.head_dim);
        }
    }
    // A vector of sixteen keys whose second half nobody sees reads the first half twice; the mask removes it.
    if num_keys.div_ceil(8) % 2 == 1 {
        tile.k[num_keys.div_ceil(8)] = tile.k[num_keys.div_ceil(8) - 1];
    }
    tile
}

/// Runs `$call` over row blocks of nearly equal height; up to three rows take two vectors at a time.
macro_rules! row_blocks {
    ($num_rows:expr, |$first_row:ident, $rows:ident, $vectors:ident| $call:expr) => {{
        let num_blocks = $num_rows.div_ceil(S::TILE_ROWS);
        let mut $first_row = 0;
        for block in 0..num_blocks {
            let height = ($num_rows - $first_row).div_ceil(num_blocks - block);
            macro_rules! with {
                ($height:literal, low) => {{
                    const $rows: usize = $height;
                    const $vectors: usize = 2;
                    $call
                }};
                ($height:literal, tall) => {{
                    const $rows: usize = $height;
                    const $vectors: usize = 1;
                    $call
                }};
            }
            for_height!(S, height, with);
            $first_row += height;
        }
    }};
}

#[inline(always)]
unsafe fn score_rows<S: Simd>(task: &AttentionTask<'_>, scratch: Scratch, tile: &Tile, num_rows: usize) {
    let num_vectors = tile.num_keys.div_ceil(LANES);
    row_blocks!(num_rows, |first_row, ROWS, VECTORS| {
        let mut vector = 0;
        // SAFETY: the rows are in the scratch, the keys in the tile.
        unsafe {
            while vector + VECTORS <= num_vectors {
                score::<S, ROWS, VECTORS>(task, scratch, tile, first_row, vector);
                vector += VECTORS;
            }
            if vector < num_vectors {
                score::<S, ROWS, 1>(task, scratch, tile, first_row, vector);
            }
        }
    });
}

/// `s[row][key] = sum over channels in order of q k`, sixteen keys per vector.
#[inline(always)]
unsafe fn score<S: Simd, const ROWS: usize, const VECTORS: usize>(
    task: &AttentionTask<'_>,
    scratch: Scratch,
    tile: &Tile,
    first_row: usize,
    first_vector: usize,
) {
    let q: [*const f32; ROWS] =
        std::array::from_fn(|row| scratch.q.wrapping_add((first_row + row) * task.head_dim).cast_const());
    let mut low: [*const f32; VECTORS] = std::array::from_fn(|vector| tile.k[2 * (first_vector + vector)]);
    let mut high: [*const f32; VECTORS] =
        std::array::from_fn(|vector| tile.k[2 * (first_vector + vector) + 1]);
    // SAFETY: a key's channels are `block_size` apart in its block; `q` has `head_dim` per row.
    unsafe {
        let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
        for channel in 0..task.head_dim {
            let mut keys = [S::load_halves(low[0], high[0]); VECTORS];
            for vector in 1..VECTORS {
                keys[vector] = S::load_halves(low[vector], high[vector]);
            }
            for row in 0..ROWS {
                let value = S::splat(q[row].wrapping_add(channel).read());
                for vector in 0..VECTORS {
                    sums[row][vector] = S::mul_add(value, keys[vector], sums[row][vector]);
                }
            }
            for vector in 0..VECTORS {
                low[vector] = low[vector].wrapping_add(task.block_size);
                high[vector] = high[vector].wrapping_add(task.block_size);
            }
        }
        for row in 0..ROWS {
            let to = scratch.s.wrapping_add((first_row + row) * TILE_KEYS + first_vector * LANES);
            for vector in 0..VECTORS {
                S::store(to.wrapping_add(vector * LANES), sums[row][vector]);
            }
        }
    }
}

/// Scores of one row to probabilities; rescales what the row has gathered if its maximum rises.
#[inline(always)]
unsafe fn soften<S: Simd>(task: &AttentionTask<'_>, scratch: Scratch, tile: &Tile, row: usize) {
    let position = task.first_position + row / task.num_heads;
    let visible = task.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
    // Lanes of the tile that the row sees; both may lie outside it.
    let first = visible.saturating_sub(tile.first_key) as i32;
    let end = (position + 1).saturating_sub(tile.first_key).min(TILE_KEYS) as i32;
    let num_vectors = tile.num_keys.div_ceil(LANES);
    let s = scratch.s.wrapping_add(row * TILE_KEYS);
    // SAFETY: the row is in the scratch.
    unsafe {
        if first >= end {
            for vector in 0..num_vectors {
                S::store(s.wrapping_add(vector * LANES), S::splat(0.0));
            }
            return;
        }
        let mut maxima = S::splat(f32::NEG_INFINITY);
        for vector in 0..num_vectors {
            let at = s.wrapping_add(vector * LANES);
            let mut score = S::load(at);
            if let Some(cap) = task.softcap {
                score = S::mul(S::splat(cap), tanh::<S>(S::div(score, S::splat(cap))));
            }
            let base = (vector * LANES) as i32;
            score = S::keep_lanes(score, first - base, end - base, S::splat(f32::NEG_INFINITY));
            S::store(at, score);
            maxima = S::max(score, maxima);
        }
        let old_max = scratch.m.wrapping_add(row).read();
        let max = max_of_lanes::<S>(maxima).max(old_max);
        let l = scratch.l.wrapping_add(row * LANES);
        let mut sums = S::load(l);
        if max != old_max {
            scratch.m.wrapping_add(row).write(max);
            let factor = exp::<S>(S::splat(old_max - max));
            sums = S::mul(sums, factor);
            let o = scratch.o.wrapping_add(row * task.head_dim);
            for channel in (0..task.head_dim).step_by(LANES) {
                let at = o.wrapping_add(channel);
                S::store(at, S::mul(S::load(at), factor));
            }
        }
        for vector in 0..num_vectors {
            let at = s.wrapping_add(vector * LANES);
            let p = exp::<S>(S::sub(S::load(at), S::splat(max)));
            S::store(at, p);
            sums = S::add(sums, p);
        }
        S::store(l, sums);
    }
}

#[inline(always)]
unsafe fn max_of_lanes<S: Simd>(v: S::V) -> f32 {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: the array has 16 lanes.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = if lanes[lane] > lanes[lane + half] { lanes[lane] } else { lanes[lane + half] };
        }
    }
    lanes[0]
}

#[inline(always)]
unsafe fn weigh_rows<S: Simd>(task: &AttentionTask<'_>, scratch: Scratch, tile: &Tile, num_rows: usize) {
    let num_vectors = task.head_dim / LANES;
    row_blocks!(num_rows, |first_row, ROWS, VECTORS| {
        let mut vector = 0;
        // SAFETY: the rows are in the scratch, the keys in the tile.
        unsafe {
            while vector + VECTORS <= num_vectors {
                weigh::<S, ROWS, VECTORS>(task, scratch, tile, first_row, vector * LANES);
                vector += VECTORS;
            }
            if vector < num_vectors {
                weigh::<S, ROWS, 1>(task, scratch, tile, first_row, vector * LANES);
            }
        }
    });
}

/// `o[row][channel] += sum over keys in order of p v`, sixteen channels per vector.
#[inline(always)]
unsafe fn weigh<S: Simd, const ROWS: usize, const VECTORS: usize>(
    task: &AttentionTask<'_>,
    scratch: Scratch,
    tile: &Tile,
    first_row: usize,
    channel: usize,
) {
    let p: [*const f32; ROWS] =
        std::array::from_fn(|row| scratch.s.wrapping_add((first_row + row) * TILE_KEYS).cast_const());
    let o: [*mut f32; ROWS] =
        std::array::from_fn(|row| scratch.o.wrapping_add((first_row + row) * task.head_dim + channel));
    // SAFETY: `o` and V have `VECTORS * 16` channels from `channel`; `p` has the tile's keys.
    unsafe {
        let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
        for row in 0..ROWS {
            for vector in 0..VECTORS {
                sums[row][vector] = S::load(o[row].wrapping_add(vector * LANES));
            }
        }
        for key in 0..tile.num_keys {
            let v = tile.v.as_ptr().wrapping_add(key).read().wrapping_add(channel);
            let mut channels = [S::load(v); VECTORS];
            for vector in 1..VECTORS {
                channels[vector] = S::load(v.wrapping_add(vector * LANES));
            }
            for row in 0..ROWS {
                let value = S::splat(p[row].wrapping_add(key).read());
                for vector in 0..VECTORS {
                    sums[row][vector] = S::mul_add(value, channels[vector], sums[row][vector]);
                }
            }
        }
        for row in 0..ROWS {
            for vector in 0..VECTORS {
                S::store(o[row].wrapping_add(vector * LANES), sums[row][vector]);
            }
        }
    }
}

#[inline(always)]
unsafe fn finish<S: Simd>(task: &AttentionTask<'_>, scratch: Scratch) {
    for row in 0..task.num_tokens * task.num_heads {
        let (token, head) = (row / task.num_heads, row % task.num_heads);
        let out = task.out.wrapping_add(token * task.out_stride + head * task.head_dim);
        let o = scratch.o.wrapping_add(row * task.head_dim);
        // SAFETY: the row is in the scratch and in the output.
        unsafe {
            let sum = S::splat(sum_lanes::<S>(S::load(scratch.l.wrapping_add(row * LANES))));
            for channel in (0..task.head_dim).step_by(LANES) {
                S::store(out.wrapping_add(channel), S::div(S::load(o.wrapping_add(channel)), sum));
            }
        }
    }
}
