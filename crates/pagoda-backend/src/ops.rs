//! [`Backend`] and the parameters of its ops. One struct per op, passed by value; shapes in the field comments.
//!
//! `n` is the number of rows of the step (`BatchMetadata::num_tokens`) unless the struct says otherwise. Tensors are
//! allocated for the largest step; an op touches rows `0..n` only.

use crate::{
    BackendError, BatchMetadata, BlockCopy, GraphKey, HeadLayout, HostMatrix, KvFormat, KvLayout,
    NonFiniteLogits, RopeTable, SampleRow, Sampled,
};

/// A device that can run a decoder. Ops run in call order and may be asynchronous until [`Backend::read_back`].
pub trait Backend: Sized + Send + 'static {
    /// A `[max_rows, width]` activation matrix, row-major.
    type Tensor: Send;
    /// A packed `[rows, cols]` weight matrix.
    type Weight: Send;
    /// A vector of f32 parameters (norm weight, bias).
    type Vector: Send;
    /// The rope table on the device.
    type Rope: Send;
    /// K and V of all layers.
    type KvCache: Send;
    /// The step's metadata on the device.
    type Batch: Send;
    /// Results on their way to the host.
    type Pending: Send;

    /// One line for the start-up table: device, instruction set, threads.
    fn describe(&self) -> String;

    /// How this device stores K and V.
    fn kv_format(&self) -> KvFormat;

    /// Allocates a zeroed activation matrix.
    fn alloc(&mut self, max_rows: usize, width: usize) -> Result<Self::Tensor, BackendError>;
    /// Allocates a matrix for the outputs of the lm_head, which a device may keep in a wider type than activations.
    fn alloc_logits(&mut self, max_rows: usize, width: usize) -> Result<Self::Tensor, BackendError> {
        self.alloc(max_rows, width)
    }
    /// Allocates the KV cache, filled with NaN in debug builds so that a read of an unwritten slot shows.
    fn alloc_kv(&mut self, layout: KvLayout) -> Result<Self::KvCache, BackendError>;
    /// Packs matrices with equal `cols` into one, stacked along the rows (QKV, gate and up). Done once at load.
    fn pack_weight(&mut self, parts: &[HostMatrix<'_>]) -> Result<Self::Weight, BackendError>;
    /// Bytes a packed weight occupies.
    fn weight_bytes(&self, weight: &Self::Weight) -> u64;
    /// Uploads a parameter vector.
    fn upload_vector(&mut self, values: &[f32]) -> Result<Self::Vector, BackendError>;
    /// Uploads a rope table.
    fn upload_rope(&mut self, table: &RopeTable) -> Result<Self::Rope, BackendError>;
    /// Allocates room for the metadata of steps of up to `max_tokens` rows, `max_sequences` sequences and
    /// `max_table_len` table entries in all.
    fn alloc_batch(
        &mut self,
        max_tokens: usize,
        max_sequences: usize,
        max_table_len: usize,
    ) -> Result<Self::Batch, BackendError>;
    /// Takes what steps within these limits need beside the tensors: afterwards no step allocates, but for lists of unusual
    /// length. Called once, when the weights are packed.
    fn reserve(&mut self, _limits: &StepLimits) -> Result<(), BackendError> {
        Ok(())
    }
    /// Bytes taken so far, where the backend counts them.
    fn allocated_bytes(&self) -> Option<u64> {
        None
    }
    /// Moves a step's metadata to the device; takes the vectors by swap, so that the step path does not allocate.
    fn upload_batch(
        &mut self,
        batch: &mut Self::Batch,
        metadata: &mut BatchMetadata,
    ) -> Result<(), BackendError>;

    /// To how many rows a step of `num_rows` rows is padded if every sequence has one row; `None` if steps are not captured.
    fn padded_rows(&self, _num_rows: usize) -> Option<usize> {
        None
    }
    /// Runs `body`; a device with graphs captures it at one of the first calls with this key and replays it afterwards. Bodies of one
    /// key are the same: it may run once more than it is called for.
    fn run(
        &mut self,
        key: GraphKey,
        body: impl FnMut(&mut Self) -> Result<(), BackendError>,
    ) -> Result<(), BackendError>;

    /// `out[r] = table[token[r]] * scale`
    fn embed(&mut self, op: Embed<'_, Self>) -> Result<(), BackendError>;
    /// `out[r] = x[r] / rms(x[r]) * weight`, `rms(v) = sqrt(mean(v^2) + eps)`
    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<(), BackendError>;
    /// `residual[r] += x[r]`, then `out[r] = rms_norm(residual[r])`
    fn add_rms_norm(&mut self, op: AddRmsNorm<'_, Self>) -> Result<(), BackendError>;
    /// `out[r] = x[r] W^T + bias`
    fn linear(&mut self, op: Linear<'_, Self>) -> Result<(), BackendError>;
    /// Optional norm of each Q and K head, RoPE on Q and K in place, K and V to their slots.
    fn rope_store_kv(&mut self, op: RopeStoreKv<'_, Self>) -> Result<(), BackendError>;
    /// Causal attention of the step's query rows over their sequences' paged KV.
    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<(), BackendError>;
    /// `out[r][i] = act(gate_up[r][i]) * gate_up[r][width + i]`
    fn gated_activation(&mut self, op: GatedActivation<'_, Self>) -> Result<(), BackendError>;
    /// `out[i] = x[rows[i]]`
    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<(), BackendError>;
    /// Copies leading slots of blocks in every layer. Targets are distinct and no source is a target.
    fn copy_blocks(&mut self, kv: &mut Self::KvCache, copies: &[BlockCopy]) -> Result<(), BackendError>;
    /// Chooses tokens; the contract is in [`crate::SampleRow`]'s module.
    fn sample(&mut self, op: Sample<'_, Self>) -> Result<Self::Pending, BackendError>;
    /// Waits for chosen tokens, one entry per sample row.
    fn read_back(
        &mut self,
        pending: Self::Pending,
    ) -> Result<Vec<Result<Sampled, NonFiniteLogits>>, BackendError>;
}

/// Parameters of [`Backend::embed`].
pub struct Embed<'a, B: Backend> {
    /// Names the tokens.
    pub batch: &'a B::Batch,
    /// `[vocab, width]`; may be the packed lm_head of a tied model.
    pub table: &'a B::Weight,
    /// Gemma multiplies by `sqrt(width)`; 1 else.
    pub scale: f32,
    /// `[n, width]`
    pub out: &'a mut B::Tensor,
}

/// Parameters of [`Backend::rms_norm`].
pub struct RmsNorm<'a, B: Backend> {
    /// `[n, width]`
    pub x: &'a B::Tensor,
    /// `[width]`
    pub weight: &'a B::Vector,
    /// Added to the mean square.
    pub eps: f32,
    /// Rows to do.
    pub num_rows: usize,
    /// `[n, width]`
    pub out: &'a mut B::Tensor,
}

/// Parameters of [`Backend::add_rms_norm`].
pub struct AddRmsNorm<'a, B: Backend> {
    /// `[n, width]`
    pub x: &'a B::Tensor,
    /// `[n, width]`, read and written.
    pub residual: &'a mut B::Tensor,
    /// `[width]`
    pub weight: &'a B::Vector,
    /// Added to the mean square.
    pub eps: f32,
    /// Rows to do.
    pub num_rows: usize,
    /// `[n, width]`
    pub out: &'a mut B::Tensor,
}

/// Parameters of [`Backend::linear`].
pub struct Linear<'a, B: Backend> {
    /// `[n, cols]`
    pub x: &'a B::Tensor,
    /// `[rows, cols]` packed.
    pub weight: &'a B::Weight,
    /// `[rows]`
    pub bias: Option<&'a B::Vector>,
    /// Rows of `x` to do.
    pub num_rows: usize,
    /// `[n, rows]`
    pub out: &'a mut B::Tensor,
}

/// RMS norms of the Q and K heads before RoPE (Qwen3, Gemma 3).
pub struct QkNorm<'a, B: Backend> {
    /// `[head_dim]`
    pub q_weight: &'a B::Vector,
    /// `[head_dim]`
    pub k_weight: &'a B::Vector,
    /// Added to the mean square.
    pub eps: f32,
}

/// Parameters of [`Backend::rope_store_kv`].
pub struct RopeStoreKv<'a, B: Backend> {
    /// Positions and slots.
    pub batch: &'a B::Batch,
    /// `[n, heads.qkv_width()]`; Q is rotated in place.
    pub qkv: &'a mut B::Tensor,
    /// Where each head lies.
    pub heads: HeadLayout,
    /// Present for families that have it.
    pub qk_norm: Option<QkNorm<'a, B>>,
    /// Rotation by position.
    pub rope: &'a B::Rope,
    /// Receives K and V.
    pub kv: &'a mut B::KvCache,
    /// Which layer of `kv`.
    pub layer: usize,
}

/// Parameters of [`Backend::paged_attention`].
pub struct PagedAttention<'a, B: Backend> {
    /// Query ranges, context lengths and block tables.
    pub batch: &'a B::Batch,
    /// `[n, heads.qkv_width()]` after `rope_store_kv`.
    pub qkv: &'a B::Tensor,
    /// Where each head lies.
    pub heads: HeadLayout,
    /// K and V, this step's included.
    pub kv: &'a B::KvCache,
    /// Which layer of `kv`.
    pub layer: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A query sees this many keys, itself included; `None` sees all.
    pub window: Option<u32>,
    /// `s -> cap * tanh(s / cap)` on the scores (Gemma 2).
    pub softcap: Option<f32>,
    /// `[n, heads.q_width()]`
    pub out: &'a mut B::Tensor,
}

/// The function of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`
    GeluTanh,
}

/// Parameters of [`Backend::gated_activation`].
pub struct GatedActivation<'a, B: Backend> {
    /// `[n, 2 * width]`: gate, then up.
    pub gate_up: &'a B::Tensor,
    /// The gate's function.
    pub activation: Activation,
    /// Rows to do.
    pub num_rows: usize,
    /// `[n, width]`
    pub out: &'a mut B::Tensor,
}

/// Parameters of [`Backend::gather_rows`].
pub struct GatherRows<'a, B: Backend> {
    /// `[n, width]`
    pub x: &'a B::Tensor,
    /// Which rows.
    pub rows: &'a [u32],
    /// `[rows.len(), width]`
    pub out: &'a mut B::Tensor,
}

/// Parameters of [`Backend::sample`].
pub struct Sample<'a, B: Backend> {
    /// `[k, padded vocab]`
    pub logits: &'a B::Tensor,
    /// Ids from here on are never chosen (padding of the lm_head, ids beyond the tokenizer).
    pub vocab_size: usize,
    /// One entry per token to choose.
    pub rows: &'a [SampleRow<'a>],
    /// Which of the step's samples the first of them is, for the next step's `InputToken::LastSampled`.
    pub first: usize,
}

/// The largest step.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Rows of a step.
    pub max_tokens: usize,
    /// Sequences of a step.
    pub max_sequences: usize,
    /// Tokens of a sequence.
    pub max_context_len: usize,
    /// Rows of logits of one [`Sample`].
    pub max_logit_rows: usize,
    /// Ids that may be chosen.
    pub vocab_size: usize,
    /// Heads of the attention.
    pub heads: HeadLayout,
}
