//! [`CpuBackend`]: the op vocabulary over host memory.

use pagoda_backend::{
    AddRmsNorm, Backend, BackendError, BatchMetadata, BlockCopy, Embed, GatedActivation, GatherRows,
    GraphKey, HostMatrix, InputToken, KvLayout, Linear, NonFiniteLogits, PagedAttention, RmsNorm,
    RopeStoreKv, RopeTable, Sample, Sampled,
};

use crate::options::{CpuOptions, Isa};
use crate::reference;

/// The CPU as a device.
pub struct CpuBackend {
    options: CpuOptions,
    isa: Isa,
    last_samples: Vec<u32>,
}

/// A `[max_rows, width]` activation matrix.
pub struct CpuTensor {
    data: Vec<f32>,
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

    fn set(&mut self, values: &[f32]) {
        self.data[..values.len()].copy_from_slice(values);
    }
}

/// A packed weight matrix.
pub struct CpuWeight {
    values: Vec<f32>,
    cols: usize,
}

/// A parameter vector.
pub struct CpuVector(Vec<f32>);

/// The metadata of a step.
#[derive(Default)]
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
        Ok(CpuBackend { options, isa, last_samples: Vec::new() })
    }
}

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Weight = CpuWeight;
    type Vector = CpuVector;
    type Rope = RopeTable;
    type KvCache = reference::KvCache;
    type Batch = CpuBatch;
    type Pending = CpuPending;

    fn describe(&self) -> String {
        format!("CPU, {}, {} threads", self.isa, self.options.num_threads)
    }

    fn kv_element_bytes(&self) -> usize {
        size_of::<f32>()
    }

    fn alloc(&mut self, max_rows: usize, width: usize) -> Result<CpuTensor, BackendError> {
        Ok(CpuTensor { data: vec![0.0; max_rows * width], width })
    }

    fn alloc_kv(&mut self, layout: KvLayout) -> Result<Self::KvCache, BackendError> {
        Ok(reference::KvCache::new(layout))
    }

    fn pack_weight(&mut self, parts: &[HostMatrix<'_>]) -> Result<CpuWeight, BackendError> {
        let values = parts.iter().flat_map(reference::dequantize).collect();
        Ok(CpuWeight { values, cols: parts[0].cols })
    }

    fn weight_bytes(&self, weight: &CpuWeight) -> u64 {
        size_of_val(&weight.values[..]) as u64
    }

    fn upload_vector(&mut self, values: &[f32]) -> Result<CpuVector, BackendError> {
        Ok(CpuVector(values.to_vec()))
    }

    fn upload_rope(&mut self, table: &RopeTable) -> Result<RopeTable, BackendError> {
        Ok(table.clone())
    }

    fn alloc_batch(&mut self, _: usize, _: usize, _: usize) -> Result<CpuBatch, BackendError> {
        Ok(CpuBatch::default())
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
        body: impl FnOnce(&mut Self) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        body(self)
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<(), BackendError> {
        let token = |input: &InputToken| match *input {
            InputToken::Known(id) => id,
            InputToken::LastSampled(row) => self.last_samples[row as usize],
        };
        let tokens: Vec<u32> = op.batch.0.input_tokens.iter().map(token).collect();
        op.out.set(&reference::embed(&op.table.values, op.table.cols, &tokens, op.scale));
        Ok(())
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<(), BackendError> {
        op.out.set(&reference::rms_norm(op.x.rows(op.num_rows), &op.weight.0, op.eps));
        Ok(())
    }

    fn add_rms_norm(&mut self, op: AddRmsNorm<'_, Self>) -> Result<(), BackendError> {
        let x = op.x.rows(op.num_rows);
        op.out.set(&reference::add_rms_norm(x, &mut op.residual.data[..x.len()], &op.weight.0, op.eps));
        Ok(())
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<(), BackendError> {
        let bias = op.bias.map(|bias| &bias.0[..]);
        op.out.set(&reference::linear(op.x.rows(op.num_rows), &op.weight.values, op.weight.cols, bias));
        Ok(())
    }

    fn rope_store_kv(&mut self, op: RopeStoreKv<'_, Self>) -> Result<(), BackendError> {
        let input = reference::RopeInput {
            batch: &op.batch.0,
            heads: op.heads,
            qk_norm: op.qk_norm.as_ref().map(|norm| (&norm.q_weight.0[..], &norm.k_weight.0[..], norm.eps)),
            rope: op.rope,
            layer: op.layer,
        };
        reference::rope_store_kv(&input, &mut op.qkv.data, op.kv);
        Ok(())
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<(), BackendError> {
        let input = reference::AttentionInput {
            batch: &op.batch.0,
            heads: op.heads,
            layer: op.layer,
            scale: op.scale,
            window: op.window,
            softcap: op.softcap,
        };
        op.out.set(&reference::paged_attention(&input, &op.qkv.data, op.kv));
        Ok(())
    }

    fn gated_activation(&mut self, op: GatedActivation<'_, Self>) -> Result<(), BackendError> {
        let gate_up = op.gate_up.rows(op.num_rows);
        op.out.set(&reference::gated_activation(gate_up, op.gate_up.width / 2, op.activation));
        Ok(())
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<(), BackendError> {
        op.out.set(&reference::gather_rows(&op.x.data, op.x.width, op.rows));
        Ok(())
    }

    fn copy_blocks(&mut self, kv: &mut Self::KvCache, copies: &[BlockCopy]) -> Result<(), BackendError> {
        reference::copy_blocks(kv, copies);
        Ok(())
    }

    fn sample(&mut self, op: Sample<'_, Self>) -> Result<CpuPending, BackendError> {
        let samples: Vec<_> = op
            .rows
            .iter()
            .map(|row| reference::sample(&op.logits.row(row.row as usize)[..op.vocab_size], row))
            .collect();
        self.last_samples.clear();
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
