//! [`CudaBackend`]: checks the shapes of an op, fills its parameters, launches its kernel.

use std::path::PathBuf;

use pagoda_backend::{
    Activation, AddRmsNorm, Backend, BackendError, BatchMetadata, BlockCopy, Embed, GatedActivation,
    GatherRows, GraphKey, HostMatrix, KvFormat, KvLayout, Linear, NonFiniteLogits, PagedAttention, RmsNorm,
    RopeStoreKv, RopeTable, Sample, Sampled, StepLimits,
};

use crate::attention::{self, Cuts, PrefillKernel};
use crate::batch::{BatchPlaces, CudaBatch};
use crate::clock::{StepClock, StepPath, StepSpan};
use crate::device::{Device, Launch, Memory};
use crate::element::{Element, kernel};
use crate::graphs::Graphs;
use crate::memory::{CudaKvCache, CudaRope, CudaTensor, CudaVector, Scratch, TensorKind};
use crate::params::{
    AddRmsNormParams, BlockCopyEntry, CopyBlocksParams, EmbedParams, GatedActivationParams, GatherRowsParams,
    LinearParams, Plain, Pointer, RmsNormParams, RopeStoreKvParams, bytes_of,
};
use crate::product::{DenseProduct, panel_bytes};
use crate::products::{ProductLibrary, Products};
use crate::sampling::{CudaPending, SampleLists};
use crate::weight::CudaWeight;

/// Rows of x that `skinny_gemm` takes.
const SKINNY_ROWS: usize = 16;

/// Bytes for the parts of attention outputs: steps with more splits launch the decode kernel more than once.
const PARTIAL_BYTES: usize = 64 << 20;

/// Steps of more rows than this are not captured: their launches are a small part of their time.
const MAX_CAPTURED_ROWS: usize = 256;

/// Which products may depend on how many rows are in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearPolicy {
    /// The fastest kernel for the number of rows: a row's bits differ between batches of up to 16 rows and larger ones, and
    /// with a library of products also among those.
    Fastest,
    /// One kernel for every number of rows: a row's bits are the same alone and in company.
    Deterministic,
}

/// A device that speaks the op vocabulary.
pub struct CudaBackend<D: Device> {
    pub(crate) device: D,
    pub(crate) element: Element,
    kv_format: KvFormat,
    pub(crate) policy: LinearPolicy,
    /// What was asked for, and what serves the cache that was allocated last.
    wanted_prefill: PrefillKernel,
    prefill: PrefillKernel,
    /// `[decode work, heads, head_dim]` parts of an attention output, and `[decode work, heads]` maxima and sums.
    pub(crate) partial_out: Scratch<D::Memory>,
    pub(crate) partial_stats: Scratch<D::Memory>,
    /// Zero before and after every launch.
    pub(crate) arrivals: Scratch<D::Memory>,
    rows: Scratch<D::Memory>,
    /// 0, 1, 2, ..: rows that follow one another, as those of a decode step do, need no upload.
    row_numbers: Scratch<D::Memory>,
    copies: Scratch<D::Memory>,
    pub(crate) panel: Scratch<D::Memory>,
    /// The library of dense products, if one is used.
    pub(crate) products: Option<Products<D::Memory>>,
    /// The largest panel that a packed weight needs.
    panel_bytes: usize,
    /// Splits of one launch of the decode kernel.
    max_splits: usize,
    pub(crate) samples: SampleLists<D::Memory>,
    /// Whether forward passes are captured.
    pub(crate) has_graphs: bool,
    pub(crate) graphs: Graphs<D::Graph>,
    /// Of the batch uploaded last, if its forward pass may be captured: where it lies, and the splits of its one launch.
    pub(crate) capturable: Option<(BatchPlaces, usize)>,
    /// Present while steps are measured.
    clock: Option<StepClock<D::Moment>>,
}

impl<D: Device> CudaBackend<D> {
    /// A backend whose activations and KV are `element`.
    pub fn new(device: D, element: Element, policy: LinearPolicy) -> Self {
        CudaBackend {
            device,
            element,
            kv_format: element.kv_format(),
            policy,
            wanted_prefill: PrefillKernel::default(),
            prefill: PrefillKernel::default(),
            partial_out: Scratch::new(0xFF, "parts of attention"),
            partial_stats: Scratch::new(0xFF, "parts of attention"),
            arrivals: Scratch::new(0, "parts of attention"),
            rows: Scratch::new(0, "row indices"),
            row_numbers: Scratch::new(0, "row indices"),
            copies: Scratch::new(0, "block copies"),
            panel: Scratch::new(0xFF, "a dequantised panel"),
            products: None,
            panel_bytes: 0,
            max_splits: usize::MAX,
            samples: SampleLists::new(),
            has_graphs: true,
            graphs: Graphs::default(),
            capturable: None,
            clock: None,
        }
    }

    /// The device below.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Keeps K and V as e4m3 codes, in half the bytes: caches that are allocated from now on.
    pub fn with_fp8_kv(self) -> Self {
        CudaBackend { kv_format: KvFormat::E4m3, ..self }
    }

    /// Asks for a prefill kernel, for caches that are allocated from now on; a device that cannot run it refuses the cache.
    pub fn with_prefill(self, kernel: PrefillKernel) -> Self {
        CudaBackend { wanted_prefill: kernel, ..self }
    }

    /// Has `library` compute dense products of more rows than `skinny_gemm` takes, unless the policy wants one kernel for all;
    /// `cache` is the file in which the algorithms are kept that were measured. See [`CudaBackend::prove_products`].
    pub fn use_products(&mut self, library: Box<dyn ProductLibrary>, cache: Option<PathBuf>) {
        self.products = Some(Products::new(library, cache));
    }

    /// Uses the library no more.
    pub fn forget_products(&mut self) {
        self.products = None;
    }

    /// Does something by kernels alone.
    pub(crate) fn without_products<T>(&mut self, body: impl FnOnce(&mut Self) -> T) -> T {
        let products = self.products.take();
        let result = body(self);
        self.products = products;
        result
    }

    /// Launches every kernel of every step by itself.
    pub fn without_graphs(self) -> Self {
        CudaBackend { has_graphs: false, ..self }
    }

    /// From now on the times of steps are kept. For measurements.
    pub fn start_clock(&mut self) {
        self.clock = Some(StepClock::new());
    }

    /// The times of the steps since then, oldest first; waits for the last. The clock has stopped.
    pub fn stop_clock(&mut self) -> Result<Vec<StepSpan>, BackendError> {
        self.clock.take().map_or(Ok(Vec::new()), |clock| clock.read(&mut self.device))
    }

    pub(crate) fn begin_step(&mut self, path: StepPath) -> Result<(), BackendError> {
        if let Some(clock) = &mut self.clock {
            clock.begin(self.device.moment()?, path);
        }
        Ok(())
    }

    pub(crate) fn end_step_part(&mut self) -> Result<(), BackendError> {
        if let Some(clock) = &mut self.clock {
            clock.end(self.device.moment()?);
        }
        Ok(())
    }

    /// Where to gather from, and the list of rows there.
    fn gathered_rows(
        &mut self,
        x: &CudaTensor<D::Memory>,
        rows: &[u32],
    ) -> Result<(Pointer, Pointer), BackendError> {
        let address = x.memory.address();
        let is_run = rows.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        if is_run && rows.len() * 4 <= self.row_numbers.num_bytes() {
            let first = rows.first().map_or(0, |row| *row as usize);
            let skipped_bytes = first * x.width * x.kind.element_bytes();
            return Ok((address + skipped_bytes as u64, self.row_numbers.address()));
        }
        Ok((address, self.rows.upload(&mut self.device, rows)?))
    }

    pub(crate) fn launch<P: Plain>(
        &mut self,
        kernel: &'static str,
        grid: [usize; 3],
        (num_threads, shared_bytes): (u32, u32),
        params: P,
    ) -> Result<(), BackendError> {
        if grid.contains(&0) {
            return Ok(());
        }
        let grid = grid.map(|blocks| u32::try_from(blocks).expect("a grid has fewer than 2^32 blocks"));
        let params = [params];
        self.device.launch(&Launch { kernel, grid, num_threads, shared_bytes, params: bytes_of(&params) })
    }
}

impl<D: Device> Backend for CudaBackend<D> {
    type Tensor = CudaTensor<D::Memory>;
    type Weight = CudaWeight<D::Memory>;
    type Vector = CudaVector<D::Memory>;
    type Rope = CudaRope<D::Memory>;
    type KvCache = CudaKvCache<D::Memory>;
    type Batch = CudaBatch<D::Memory>;
    type Pending = CudaPending<D>;

    fn describe(&self) -> String {
        let products = self.products.as_ref().map(|products| format!(", {}", products.describe()));
        let policy = match self.policy {
            LinearPolicy::Fastest => "",
            LinearPolicy::Deterministic => ", deterministic",
        };
        let device = self.device.describe();
        format!("{device}, {:?} activations{policy}{}", self.element, products.unwrap_or_default())
    }

    fn kv_format(&self) -> KvFormat {
        self.kv_format
    }

    fn alloc(&mut self, max_rows: usize, width: usize) -> Result<Self::Tensor, BackendError> {
        if !width.is_multiple_of(8) {
            return Err(BackendError::Unsupported(format!("rows of {width} numbers: not a multiple of 8")));
        }
        let memory = self.device.alloc((max_rows * width * 2).max(1), 0, "an activation matrix")?;
        Ok(CudaTensor { memory, width, kind: TensorKind::Element })
    }

    fn alloc_logits(&mut self, max_rows: usize, width: usize) -> Result<Self::Tensor, BackendError> {
        let memory = self.device.alloc((max_rows * width * 4).max(1), 0, "logits")?;
        Ok(CudaTensor { memory, width, kind: TensorKind::F32 })
    }

    fn alloc_kv(&mut self, layout: KvLayout) -> Result<Self::KvCache, BackendError> {
        CudaKvCache::<D::Memory>::check(layout)?;
        let num_bytes = layout.num_bytes(self.kv_format);
        let fill = if cfg!(debug_assertions) { 0xFF } else { 0 };
        let memory = self.device.alloc(num_bytes, fill, "the KV cache")?;
        self.prefill = self.wanted_prefill.for_cache(layout.head_dim, self.kv_format);
        let map = match self.prefill {
            PrefillKernel::Mma => None,
            PrefillKernel::Wgmma => {
                let num_slots = num_bytes / (2 * layout.head_dim);
                Some(self.device.tensor_map(&memory, num_slots, layout.head_dim)?)
            }
        };
        Ok(CudaKvCache { memory, layout, format: self.kv_format, map })
    }

    fn pack_weight(&mut self, parts: &[HostMatrix<'_>]) -> Result<Self::Weight, BackendError> {
        let weight = CudaWeight::pack(&mut self.device, self.element, parts)?;
        if !weight.is_dense() {
            self.panel_bytes = self.panel_bytes.max(panel_bytes(weight.rows, weight.cols));
        }
        Ok(weight)
    }

    fn weight_bytes(&self, weight: &Self::Weight) -> u64 {
        weight.num_bytes()
    }

    fn upload_vector(&mut self, values: &[f32]) -> Result<Self::Vector, BackendError> {
        let offset = CudaVector::<D::Memory>::elements_offset(values.len());
        let mut elements = Vec::with_capacity(values.len() * 2);
        self.element.encode(values.iter().copied(), &mut elements);
        let memory = self.device.alloc((offset + elements.len()).max(1), 0, "a parameter vector")?;
        self.device.write(&memory, 0, bytes_of(values))?;
        self.device.write(&memory, offset, &elements)?;
        Ok(CudaVector { memory, len: values.len() })
    }

    fn upload_rope(&mut self, table: &RopeTable) -> Result<Self::Rope, BackendError> {
        let mut upload = |values: &[f32]| {
            let memory = self.device.alloc((values.len() * 4).max(1), 0, "a rope table")?;
            self.device.write(&memory, 0, bytes_of(values))?;
            Ok(memory)
        };
        let (cos, sin) = (upload(&table.cos)?, upload(&table.sin)?);
        Ok(CudaRope { cos, sin, half: table.rotary_dim / 2 })
    }

    fn alloc_batch(
        &mut self,
        max_tokens: usize,
        max_sequences: usize,
        max_table_len: usize,
    ) -> Result<Self::Batch, BackendError> {
        CudaBatch::new(&mut self.device, max_tokens, max_sequences, max_table_len)
    }

    fn reserve(&mut self, limits: &StepLimits) -> Result<(), BackendError> {
        let StepLimits { max_sequences, heads, .. } = *limits;
        let stats_bytes = heads.num_q_heads * 4;
        let longest = attention::num_splits(limits.max_context_len);
        let affordable = PARTIAL_BYTES / (stats_bytes * heads.head_dim);
        self.max_splits = affordable.max(longest).min(longest * max_sequences).max(1);
        let device = &mut self.device;
        self.partial_out.reserve(device, self.max_splits * stats_bytes * heads.head_dim)?;
        self.partial_stats.reserve(device, self.max_splits * stats_bytes * 2)?;
        self.arrivals.reserve(device, max_sequences * attention::decode_parts(heads) * 4)?;
        self.rows.reserve(device, limits.max_logit_rows * 4)?;
        let row_numbers: Vec<u32> = (0..limits.max_logit_rows as u32).collect();
        self.row_numbers.upload(device, &row_numbers)?;
        // A sequence that runs out of its own block copies one; a forked one copies its tail.
        self.copies.reserve(device, 2 * max_sequences * size_of::<BlockCopyEntry>())?;
        if self.panel_bytes > 0 {
            self.panel.reserve(device, self.panel_bytes)?;
        }
        if let Some(products) = &mut self.products {
            products.reserve(device)?;
        }
        self.samples.reserve(device, limits)
    }

    fn allocated_bytes(&self) -> Option<u64> {
        Some(self.device.allocated_bytes())
    }

    fn upload_batch(
        &mut self,
        batch: &mut Self::Batch,
        metadata: &mut BatchMetadata,
    ) -> Result<(), BackendError> {
        let cuts = Cuts { max_splits: self.max_splits, prefill: self.prefill };
        batch.upload(&mut self.device, metadata, cuts)?;
        let places = batch.places;
        self.capturable = batch.plan.captured_splits().map(|num_splits| (places, num_splits));
        Ok(())
    }

    fn padded_rows(&self, num_rows: usize) -> Option<usize> {
        match num_rows {
            _ if !self.has_graphs => None,
            // On the same side of `SKINNY_ROWS` as the rows themselves.
            0..=SKINNY_ROWS => Some(num_rows.next_power_of_two()),
            _ if num_rows <= MAX_CAPTURED_ROWS => Some(num_rows.next_multiple_of(16)),
            _ => None,
        }
    }

    fn run(
        &mut self,
        key: GraphKey,
        body: impl FnMut(&mut Self) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.run_body(key, body)
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<(), BackendError> {
        let num_rows = op.batch.host.num_tokens();
        assert_eq!(op.table.cols, op.out.width, "embedding width");
        let params = EmbedParams {
            table: op.table.view(),
            input_tokens: op.batch.places.input_tokens,
            last_samples: self.samples.last_samples.reserve(&mut self.device, 4)?.address(),
            out: op.out.rows(num_rows),
            scale: op.scale,
            reserved: 0,
        };
        self.launch(kernel!(self.element, "embed"), [num_rows, 1, 1], (128, 0), params)
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<(), BackendError> {
        assert_eq!((op.weight.len, op.out.width), (op.x.width, op.x.width), "norm widths");
        let params = RmsNormParams {
            x: op.x.rows(op.num_rows),
            weight: op.weight.memory.address(),
            out: op.out.rows(op.num_rows),
            width: op.x.width as u32,
            eps: op.eps,
        };
        self.launch(kernel!(self.element, "rms_norm"), [op.num_rows, 1, 1], (256, 32), params)
    }

    fn add_rms_norm(&mut self, op: AddRmsNorm<'_, Self>) -> Result<(), BackendError> {
        let width = op.x.width;
        assert_eq!((op.weight.len, op.out.width, op.residual.width), (width, width, width), "norm widths");
        let params = AddRmsNormParams {
            x: op.x.rows(op.num_rows),
            residual: op.residual.rows(op.num_rows),
            weight: op.weight.memory.address(),
            out: op.out.rows(op.num_rows),
            width: width as u32,
            eps: op.eps,
        };
        self.launch(kernel!(self.element, "add_rms_norm"), [op.num_rows, 1, 1], (256, 32), params)
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<(), BackendError> {
        let (weight, num_rows) = (op.weight, op.num_rows);
        assert_eq!((op.x.width, op.out.width), (weight.cols, weight.rows), "linear widths");
        assert!(op.bias.is_none_or(|bias| bias.len == weight.rows), "bias length");
        let params = LinearParams {
            weight: weight.view(),
            x: op.x.rows(num_rows),
            bias: op.bias.map_or(0, |bias| bias.memory.address()),
            out: op.out.rows(num_rows),
            num_rows: num_rows as u32,
            out_stride: op.out.width as u32,
            out_is_f32: u32::from(op.out.kind == TensorKind::F32),
            reserved: 0,
        };
        if num_rows <= SKINNY_ROWS && self.policy == LinearPolicy::Fastest {
            let grid = [weight.rows.div_ceil(16) * usize::from(num_rows > 0), 1, 1];
            return self.launch(kernel!(self.element, "skinny_gemm"), grid, (256, 8 * 16 * 16 * 4), params);
        }
        let product = DenseProduct {
            params,
            bias_elements: op.bias.map_or(0, CudaVector::elements),
            max_rows: op.x.max_rows().min(op.out.max_rows()) as u32,
        };
        if weight.is_dense() { self.gemm(product) } else { self.gemm_by_panels(product) }
    }

    fn rope_store_kv(&mut self, op: RopeStoreKv<'_, Self>) -> Result<(), BackendError> {
        let (heads, layout) = (op.heads, op.kv.layout);
        assert_eq!(op.qkv.width, heads.qkv_width(), "width of a QKV row");
        assert_eq!((heads.num_kv_heads, heads.head_dim), (layout.num_kv_heads, layout.head_dim), "KV heads");
        assert!(2 * op.rope.half <= heads.head_dim, "{} rotated channels", 2 * op.rope.half);
        let num_slots = (layout.num_blocks * layout.block_size) as u32;
        assert!(op.batch.host.slot_mapping.iter().all(|&slot| slot < num_slots), "a slot beyond the cache");
        let num_rows = op.batch.host.num_tokens();
        let norm = op.qk_norm.as_ref();
        let params = RopeStoreKvParams {
            qkv: op.qkv.rows(num_rows),
            q_norm: norm.map_or(0, |norm| norm.q_weight.memory.address()),
            k_norm: norm.map_or(0, |norm| norm.k_weight.memory.address()),
            cos: op.rope.cos.address(),
            sin: op.rope.sin.address(),
            positions: op.batch.places.positions,
            slots: op.batch.places.slots,
            kv: op.kv.view(),
            num_q_heads: heads.num_q_heads as u32,
            rotary_half: op.rope.half as u32,
            layer: op.layer as u32,
            eps: norm.map_or(0.0, |norm| norm.eps),
        };
        let kernel = match op.kv.format {
            KvFormat::E4m3 => kernel!(self.element, "rope_store_kv_e4m3"),
            _ => kernel!(self.element, "rope_store_kv"),
        };
        self.launch(kernel, [num_rows, 1, 1], (128, 4 * 256 * 4), params)
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<(), BackendError> {
        self.launch_attention(op)
    }

    fn gated_activation(&mut self, op: GatedActivation<'_, Self>) -> Result<(), BackendError> {
        assert_eq!(op.gate_up.width, 2 * op.out.width, "width of a gate-and-up row");
        let params = GatedActivationParams {
            gate_up: op.gate_up.rows(op.num_rows),
            out: op.out.rows(op.num_rows),
            num_rows: op.num_rows as u32,
            width: op.out.width as u32,
            activation: match op.activation {
                Activation::Silu => 0,
                Activation::GeluTanh => 1,
            },
            reserved: 0,
        };
        let num_blocks = (op.num_rows * op.out.width).div_ceil(256 * 8);
        self.launch(kernel!(self.element, "gated_activation"), [num_blocks, 1, 1], (256, 0), params)
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<(), BackendError> {
        assert_eq!(op.x.width, op.out.width, "gather widths");
        let max_rows = op.x.max_rows();
        assert!(op.rows.iter().all(|&row| (row as usize) < max_rows), "a row beyond {max_rows}");
        let (x, rows) = self.gathered_rows(op.x, op.rows)?;
        let params = GatherRowsParams {
            x,
            rows,
            out: op.out.rows(op.rows.len()),
            width: op.x.width as u32,
            reserved: 0,
        };
        self.launch("gather_rows", [op.rows.len(), 1, 1], (128, 0), params)
    }

    fn copy_blocks(&mut self, kv: &mut Self::KvCache, copies: &[BlockCopy]) -> Result<(), BackendError> {
        let entry = |copy: &BlockCopy| {
            let KvLayout { num_blocks, block_size, .. } = kv.layout;
            assert!(copy.source.max(copy.target) < num_blocks as u32, "{copy:?} of {num_blocks} blocks");
            assert!(copy.num_slots <= block_size as u32, "{copy:?} in blocks of {block_size}");
            BlockCopyEntry { source: copy.source, target: copy.target, num_slots: copy.num_slots }
        };
        let entries: Vec<BlockCopyEntry> = copies.iter().map(entry).collect();
        let copies = self.copies.upload(&mut self.device, &entries)?;
        let params = CopyBlocksParams { kv: kv.view(), copies };
        let grid = [entries.len(), kv.layout.num_layers, 2 * kv.layout.num_kv_heads];
        self.launch("copy_blocks", grid, (128, 0), params)
    }

    fn sample(&mut self, op: Sample<'_, Self>) -> Result<Self::Pending, BackendError> {
        self.queue_samples(op)
    }

    fn read_back(
        &mut self,
        pending: Self::Pending,
    ) -> Result<Vec<Result<Sampled, NonFiniteLogits>>, BackendError> {
        self.samples.finish_read(&mut self.device, pending)
    }
}
