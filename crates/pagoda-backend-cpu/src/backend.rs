//! [`CpuBackend`]: checks the shapes of an op, cuts it into tasks, and gives the tasks to the pool.
//!
//! A cut never decides a result: tasks are sets of outputs.

use pagoda_backend::{
    AddRmsNorm, Backend, BackendError, BatchMetadata, BlockCopy, Embed, GatedActivation, GatherRows,
    GraphKey, HeadLayout, HostMatrix, InputToken, KvFormat, KvLayout, Linear, NonFiniteLogits,
    PagedAttention, RmsNorm, RopeStoreKv, RopeTable, Sample, Sampled,
};

use crate::attention::{QueryChunk, cut};
use crate::kernels::attention::{self, AttentionTask, paged_attention};
use crate::kernels::elementwise::{GateTask, gated_activation};
use crate::kernels::linear::{self, LinearTask, linear};
use crate::kernels::linear_int16::{Int16Task, QuantizeTask, linear_int16, quantize};
use crate::kernels::norm::{NormTask, rms_norm};
use crate::kernels::rope::{RopeTask, rope_store_kv};
use crate::kv::CpuKvCache;
use crate::memory::Buffer;
use crate::options::{Arithmetic, CpuOptions, Isa};

use crate::pack::CpuWeight;
use crate::pool::Pool;
use crate::sampling::{self, SamplingScratch};
use crate::shared::{Disjoint, PerThread, ReadOnly};
use crate::simd::LANES;

/// Numbers below which sharing an element-wise op costs more than it saves.
const MIN_TASK_LEN: usize = 16 << 10;

/// Inputs that the tasks of a linear op walk through while the panels change: 384 KiB, which stay in L2.
const CHUNK_LEN: usize = 96 << 10;
/// Rows that make unpacking a panel once more cheap (1 % of its multiply-adds).
const MIN_CHUNK_ROWS: usize = 64;
/// Multiply-adds of a task of a linear op at least, a few microseconds: taking a task costs a tenth of one.
const MIN_TASK_PRODUCTS: usize = 256 << 10;

/// The CPU as a device.
pub struct CpuBackend {
    isa: Isa,
    arithmetic: Arithmetic,
    pool: Pool,
    /// Activations of a linear op as int16; grows to the largest op.
    quantized: Quantized,
    /// Kernel memory of each thread.
    scratch: PerThread<Buffer<f32>>,
    /// Sized at the first `sample`.
    sampling: PerThread<SamplingScratch>,
    /// Reused by every attention op.
    chunks: Vec<QueryChunk>,
    /// Tokens of the last `sample`; 0 where a row failed.
    last_samples: Vec<u32>,
}

/// A `[max_rows, width]` activation matrix.
pub struct CpuTensor {
    data: Buffer<f32>,
    width: usize,
}

impl CpuTensor {
    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..][..self.width]
    }

    /// One row, to be written.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.width..][..self.width]
    }

    fn rows(&self, num_rows: usize) -> &[f32] {
        &self.data[..num_rows * self.width]
    }

    fn rows_mut(&mut self, num_rows: usize) -> &mut [f32] {
        &mut self.data[..num_rows * self.width]
    }
}

/// A parameter vector.
pub struct CpuVector(Vec<f32>);

/// The metadata of a step.
pub struct CpuBatch(BatchMetadata);

/// Chosen tokens.
pub struct CpuPending(Vec<Result<Sampled, NonFiniteLogits>>);

impl CpuBackend {
    /// Starts the thread pool.
    pub fn new(options: CpuOptions) -> Result<Self, BackendError> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if !isa.is_available() {
            return Err(BackendError::Unsupported(format!("this CPU has no {isa}")));
        }
        let num_threads = options.num_threads.max(1);
        let scratch_len = linear::SCRATCH_LEN.max(attention::SCRATCH_LEN);
        Ok(CpuBackend {
            isa,
            arithmetic: Arithmetic::F32,
            quantized: Quantized { codes: Buffer::zeroed(0, "int16")?, scales: Buffer::zeroed(0, "int16")? },
            pool: Pool::new(num_threads)?,
            scratch: PerThread::new(num_threads, || Buffer::zeroed(scratch_len, "kernel scratch"))?,
            sampling: PerThread::new(num_threads, || SamplingScratch::new(0))?,
            chunks: Vec::new(),
            last_samples: Vec::new(),
        })
    }

    /// Makes linear ops multiply by quantised weights in `arithmetic`; [`Arithmetic::F32`] before the call.
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        CpuBackend { arithmetic, ..self }
    }

    /// The instruction set that the kernels run on.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `task(first_row, num_rows)` for all rows, on several threads if there are enough numbers.
    fn for_rows(&mut self, num_rows: usize, row_len: usize, task: impl Fn(usize, usize) + Sync) {
        let rows_per_task =
            MIN_TASK_LEN.div_ceil(row_len.max(1)).max(num_rows.div_ceil(8 * self.pool.num_threads()));
        self.pool.run(num_rows.div_ceil(rows_per_task.max(1)), &|index, _| {
            let first_row = index * rows_per_task;
            task(first_row, rows_per_task.min(num_rows - first_row));
        });
    }

    fn norm(
        &mut self,
        x: &CpuTensor,
        residual: Option<&mut CpuTensor>,
        norm: &Norm<'_>,
        out: &mut CpuTensor,
    ) {
        let Norm { weight, eps, num_rows } = *norm;
        let width = x.width;
        assert_eq!((weight.0.len(), out.width), (width, width), "norm widths");
        let residual = residual.map(|residual| {
            assert_eq!(residual.width, width, "residual width");
            Disjoint::new(residual.rows_mut(num_rows))
        });
        let (x, out, isa) = (x.rows(num_rows), Disjoint::new(out.rows_mut(num_rows)), self.isa);
        self.for_rows(num_rows, width, |first_row, num_rows| {
            let task = NormTask {
                x: x[first_row * width..].as_ptr(),
                residual: residual.map_or(std::ptr::null_mut(), |residual| residual.at(first_row * width)),
                weight: weight.0.as_ptr(),
                eps,
                width,
                num_rows,
                out: out.at(first_row * width),
            };
            // SAFETY: the CPU has `isa`; the rows are in the tensors, and in this task alone.
            unsafe { rms_norm(isa, &task) };
        });
    }

    /// Makes int16 activations of the rows of `x`.
    fn quantize(&mut self, x: &CpuTensor, num_rows: usize) -> Result<(), BackendError> {
        let (cols, isa) = (x.width, self.isa);
        if self.quantized.codes.len() < num_rows * cols {
            self.quantized = Quantized {
                codes: Buffer::zeroed(num_rows * cols, "int16 activations")?,
                scales: Buffer::zeroed(num_rows * cols / 16, "int16 activations")?,
            };
        }
        let codes = Disjoint::new(&mut self.quantized.codes);
        let scales = Disjoint::new(&mut self.quantized.scales);
        let x = x.rows(num_rows);
        self.for_rows(num_rows, cols, |first_row, num_rows| {
            let first = first_row * cols;
            let x = x[first..].as_ptr();
            let task =
                QuantizeTask { x, num_rows, cols, codes: codes.at(first), scales: scales.at(first / 16) };
            // SAFETY: the CPU has `isa`; the buffers were just sized; the rows are in this task alone.
            unsafe { quantize(isa, &task) };
        });
        Ok(())
    }

    fn token(&self, input: InputToken) -> usize {
        match input {
            InputToken::Known(id) => id as usize,
            InputToken::LastSampled(row) => self.last_samples[row as usize] as usize,
        }
    }
}

/// Int16 activations, see `kernels::linear_int16`.
struct Quantized {
    codes: Buffer<i16>,
    scales: Buffer<f32>,
}

/// What the two norm ops share.
struct Norm<'a> {
    weight: &'a CpuVector,
    eps: f32,
    num_rows: usize,
}

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Weight = CpuWeight;
    type Vector = CpuVector;
    type Rope = RopeTable;
    type KvCache = CpuKvCache;
    type Batch = CpuBatch;
    type Pending = CpuPending;

    fn describe(&self) -> String {
        let num_threads = self.pool.num_threads();
        let plural = if num_threads == 1 { "" } else { "s" };
        format!("CPU, {}, {} arithmetic, {num_threads} thread{plural}", self.isa, self.arithmetic)
    }

    fn kv_format(&self) -> KvFormat {
        KvFormat::F32
    }

    fn alloc(&mut self, max_rows: usize, width: usize) -> Result<CpuTensor, BackendError> {
        let len = max_rows.saturating_mul(width);
        Ok(CpuTensor { data: Buffer::zeroed(len, "an activation matrix")?, width })
    }

    fn alloc_kv(&mut self, layout: KvLayout) -> Result<CpuKvCache, BackendError> {
        CpuKvCache::new(layout)
    }

    fn pack_weight(&mut self, parts: &[HostMatrix<'_>]) -> Result<CpuWeight, BackendError> {
        CpuWeight::pack(parts)
    }

    fn weight_bytes(&self, weight: &CpuWeight) -> u64 {
        weight.data.len() as u64
    }

    fn upload_vector(&mut self, values: &[f32]) -> Result<CpuVector, BackendError> {
        Ok(CpuVector(values.to_vec()))
    }

    fn upload_rope(&mut self, table: &RopeTable) -> Result<RopeTable, BackendError> {
        Ok(table.clone())
    }

    fn alloc_batch(
        &mut self,
        max_tokens: usize,
        max_sequences: usize,
        max_table_len: usize,
    ) -> Result<CpuBatch, BackendError> {
        self.chunks.reserve(max_tokens + max_sequences);
        Ok(CpuBatch(BatchMetadata {
            input_tokens: Vec::with_capacity(max_tokens),
            positions: Vec::with_capacity(max_tokens),
            slot_mapping: Vec::with_capacity(max_tokens),
            query_start_loc: Vec::with_capacity(max_sequences + 1),
            context_lens: Vec::with_capacity(max_sequences),
            block_tables: Vec::with_capacity(max_table_len),
            block_table_starts: Vec::with_capacity(max_sequences + 1),
        }))
    }

    fn upload_batch(
        &mut self,
        batch: &mut CpuBatch,
        metadata: &mut BatchMetadata,
    ) -> Result<(), BackendError> {
        std::mem::swap(&mut batch.0, metadata);
        Ok(())
    }

    fn run(
        &mut self,
        _key: GraphKey,
        mut body: impl FnMut(&mut Self) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        body(self)
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<(), BackendError> {
        let width = op.out.width;
        assert_eq!(op.table.cols, width, "embedding width");
        for (row, &input) in op.batch.0.input_tokens.iter().enumerate() {
            let out = op.out.row_mut(row);
            op.table.unpack_row(self.token(input), out);
            if op.scale != 1.0 {
                out.iter_mut().for_each(|value| *value *= op.scale);
            }
        }
        Ok(())
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<(), BackendError> {
        let norm = Norm { weight: op.weight, eps: op.eps, num_rows: op.num_rows };
        self.norm(op.x, None, &norm, op.out);
        Ok(())
    }

    fn add_rms_norm(&mut self, op: AddRmsNorm<'_, Self>) -> Result<(), BackendError> {
        let norm = Norm { weight: op.weight, eps: op.eps, num_rows: op.num_rows };
        self.norm(op.x, Some(op.residual), &norm, op.out);
        Ok(())
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<(), BackendError> {
        let (weight, num_rows) = (op.weight, op.num_rows);
        assert_eq!((op.x.width, op.out.width), (weight.cols, weight.rows), "linear widths");
        assert!(op.bias.is_none_or(|bias| bias.0.len() == weight.rows), "bias length");
        if num_rows == 0 {
            return Ok(());
        }
        let num_panels = weight.panels.len();
        let num_chunks = num_rows.div_ceil((CHUNK_LEN / weight.cols.max(1)).max(MIN_CHUNK_ROWS));
        let rows_per_chunk = num_rows.div_ceil(num_chunks);
        let num_chunks = num_rows.div_ceil(rows_per_chunk);
        // Even, so that panels are taken in pairs; small enough to even out a thread that falls behind.
        let worthwhile = MIN_TASK_PRODUCTS / (rows_per_chunk * weight.cols * LANES).max(1);
        let panels_per_task = worthwhile.min(num_panels / (8 * self.pool.num_threads()));
        let panels_per_task = panels_per_task.max(2).next_multiple_of(2);
        let num_groups = num_panels.div_ceil(panels_per_task);
        let (x, out) = (ReadOnly(op.x.rows(num_rows).as_ptr()), Disjoint::new(op.out.rows_mut(num_rows)));
        let bias = ReadOnly(op.bias.map_or(std::ptr::null(), |bias| bias.0.as_ptr()));
        let is_int16 = self.arithmetic == Arithmetic::Int16 && weight.is_quantized();
        if is_int16 {
            self.quantize(op.x, num_rows)?;
        }
        let (isa, scratch, quantized) = (self.isa, &self.scratch, &self.quantized);
        self.pool.run(num_groups * num_chunks, &|index, thread| {
            let first_row = index / num_groups * rows_per_chunk;
            let first = index % num_groups * panels_per_task;
            let panels = first..num_panels.min(first + panels_per_task);
            let num_rows = rows_per_chunk.min(num_rows - first_row);
            let (bias, out) = (bias.get(), out.at(first_row * weight.rows));
            // SAFETY: this task's thread, one reference.
            let scratch = unsafe { scratch.get(thread) }.as_mut_ptr();
            if is_int16 {
                let codes = quantized.codes[first_row * weight.cols..].as_ptr();
                let scales = quantized.scales[first_row * weight.cols / 16..].as_ptr();
                let task = Int16Task { codes, scales, num_rows, weight, panels, bias, out, scratch };
                // SAFETY: the CPU has `isa`; shapes were checked; the outputs of rows and panels belong to one task.
                unsafe { linear_int16(isa, &task) };
                return;
            }
            let x = x.get().wrapping_add(first_row * weight.cols);
            let task = LinearTask { x, num_rows, weight, panels, bias, out, scratch };
            // SAFETY: the CPU has `isa`; shapes were checked; the outputs of rows and panels belong to one task.
            unsafe { linear(isa, &task) };
        });
        Ok(())
    }

    fn rope_store_kv(&mut self, op: RopeStoreKv<'_, Self>) -> Result<(), BackendError> {
        let HeadLayout { num_q_heads, num_kv_heads, head_dim } = op.heads;
        let layout = op.kv.layout();
        let (batch, rope, width) = (&op.batch.0, op.rope, op.qkv.width);
        assert_eq!(width, op.heads.qkv_width(), "width of a QKV row");
        assert_eq!((num_kv_heads, head_dim), (layout.num_kv_heads, layout.head_dim), "KV heads");
        let half = rope.rotary_dim / 2;
        assert!(2 * half <= head_dim, "{} rotated channels of {head_dim}", 2 * half);
        let num_rows = batch.num_tokens();
        let num_slots = (layout.num_blocks * layout.block_size) as u32;
        assert!(
            batch.positions.len() == num_rows && batch.slot_mapping.len() == num_rows,
            "metadata of {num_rows} rows"
        );
        assert!(batch.slot_mapping.iter().all(|&slot| slot < num_slots), "a slot beyond the cache");
        let (q_norm, k_norm, eps) = match &op.qk_norm {
            Some(norm) => {
                assert_eq!(
                    (norm.q_weight.0.len(), norm.k_weight.0.len()),
                    (head_dim, head_dim),
                    "head norms"
                );
                (norm.q_weight.0.as_ptr(), norm.k_weight.0.as_ptr(), norm.eps)
            }
            None => (std::ptr::null(), std::ptr::null(), 0.0),
        };
        let (q_norm, k_norm) = (ReadOnly(q_norm), ReadOnly(k_norm));
        let (block_len, isa) = (op.kv.block_len(), self.isa);
        let qkv = Disjoint::new(op.qkv.rows_mut(num_rows));
        let kv = Disjoint::new(op.kv.layer_mut(op.layer));
        self.for_rows(num_rows, width, |first_row, num_rows| {
            for row in first_row..first_row + num_rows {
                let position = batch.positions[row] as usize;
                let slot = batch.slot_mapping[row] as usize;
                let task = RopeTask {
                    row: qkv.at(row * width),
                    num_q_heads,
                    num_kv_heads,
                    head_dim,
                    q_norm: q_norm.get(),
                    k_norm: k_norm.get(),
                    eps,
                    cos: rope.cos[position * half..][..half].as_ptr(),
                    sin: rope.sin[position * half..][..half].as_ptr(),
                    half,
                    block: kv.at(slot / layout.block_size * block_len),
                    block_size: layout.block_size,
                    offset: slot % layout.block_size,
                };
                // SAFETY: the CPU has `isa`; shapes were checked; rows and slots are distinct.
                unsafe { rope_store_kv(isa, &task) };
            }
        });
        Ok(())
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<(), BackendError> {
        let HeadLayout { num_q_heads, num_kv_heads, head_dim } = op.heads;
        let layout = op.kv.layout();
        let batch = &op.batch.0;
        assert_eq!((num_kv_heads, head_dim), (layout.num_kv_heads, layout.head_dim), "KV heads");
        assert_eq!(
            (op.qkv.width, op.out.width),
            (op.heads.qkv_width(), op.heads.q_width()),
            "attention widths"
        );
        assert!(num_q_heads.is_multiple_of(num_kv_heads), "{num_q_heads} query heads on {num_kv_heads}");
        let split = cut(batch, layout, num_q_heads / num_kv_heads, self.pool.num_threads(), &mut self.chunks);
        let (chunks, scratch, isa) = (&self.chunks, &self.scratch, self.isa);
        let (q_stride, out_stride) = (op.qkv.width, op.out.width);
        let (block_len, head_len) = (op.kv.block_len(), op.kv.head_len());
        let qkv = op.qkv.rows(batch.num_tokens());
        let kv = op.kv.layer(op.layer);
        let out = Disjoint::new(op.out.rows_mut(batch.num_tokens()));
        let tasks_per_chunk = num_kv_heads * split.parts();
        self.pool.run(chunks.len() * tasks_per_chunk, &|index, thread| {
            let chunk = chunks[index / tasks_per_chunk];
            let (kv_head, part) = (index % tasks_per_chunk / split.parts(), index % split.parts());
            let first_head = kv_head * split.group + part * split.heads_per_task;
            let task = AttentionTask {
                q: qkv[chunk.first_row * q_stride + first_head * head_dim..].as_ptr(),
                q_stride,
                num_tokens: chunk.num_tokens,
                num_heads: split.heads_per_task.min(split.group - part * split.heads_per_task),
                head_dim,
                first_position: chunk.first_position,
                table: batch.block_table(chunk.sequence),
                kv: kv[kv_head * 2 * head_len..].as_ptr(),
                block_stride: block_len,
                block_size: layout.block_size,
                scale: op.scale,
                window: op.window,
                softcap: op.softcap,
                out: out.at(chunk.first_row * out_stride + first_head * head_dim),
                out_stride,
                // SAFETY: this task's thread, one reference.
                scratch: unsafe { scratch.get(thread) }.as_mut_ptr(),
            };
            // SAFETY: the CPU has `isa`; shapes and tables were checked; a task's rows and heads are its own.
            unsafe { paged_attention(isa, &task) };
        });
        Ok(())
    }

    fn gated_activation(&mut self, op: GatedActivation<'_, Self>) -> Result<(), BackendError> {
        let width = op.out.width;
        assert_eq!(op.gate_up.width, 2 * width, "width of a gate-and-up row");
        let (gate_up, isa) = (op.gate_up.rows(op.num_rows), self.isa);
        let out = Disjoint::new(op.out.rows_mut(op.num_rows));
        self.for_rows(op.num_rows, 2 * width, |first_row, num_rows| {
            let task = GateTask {
                gate_up: gate_up[first_row * 2 * width..].as_ptr(),
                activation: op.activation,
                width,
                num_rows,
                out: out.at(first_row * width),
            };
            // SAFETY: the CPU has `isa`; the rows are in the tensors, and in this task alone.
            unsafe { gated_activation(isa, &task) };
        });
        Ok(())
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<(), BackendError> {
        assert_eq!(op.x.width, op.out.width, "gather widths");
        for (index, &row) in op.rows.iter().enumerate() {
            op.out.row_mut(index).copy_from_slice(op.x.row(row as usize));
        }
        Ok(())
    }

    fn copy_blocks(&mut self, kv: &mut CpuKvCache, copies: &[BlockCopy]) -> Result<(), BackendError> {
        kv.copy_blocks(copies);
        Ok(())
    }

    fn sample(&mut self, op: Sample<'_, Self>) -> Result<CpuPending, BackendError> {
        assert!(op.vocab_size <= op.logits.width, "{} ids of {} logits", op.vocab_size, op.logits.width);
        if self.sampling.first_mut().is_some_and(|scratch| scratch.vocab_size() < op.vocab_size) {
            self.sampling = PerThread::new(self.pool.num_threads(), || SamplingScratch::new(op.vocab_size))?;
        }
        let mut samples = vec![Err(NonFiniteLogits); op.rows.len()];
        let (results, scratch, isa) = (Disjoint::new(&mut samples), &self.sampling, self.isa);
        self.pool.run(op.rows.len(), &|index, thread| {
            let row = &op.rows[index];
            let logits = &op.logits.row(row.row as usize)[..op.vocab_size];
            // SAFETY: this task's thread, one reference; a task writes its own result.
            unsafe { *results.at(index) = sampling::sample(isa, logits, row, scratch.get(thread)) };
        });
        self.last_samples.truncate(op.first);
        self.last_samples
            .extend(samples.iter().map(|sample| sample.as_ref().map_or(0, |sample| sample.token)));
        Ok(CpuPending(samples))
    }

    fn read_back(
        &mut self,
        pending: CpuPending,
    ) -> Result<Vec<Result<Sampled, NonFiniteLogits>>, BackendError> {
        Ok(pending.0)
    }
}
