//! Time of whole model steps, op by op: decode alone, decode of 32, prefill of 512, in the shape of SmolLM2-135M (30 layers,
//! Q4_1, tied Q8_0 embedding) with weights of no meaning.
//!
//! `cargo run --profile ci -p pagoda-backend-cpu --example step_bench [threads] [start of a name] [int16]`
//!
//! Wall times are the best of many steps, of each op on its own too; CPU times are per thread and the mean of all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pagoda_backend::{
    Activation, AddRmsNorm, Backend, BatchMetadata, Embed, GatedActivation, GatherRows, HeadLayout,
    HostMatrix, InputToken, KvLayout, Linear, PagedAttention, RmsNorm, RopeStoreKv, RopeTable, Sample,
    SampleRow, WeightFormat,
};
use pagoda_backend_cpu::{
    Arithmetic, CpuBackend, CpuBatch, CpuKvCache, CpuOptions, CpuTensor, CpuVector, CpuWeight,
};

const NUM_LAYERS: usize = 30;
const HIDDEN: usize = 576;
const FFN: usize = 1536;
const VOCAB: usize = 49_152;
const BLOCK_SIZE: usize = 16;
const HEADS: HeadLayout = HeadLayout { num_q_heads: 9, num_kv_heads: 3, head_dim: 64 };

struct Layer {
    qkv: CpuWeight,
    output: CpuWeight,
    gate_up: CpuWeight,
    down: CpuWeight,
}

struct Model {
    backend: CpuBackend,
    layers: Vec<Layer>,
    embedding: CpuWeight,
    norm: CpuVector,
    rope: RopeTable,
    kv: CpuKvCache,
    times: BTreeMap<&'static str, Duration>,
}

/// Activations of up to `num_rows` rows.
struct Rows {
    residual: CpuTensor,
    normed: CpuTensor,
    qkv: CpuTensor,
    attended: CpuTensor,
    projected: CpuTensor,
    gate_up: CpuTensor,
    gated: CpuTensor,
    last: CpuTensor,
    logits: CpuTensor,
}

fn main() {
    let default_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let num_threads = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(default_threads);
    let is_int16 = std::env::args().nth(3).is_some_and(|word| word == "int16");
    let arithmetic = if is_int16 { Arithmetic::Int16 } else { Arithmetic::F32 };
    let mut model = Model::new(
        CpuBackend::new(CpuOptions { num_threads, isa: None }).expect("threads").with_arithmetic(arithmetic),
    );
    println!("{}", model.backend.describe());
    for (name, num_sequences, context_len, query_len) in [
        ("decode 1 at context 128", 1, 128, 1),
        ("decode 1 at context 1024", 1, 1024, 1),
        ("decode 4 at context 128", 4, 128, 1),
        ("decode 32 at context 128", 32, 128, 1),
        ("prefill 512", 1, 512, 512),
    ] {
        if std::env::args().nth(2).is_some_and(|only| !name.starts_with(&only)) {
            continue;
        }
        model.measure(name, num_threads, (num_sequences, context_len, query_len));
    }
}

impl Model {
    fn new(mut backend: CpuBackend) -> Self {
        let layers = (0..NUM_LAYERS)
            .map(|_| Layer {
                qkv: weight(&mut backend, HEADS.qkv_width(), HIDDEN, WeightFormat::Q4_1),
                output: weight(&mut backend, HIDDEN, HEADS.q_width(), WeightFormat::Q4_1),
                gate_up: weight(&mut backend, 2 * FFN, HIDDEN, WeightFormat::Q4_1),
                down: weight(&mut backend, HIDDEN, FFN, WeightFormat::Q4_1),
            })
            .collect();
        let layout = KvLayout {
            num_layers: NUM_LAYERS,
            num_blocks: 300,
            block_size: BLOCK_SIZE,
            num_kv_heads: 3,
            head_dim: 64,
        };
        let frequencies: Vec<f64> = (0..32).map(|index| 10_000f64.powf(-f64::from(index) / 32.0)).collect();
        Model {
            layers,
            embedding: weight(&mut backend, VOCAB, HIDDEN, WeightFormat::Q8_0),
            norm: backend.upload_vector(&[1.0; HIDDEN]).expect("memory"),
            rope: RopeTable::new(&frequencies, 1024, 1.0),
            kv: backend.alloc_kv(layout).expect("memory"),
            backend,
            times: BTreeMap::new(),
        }
    }

    fn measure(&mut self, name: &str, num_threads: usize, load: (usize, usize, usize)) {
        let (num_sequences, context_len, query_len) = load;
        let num_rows = num_sequences * query_len;
        let mut rows = Rows::new(&mut self.backend, num_rows, num_sequences);
        let mut batch = self.backend.alloc_batch(0, 0, 0).expect("memory");
        // Fills the cache first, so that no step reads NaN.
        for first in (0..context_len).step_by(64) {
            let mut metadata =
                steps(num_sequences, 64.min(context_len - first) + first, 64.min(context_len - first));
            let mut filler = Rows::new(&mut self.backend, metadata.num_tokens(), num_sequences);
            self.backend.upload_batch(&mut batch, &mut metadata).expect("metadata");
            self.step(&batch, num_sequences * 64.min(context_len - first), &mut filler, num_sequences);
        }
        self.backend
            .upload_batch(&mut batch, &mut steps(num_sequences, context_len, query_len))
            .expect("metadata");
        self.times.clear();
        let (mut best, mut num_steps) = (Duration::MAX, 0);
        let mut best_of_ops = BTreeMap::new();
        let (start, cpu_start) = (Instant::now(), cpu_seconds());
        while start.elapsed() < Duration::from_secs(3) {
            let step = Instant::now();
            self.step(&batch, num_rows, &mut rows, num_sequences);
            best = best.min(step.elapsed());
            num_steps += 1;
            for (op, time) in std::mem::take(&mut self.times) {
                let best = best_of_ops.entry(op).or_insert(time);
                *best = time.min(*best);
            }
        }
        let cpu = (cpu_seconds() - cpu_start) / f64::from(num_steps) / num_threads as f64;
        println!(
            "{name}: best {:.2} ms = {:.0} tok/s; CPU {:.2} ms per thread = {:.0} tok/s",
            best.as_secs_f64() * 1e3,
            num_rows as f64 / best.as_secs_f64(),
            cpu * 1e3,
            num_rows as f64 / cpu
        );
        for (op, time) in &best_of_ops {
            println!("    {op:<16} {:>9.3} ms", time.as_secs_f64() * 1e3);
        }
    }

    fn step(&mut self, batch: &CpuBatch, num_rows: usize, rows: &mut Rows, num_sequences: usize) {
        let Model { backend, layers, embedding, norm, rope, kv, times } = self;
        let mut timed = |op: &'static str, start: Instant| *times.entry(op).or_default() += start.elapsed();
        let eps = 1e-5;
        let start = Instant::now();
        backend.embed(Embed { batch, table: embedding, scale: 1.0, out: &mut rows.residual }).expect("embed");
        timed("embed", start);
        for (layer, weights) in layers.iter().enumerate() {
            let start = Instant::now();
            if layer == 0 {
                let (x, out) = (&rows.residual, &mut rows.normed);
                backend.rms_norm(RmsNorm { x, weight: norm, eps, num_rows, out }).expect("norm");
            } else {
                let (x, residual, out) = (&rows.projected, &mut rows.residual, &mut rows.normed);
                backend
                    .add_rms_norm(AddRmsNorm { x, residual, weight: norm, eps, num_rows, out })
                    .expect("norm");
            }
            timed("norm", start);
            let start = Instant::now();
            linear(backend, &weights.qkv, &rows.normed, num_rows, &mut rows.qkv);
            timed("linear qkv", start);
            let start = Instant::now();
            let (qkv, heads, qk_norm) = (&mut rows.qkv, HEADS, None);
            backend.rope_store_kv(RopeStoreKv { batch, qkv, heads, qk_norm, rope, kv, layer }).expect("rope");
            timed("rope", start);
            let start = Instant::now();
            let (qkv, out) = (&rows.qkv, &mut rows.attended);
            let (scale, window, softcap) = (0.125, None, None);
            backend
                .paged_attention(PagedAttention { batch, qkv, heads, kv, layer, scale, window, softcap, out })
                .expect("attention");
            timed("attention", start);
            let start = Instant::now();
            linear(backend, &weights.output, &rows.attended, num_rows, &mut rows.projected);
            timed("linear o", start);
            let start = Instant::now();
            let (x, residual, out) = (&rows.projected, &mut rows.residual, &mut rows.normed);
            backend.add_rms_norm(AddRmsNorm { x, residual, weight: norm, eps, num_rows, out }).expect("norm");
            timed("norm", start);
            let start = Instant::now();
            linear(backend, &weights.gate_up, &rows.normed, num_rows, &mut rows.gate_up);
            timed("linear gate_up", start);
            let start = Instant::now();
            let (gate_up, activation, out) = (&rows.gate_up, Activation::Silu, &mut rows.gated);
            backend.gated_activation(GatedActivation { gate_up, activation, num_rows, out }).expect("gate");
            timed("gate", start);
            let start = Instant::now();
            linear(backend, &weights.down, &rows.gated, num_rows, &mut rows.projected);
            timed("linear down", start);
        }
        let start = Instant::now();
        let last: Vec<u32> =
            (1..=num_sequences).map(|end| (end * num_rows / num_sequences - 1) as u32).collect();
        backend
            .gather_rows(GatherRows { x: &rows.projected, rows: &last, out: &mut rows.last })
            .expect("gather");
        linear(backend, embedding, &rows.last, num_sequences, &mut rows.logits);
        timed("linear lm_head", start);
        let start = Instant::now();
        let sample_rows: Vec<_> = (0..num_sequences as u32).map(SampleRow::greedy).collect();
        let sample = Sample { logits: &rows.logits, vocab_size: VOCAB, rows: &sample_rows, first: 0 };
        let pending = backend.sample(sample).expect("sample");
        assert!(backend.read_back(pending).expect("samples").iter().all(Result::is_ok), "logits are finite");
        timed("sample", start);
    }
}

impl Rows {
    fn new(backend: &mut CpuBackend, num_rows: usize, num_sequences: usize) -> Self {
        let mut alloc = |num_rows, width| backend.alloc(num_rows, width).expect("memory");
        Rows {
            residual: alloc(num_rows, HIDDEN),
            normed: alloc(num_rows, HIDDEN),
            qkv: alloc(num_rows, HEADS.qkv_width()),
            attended: alloc(num_rows, HEADS.q_width()),
            projected: alloc(num_rows, HIDDEN),
            gate_up: alloc(num_rows, 2 * FFN),
            gated: alloc(num_rows, FFN),
            last: alloc(num_sequences, HIDDEN),
            logits: alloc(num_sequences, VOCAB),
        }
    }
}

fn linear(backend: &mut CpuBackend, weight: &CpuWeight, x: &CpuTensor, num_rows: usize, out: &mut CpuTensor) {
    backend.linear(Linear { x, weight, bias: None, num_rows, out }).expect("shapes fit");
}

/// Small weights around 0: scales of 2^-10, minima of -7.5 scales, codes of a hash.
fn weight(backend: &mut CpuBackend, rows: usize, cols: usize, format: WeightFormat) -> CpuWeight {
    let mut data = Vec::with_capacity(rows * format.row_bytes(cols));
    let mut state = 1u32;
    for _ in 0..rows * cols / 32 {
        let header: &[u8] = if format == WeightFormat::Q4_1 { &[0, 0x14, 0x80, 0x9f] } else { &[0, 0x04] };
        data.extend_from_slice(header);
        data.extend((header.len()..format.block_bytes()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }));
    }
    backend.pack_weight(&[HostMatrix { rows, cols, format, data: data.into() }]).expect("memory")
}

fn steps(num_sequences: usize, context_len: usize, query_len: usize) -> BatchMetadata {
    let mut metadata =
        BatchMetadata { query_start_loc: vec![0], block_table_starts: vec![0], ..BatchMetadata::default() };
    let blocks_each = context_len.next_multiple_of(128) / BLOCK_SIZE;
    for sequence in 0..num_sequences {
        let block = |position: usize| 1 + sequence * blocks_each.max(8) + position / BLOCK_SIZE;
        for position in context_len - query_len..context_len {
            metadata.input_tokens.push(InputToken::Known((position * 37 % VOCAB) as u32));
            metadata.positions.push(position as u32);
            metadata.slot_mapping.push((block(position) * BLOCK_SIZE + position % BLOCK_SIZE) as u32);
        }
        metadata.query_start_loc.push(metadata.input_tokens.len() as u32);
        metadata.context_lens.push(context_len as u32);
        metadata
            .block_tables
            .extend((0..context_len).step_by(BLOCK_SIZE).map(|position| block(position) as u32));
        metadata.block_table_starts.push(metadata.block_tables.len() as u32);
    }
    metadata
}

/// CPU time of all threads of the process.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock writes into the place given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
