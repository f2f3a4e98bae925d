//! The kernels' parameters, field by field as in `kernels/include/params.h`.
//!
//! Every struct here is plain numbers without padding, so that its bytes are what the kernel reads. A test compares the names,
//! sizes and offsets with the header's.

use crate::device::TensorMap;

/// An address in the device's memory; 0 is null.
pub(crate) type Pointer = u64;

/// Marks structs that are plain numbers without padding.
///
/// # Safety
/// Every byte of the struct must belong to a field, and every bit pattern of a field must be a number.
pub(crate) unsafe trait Plain: Copy {}

/// The bytes of plain structs.
pub(crate) fn bytes_of<P: Plain>(values: &[P]) -> &[u8] {
    // SAFETY: `Plain` has no padding; the slice lives as long as the borrow.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Plain structs from bytes that a kernel wrote.
pub(crate) fn read_plain<P: Plain + Default>(bytes: &[u8]) -> Vec<P> {
    let mut values = vec![P::default(); bytes.len() / size_of::<P>()];
    // SAFETY: `Plain` takes any bytes; both sides hold `values.len()` structs.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), values.as_mut_ptr().cast(), size_of_val(&*values));
    }
    values
}

// SAFETY: a number without padding.
unsafe impl Plain for u32 {}
// SAFETY: a number without padding.
unsafe impl Plain for f32 {}

/// Defines the mirrored structs, and [`layout`] over all of them.
macro_rules! params {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default)]
            pub(crate) struct $name { $(pub(crate) $field: $kind,)* }
            // SAFETY: numbers, and no padding: the sizes of the fields add up.
            unsafe impl Plain for $name {}
            const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$kind>())*, "padding");
        )*

        /// Name and size of every struct, and the offset of every field: what the header must say too.
        pub fn layout() -> Vec<(&'static str, usize, Vec<(&'static str, usize)>)> {
            vec![$((
                stringify!($name),
                size_of::<$name>(),
                vec![$((stringify!($field), std::mem::offset_of!($name, $field)),)*],
            ),)*]
        }
    };
}

params! {
    /// Of `rms_norm`.
    struct RmsNormParams { x: Pointer, weight: Pointer, out: Pointer, width: u32, eps: f32, }
    /// Of `add_rms_norm`.
    struct AddRmsNormParams { x: Pointer, residual: Pointer, weight: Pointer, out: Pointer, width: u32, eps: f32, }
    /// Of `gated_activation`.
    struct GatedActivationParams {
        gate_up: Pointer, out: Pointer, num_rows: u32, width: u32, activation: u32, reserved: u32,
    }
    /// Of `gather_rows`.
    struct GatherRowsParams { x: Pointer, rows: Pointer, out: Pointer, width: u32, reserved: u32, }
    /// A packed weight.
    struct WeightView { codes: Pointer, scales: Pointer, rows: u32, cols: u32, format: u32, reserved: u32, }
    /// Of `embed`.
    struct EmbedParams {
        table: WeightView, input_tokens: Pointer, last_samples: Pointer, out: Pointer, scale: f32, reserved: u32,
    }
    /// The KV cache.
    struct KvView {
        data: Pointer, num_layers: u32, num_blocks: u32, num_kv_heads: u32, head_dim: u32, log2_block_size: u32,
        is_e4m3: u32,
    }
    /// One copy of `copy_blocks`.
    struct BlockCopyEntry { source: u32, target: u32, num_slots: u32, }
    /// Of `copy_blocks`.
    struct CopyBlocksParams { kv: KvView, copies: Pointer, }
    /// Of `rope_store_kv`.
    struct RopeStoreKvParams {
        qkv: Pointer, q_norm: Pointer, k_norm: Pointer, cos: Pointer, sin: Pointer, positions: Pointer,
        slots: Pointer, kv: KvView, num_q_heads: u32, rotary_half: u32, layer: u32, eps: f32,
    }
    /// A piece of attention work.
    struct AttentionWork { sequence: u32, index: u32, }
    /// Of the attention kernels.
    struct PagedAttentionParams {
        qkv: Pointer, out: Pointer, kv: KvView, block_tables: Pointer, block_table_starts: Pointer,
        context_lens: Pointer, query_starts: Pointer, work: Pointer, partial_out: Pointer, partial_stats: Pointer,
        arrivals: Pointer, num_q_heads: u32, layer: u32, window: u32, scale: f32, softcap: f32, reserved: u32,
    }
    /// Of `paged_attention_prefill_wgmma`.
    struct WgmmaPrefillParams { kv_map: TensorMap, attention: PagedAttentionParams, reserved: [u64; 15], }
    /// Of `skinny_gemm` and `gemm`.
    struct LinearParams {
        weight: WeightView, x: Pointer, bias: Pointer, out: Pointer, num_rows: u32, out_stride: u32,
        out_is_f32: u32, reserved: u32,
    }
    /// Of `dequantize`.
    struct DequantizeParams { weight: WeightView, out: Pointer, first_row: u32, num_rows: u32, }
    /// How one row becomes a token.
    struct SampleRule {
        seed: u64, sample_index: u32, position: u32, row: u32, forced: u32, num_top: u32, top_k: u32,
        temperature: f32, top_p: f32, min_p: f32, repetition_penalty: f32, frequency_penalty: f32,
        presence_penalty: f32, first_count: u32, num_counts: u32, first_bias: u32, num_biases: u32,
        first_banned: u32, num_banned: u32, first_mask_word: u32, num_mask_words: u32,
    }
    /// A token's occurrences.
    struct SampleCount { token: u32, num_output: u32, }
    /// A token's bias.
    struct SampleBias { token: u32, bias: f32, }
    /// What `sample` says of a row.
    struct SampleReport { token: u32, is_failed: u32, logprob: f32, rank: u32, }
    /// One of the likeliest tokens.
    struct SampleTop { token: u32, logprob: f32, }
    /// Of `sample`.
    struct SampleParams {
        logits: Pointer, rules: Pointer, counts: Pointer, biases: Pointer, banned: Pointer, masks: Pointer,
        ruled: Pointer, reports: Pointer, top: Pointer, last_samples: Pointer, stride: u32, vocab_size: u32,
        max_top: u32, reserved: u32,
    }
}

/// "None" in a [`SampleRule`].
pub(crate) const NONE: u32 = u32::MAX;
/// The token is an entry of the previous step's samples.
pub(crate) const LAST_SAMPLED: u32 = 1 << 31;
