//! A replay is what single launches would be, parameter by parameter: the same walk through steps of every size on two backends
//! over devices that write down their launches, one of which captures and replays.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex, MutexGuard};

use pagoda_backend::{
    Activation, AddRmsNorm, Backend, BackendError, BatchMetadata, Embed, GatedActivation, GraphKey,
    HeadLayout, HostMatrix, InputToken, KvLayout, Linear, PagedAttention, RopeStoreKv, RopeTable, Sample,
    SampleRow, StepLimits, WeightFormat,
};
use pagoda_backend_cuda::{CudaBackend, Device, Element, Launch, LinearPolicy, Memory, StepPath, TensorMap};

/// A launch: kernel, grid, parameters.
type Line = (&'static str, [u32; 3], Vec<u8>);

#[derive(Default)]
struct Log {
    launches: Vec<Line>,
    num_replays: usize,
    /// Sizes of the buffers for readings that were made ready.
    spare_readings: Vec<usize>,
    /// Its clock: every launch, write and read takes a second.
    seconds: u32,
    /// Whether captures fail, as a device without room for another graph.
    refuses_captures: bool,
}

/// A device that computes nothing. No two pieces of memory ever have the same address.
#[derive(Default)]
struct Recorder {
    log: Arc<Mutex<Log>>,
    capture: Option<Vec<Line>>,
    end: u64,
}

impl Recorder {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no panic with the lock")
    }
}

struct Piece(u64, usize);

impl Memory for Piece {
    fn address(&self) -> u64 {
        self.0
    }

    fn num_bytes(&self) -> usize {
        self.1
    }
}

impl Device for Recorder {
    type Memory = Piece;
    type Reading = usize;
    type Graph = Vec<Line>;
    type Moment = u32;

    fn describe(&self) -> String {
        "a device that writes down its launches".to_owned()
    }

    fn alloc(&mut self, num_bytes: usize, _fill: u8, what: &'static str) -> Result<Piece, BackendError> {
        assert!(self.capture.is_none(), "{what}: an allocation within a capture");
        let address = self.end + 256;
        self.end = (address + num_bytes as u64).next_multiple_of(256);
        Ok(Piece(address, num_bytes))
    }

    fn allocated_bytes(&self) -> u64 {
        self.end
    }

    fn write_with(
        &mut self,
        _: &Piece,
        _: usize,
        _: usize,
        _: &mut dyn FnMut(usize, &mut [u8]),
    ) -> Result<(), BackendError> {
        assert!(self.capture.is_none(), "a write within a capture");
        self.log().seconds += 1;
        Ok(())
    }

    fn reserve_readings(&mut self, num_readings: usize, num_bytes: usize) -> Result<(), BackendError> {
        self.log().spare_readings.extend(std::iter::repeat_n(num_bytes, num_readings));
        Ok(())
    }

    fn start_read(&mut self, _: &Piece, _: usize, num_bytes: usize) -> Result<usize, BackendError> {
        assert!(self.capture.is_none(), "a read within a capture");
        self.log().seconds += 1;
        Ok(num_bytes)
    }

    fn finish_read(&mut self, num_bytes: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        assert_eq!(num_bytes, bytes.len());
        Ok(())
    }

    fn tensor_map(&mut self, _: &Piece, _: usize, _: usize) -> Result<TensorMap, BackendError> {
        Err(BackendError::Unsupported("a device that writes down its launches has no copy engine".to_owned()))
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), BackendError> {
        let line = (launch.kernel, launch.grid, launch.params.to_vec());
        match &mut self.capture {
            Some(capture) => capture.push(line),
            None => {
                let mut log = self.log();
                log.launches.push(line);
                log.seconds += 1;
            }
        }
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), BackendError> {
        assert!(self.capture.replace(Vec::new()).is_none(), "a capture within a capture");
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Vec<Line>, BackendError> {
        let capture = self.capture.take().expect("a capture has begun");
        match self.log().refuses_captures {
            true => Err(BackendError::Refused("CUDA_ERROR_OUT_OF_MEMORY".to_owned())),
            false => Ok(capture),
        }
    }

    fn replay(&mut self, graph: &Vec<Line>) -> Result<(), BackendError> {
        let mut log = self.log();
        log.num_replays += 1;
        log.launches.extend(graph.iter().cloned());
        log.seconds += graph.len() as u32;
        Ok(())
    }

    fn moment(&mut self) -> Result<u32, BackendError> {
        assert!(self.capture.is_none(), "a moment within a capture");
        Ok(self.log().seconds)
    }

    fn seconds_between(&mut self, from: &u32, to: &u32) -> Result<f64, BackendError> {
        Ok(f64::from(to.checked_sub(*from).expect("moments are in order")))
    }
}

type Recording = CudaBackend<Recorder>;

const HEADS: HeadLayout = HeadLayout { num_q_heads: 4, num_kv_heads: 2, head_dim: 64 };
const MAX_ROWS: usize = 64;
const MAX_CONTEXT: u32 = 6000;

/// A layer without sense, and two batches to run it on. Nothing is reserved, so that scratch memory grows, and moves, on the way.
struct Layer {
    backend: Recording,
    log: Arc<Mutex<Log>>,
    kv: <Recording as Backend>::KvCache,
    rope: <Recording as Backend>::Rope,
    norm: <Recording as Backend>::Vector,
    /// A block format, so that many rows need a panel.
    weight: <Recording as Backend>::Weight,
    /// Needs a larger panel.
    head: <Recording as Backend>::Weight,
    x: [<Recording as Backend>::Tensor; 5],
    logits: <Recording as Backend>::Tensor,
    batches: [<Recording as Backend>::Batch; 2],
}

impl Layer {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no panic with the lock")
    }

    fn take_launches(&self) -> Vec<Line> {
        std::mem::take(&mut self.log().launches)
    }

    fn new() -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let device = Recorder { log: log.clone(), ..Recorder::default() };
        let mut backend = CudaBackend::new(device, Element::Bf16, LinearPolicy::Fastest);
        let layout = KvLayout {
            num_layers: 1,
            num_blocks: 1,
            block_size: 16,
            num_kv_heads: HEADS.num_kv_heads,
            head_dim: HEADS.head_dim,
        };
        let width = HEADS.qkv_width();
        let format = WeightFormat::Q8_0;
        let matrix = |rows| HostMatrix {
            rows,
            cols: width,
            format,
            data: vec![0; rows * format.row_bytes(width)].into(),
        };
        let max_table_len = MAX_ROWS * (MAX_CONTEXT as usize).div_ceil(16);
        let alloc_batch =
            |backend: &mut Recording| backend.alloc_batch(MAX_ROWS, MAX_ROWS, max_table_len).unwrap();
        let widths = [width, width, width, width / 2, 2 * width];
        Layer {
            kv: backend.alloc_kv(layout).unwrap(),
            rope: backend.upload_rope(&RopeTable::new(&[1.0; 32], 1, 1.0)).unwrap(),
            norm: backend.upload_vector(&vec![0.0; width]).unwrap(),
            weight: backend.pack_weight(&[matrix(width)]).unwrap(),
            head: backend.pack_weight(&[matrix(2 * width)]).unwrap(),
            x: widths.map(|width| backend.alloc(MAX_ROWS, width).unwrap()),
            logits: backend.alloc_logits(MAX_ROWS, 64).unwrap(),
            batches: [alloc_batch(&mut backend), alloc_batch(&mut backend)],
            backend,
            log,
        }
    }

    /// One step: every op of a forward pass, then the choice of `num_samples` tokens, with a product before it if `has_head`.
    fn step(&mut self, which: usize, metadata: &BatchMetadata, (num_samples, has_head): (u32, bool)) {
        let Layer {
            backend, kv, rope, norm, weight, head, x: [x, y, z, half, wide], logits, batches, ..
        } = self;
        let num_rows = metadata.num_tokens();
        backend.upload_batch(&mut batches[which], &mut metadata.clone()).unwrap();
        let batch = &batches[which];
        let forward = backend.run(GraphKey { name: "forward", num_rows }, |backend| {
            backend.embed(Embed { batch, table: weight, scale: 1.0, out: x })?;
            backend.add_rms_norm(AddRmsNorm { x, residual: y, weight: norm, eps: 0.0, num_rows, out: z })?;
            backend.linear(Linear { x: z, weight, bias: None, num_rows, out: x })?;
            backend.rope_store_kv(RopeStoreKv {
                batch,
                qkv: x,
                heads: HEADS,
                qk_norm: None,
                rope,
                kv,
                layer: 0,
            })?;
            let (scale, window, softcap) = (0.125, None, None);
            backend.paged_attention(PagedAttention {
                batch,
                qkv: x,
                heads: HEADS,
                kv,
                layer: 0,
                scale,
                window,
                softcap,
                out: half,
            })?;
            let activation = Activation::Silu;
            backend.gated_activation(GatedActivation { gate_up: x, activation, num_rows, out: half })
        });
        forward.unwrap();
        if has_head {
            let num_rows = num_samples as usize;
            backend.linear(Linear { x: z, weight: head, bias: None, num_rows, out: wide }).unwrap();
        }
        let rows: Vec<SampleRow<'_>> = (0..num_samples).map(SampleRow::greedy).collect();
        let pending = backend.sample(Sample { logits, vocab_size: 64, rows: &rows, first: 0 }).unwrap();
        backend.read_back(pending).unwrap();
    }
}

/// Sequences of so many rows and context.
fn metadata(sequences: &[(u32, u32)]) -> BatchMetadata {
    let mut batch =
        BatchMetadata { query_start_loc: vec![0], block_table_starts: vec![0], ..Default::default() };
    for &(num_rows, context_len) in sequences {
        for row in 0..num_rows {
            batch.input_tokens.push(InputToken::LastSampled(row));
            batch.positions.push(0);
            batch.slot_mapping.push(0);
        }
        batch.query_start_loc.push(batch.input_tokens.len() as u32);
        batch.context_lens.push(context_len);
        batch.block_tables.extend((0..context_len.div_ceil(16)).map(|_| 0));
        batch.block_table_starts.push(batch.block_tables.len() as u32);
    }
    batch
}

/// A generator that is the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(end)) as u32
    }
}

/// Walks both backends through the same steps and compares what was launched after every one. The answer is the replays.
fn walk(captured: &mut Layer, single: &mut Layer, num_steps: usize) -> usize {
    let mut random = Random(1);
    for step in 0..num_steps {
        // More sequences as the walk goes on, with short and with long contexts, so that each piece of scratch memory moves late
        // as well as early.
        let end = [16, MAX_CONTEXT][random.below(2) as usize];
        let max_log2_rows = 6 * step as u32 / num_steps as u32;
        let num_sequences = 1 << random.below(1 + max_log2_rows);
        let mut sequences: Vec<(u32, u32)> = (0..num_sequences).map(|_| (1, 1 + random.below(end))).collect();
        if random.below(8) == 0 {
            let num_rows = 2 + random.below(20);
            sequences.push((num_rows, num_rows + random.below(end - 1).min(MAX_CONTEXT - num_rows)));
        }
        let which = random.below(2) as usize;
        // The head comes late, so that its panel is larger than the one of earlier captures.
        let samples = (1 + random.below(sequences.len() as u32), 12 * step > 11 * num_steps);
        let metadata = metadata(&sequences);
        captured.step(which, &metadata, samples);
        single.step(which, &metadata, samples);
        let (ours, theirs) = (captured.take_launches(), single.take_launches());
        assert!(!theirs.is_empty());
        for (our, their) in ours.iter().zip(&theirs) {
            assert_eq!(our, their, "step {step} of {sequences:?}");
        }
        assert_eq!(ours.len(), theirs.len(), "step {step}");
    }
    assert_eq!(single.log().num_replays, 0);
    captured.log().num_replays
}

#[test]
fn replays_hold_no_stale_address_and_no_stale_size() {
    let (mut captured, mut single) = (Layer::new(), Layer::new());
    single.backend = single.backend.without_graphs();
    let num_replays = walk(&mut captured, &mut single, 600);
    assert!(num_replays > 150, "{num_replays} replays of 600 steps");
}

#[test]
fn a_device_that_refuses_a_capture_gets_single_launches() {
    let (mut captured, mut single) = (Layer::new(), Layer::new());
    single.backend = single.backend.without_graphs();
    captured.log().refuses_captures = true;
    assert_eq!(captured.backend.padded_rows(3), Some(4));
    assert_eq!(walk(&mut captured, &mut single, 60), 0);
    assert_eq!(captured.backend.padded_rows(3), None);
}

#[test]
fn padding_stays_on_its_side_of_the_narrow_product() {
    let layer = Layer::new();
    for num_rows in 1..=256 {
        let padded_rows = layer.backend.padded_rows(num_rows).expect("decode steps are captured");
        assert!(padded_rows >= num_rows && padded_rows < 2 * num_rows.max(16));
        assert_eq!(padded_rows <= 16, num_rows <= 16, "{num_rows} rows become {padded_rows}");
    }
    assert_eq!(layer.backend.padded_rows(257), None);
}

#[test]
fn the_clock_keeps_where_steps_begin_and_end_and_how_they_were_run() {
    let mut layer = Layer::new();
    // Scratch memory of the longest, so that no capture is dropped on the way.
    layer.step(0, &metadata(&[(1, 400), (1, 400)]), (2, false));
    layer.backend.start_clock();
    let contexts = [254, 255, 256, 257, 258, 259];
    for context_len in contexts {
        layer.step(0, &metadata(&[(1, context_len), (1, context_len)]), (2, false));
    }
    let last = layer.log().seconds;
    let spans = layer.backend.stop_clock().unwrap();
    // A split more for each sequence from 257 on: launches of another kind, which a capture before them does not serve.
    use StepPath::{Captured, Launched, Replayed};
    let paths: Vec<StepPath> = spans.iter().map(|span| span.path).collect();
    assert_eq!(paths, [Launched, Captured, Replayed, Launched, Captured, Replayed]);
    // Seven kernels, and between two steps the copies: the choices to the host, then the next step's metadata.
    let pauses: Vec<f64> = spans.windows(2).map(|pair| pair[1].start_s - pair[0].end_s).collect();
    assert!(pauses.iter().all(|pause| *pause == pauses[0] && *pause > 0.0), "{pauses:?}");
    assert!(spans.iter().all(|span| span.end_s - span.start_s >= 7.0), "{spans:?}");
    assert_eq!(spans[0].start_s, 0.0);
    // A clock that has stopped keeps nothing, and asks for no moments.
    layer.step(0, &metadata(&[(1, 8)]), (1, false));
    assert!(layer.log().seconds > last);
    assert_eq!(layer.backend.stop_clock().unwrap(), []);
}

#[test]
fn two_steps_of_two_slices_of_logits_are_in_flight_in_memory_that_was_reserved() {
    let mut layer = Layer::new();
    let (max_sequences, max_logit_rows, vocab_size) = (48, 32, 64);
    let limits = StepLimits {
        max_tokens: max_sequences,
        max_sequences,
        max_context_len: 64,
        max_logit_rows,
        vocab_size,
        heads: HEADS,
    };
    layer.backend.reserve(&limits).unwrap();
    let allocated_bytes = layer.backend.allocated_bytes();
    let row = |row| SampleRow { num_logprobs: Some(20), ..SampleRow::greedy(row) };
    let rows: Vec<SampleRow<'_>> = (0..max_logit_rows as u32).map(row).collect();
    let mut pending = Vec::new();
    for first in [0, 32, 0, 32] {
        let rows = &rows[..max_logit_rows.min(max_sequences - first)];
        let sample = Sample { logits: &layer.logits, vocab_size, rows, first };
        pending.push(layer.backend.sample(sample).unwrap());
    }
    assert_eq!(layer.backend.allocated_bytes(), allocated_bytes, "a step allocated");
    // A report of 16 bytes, and 20 tokens with their logprobs.
    assert_eq!(layer.log().spare_readings, [48 * (16 + 20 * 8); 4]);
    assert!(pending.into_iter().all(|pending| layer.backend.read_back(pending).is_ok()));
}
