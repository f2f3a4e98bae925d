//! Norm and rotation of the Q and K heads of one row, in place; K and V to their slot.
//!
//! K lies transposed in its block, so that the lanes of the score kernel run over keys; the slot's channels are therefore
//! `block_size` numbers apart.

use super::norm::norm_row;
use crate::simd::{LANES, Simd, isa_entry};

/// One row.
pub(crate) struct RopeTask {
    /// `[qkv width]`
    pub(crate) row: *mut f32,
    pub(crate) num_q_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// `[head_dim]`, or null.
    pub(crate) q_norm: *const f32,
    /// `[head_dim]`, or null with `q_norm`.
    pub(crate) k_norm: *const f32,
    pub(crate) eps: f32,
    /// `[half]` of the row's position.
    pub(crate) cos: *const f32,
    /// `[half]` of the row's position.
    pub(crate) sin: *const f32,
    /// Half the rotated channels.
    pub(crate) half: usize,
    /// The block's first head: for each KV head `[head_dim, block_size]` K, then `[block_size, head_dim]` V. No other task
    /// writes the slot.
    pub(crate) block: *mut f32,
    pub(crate) block_size: usize,
    /// Which slot of the block.
    pub(crate) offset: usize,
}

isa_entry!(fn rope_store_kv(RopeTask) = rope_row);

#[inline(always)]
unsafe fn rope_row<S: Simd>(task: &RopeTask) {
    let head_dim = task.head_dim;
    // SAFETY: every head is inside the row, every slot inside the block.
    unsafe {
        for head in 0..task.num_q_heads + task.num_kv_heads {
            let channels = task.row.wrapping_add(head * head_dim);
            let weight = if head < task.num_q_heads { task.q_norm } else { task.k_norm };
            if !weight.is_null() {
                norm_row::<S>(channels, weight, task.eps, head_dim, channels);
            }
            rotate::<S>(task, channels);
        }
        for kv_head in 0..task.num_kv_heads {
            let k = task.row.wrapping_add((task.num_q_heads + kv_head) * head_dim);
            let v = k.wrapping_add(task.num_kv_heads * head_dim);
            let k_block = task.block.wrapping_add(kv_head * 2 * head_dim * task.block_size);
            let v_block = k_block.wrapping_add(head_dim * task.block_size);
            let mut to = k_block.wrapping_add(task.offset);
            for channel in 0..head_dim {
                to.write(k.wrapping_add(channel).read());
                to = to.wrapping_add(task.block_size);
            }
            v_block.wrapping_add(task.offset * head_dim).copy_from_nonoverlapping(v, head_dim);
        }
    }
}

/// `(a, b) -> (a cos - b sin, a sin + b cos)` for channel `i` and `i + half`.
#[inline(always)]
unsafe fn rotate<S: Simd>(task: &RopeTask, channels: *mut f32) {
    for first in (0..task.half).step_by(LANES) {
        let count = (task.half - first).min(LANES);
        let low = channels.wrapping_add(first);
        let high = low.wrapping_add(task.half);
        // SAFETY: `count` channels of both halves are left.
        unsafe {
            let cos = S::load_first(task.cos.wrapping_add(first), count);
            let sin = S::load_first(task.sin.wrapping_add(first), count);
            let (a, b) = (S::load_first(low, count), S::load_first(high, count));
            let minus_b = S::sub(S::splat(0.0), b);
            S::store_first(low, S::mul_add(a, cos, S::mul(minus_b, sin)), count);
            S::store_first(high, S::mul_add(a, sin, S::mul(b, cos)), count);
        }
    }
}
