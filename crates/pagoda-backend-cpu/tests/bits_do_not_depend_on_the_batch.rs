//! The CPU numerics law: a row has the same bits alone and among others, with any number of threads, in decode and in any
//! split of a prefill, and on AVX2 and AVX-512.

mod support;

use pagoda_backend::{
    Activation, Backend, BatchMetadata, GatedActivation, HeadLayout, InputToken, KvLayout, Linear,
    PagedAttention, RmsNorm, RopeStoreKv, RopeTable, WeightFormat,
};
use pagoda_backend_cpu::{Arithmetic, CpuBackend, CpuWeight, Isa};
use support::{Random, backend, backend_with, bits, instruction_sets, matrix, poisoned, tensor, values};

/// The outputs of rows `range` of `x`, computed in one call.
fn linear(backend: &mut CpuBackend, weight: &CpuWeight, x: &[f32]) -> Vec<u32> {
    let num_rows = x.len() / weight.cols();
    let x = tensor(backend, x, weight.cols(), 0);
    let mut out = poisoned(backend, num_rows, weight.rows());
    backend.linear(Linear { x: &x, weight, bias: None, num_rows, out: &mut out }).expect("shapes fit");
    bits(&values(&out, num_rows))
}

#[test]
fn a_linear_row_is_the_same_alone_and_among_others() {
    let mut random = Random(21);
    for isa in instruction_sets() {
        for arithmetic in [Arithmetic::F32, Arithmetic::Int16] {
            let mut backends: Vec<_> =
                (1..=3).map(|threads| backend_with(isa, threads, arithmetic)).collect();
            for format in WeightFormat::ALL {
                for (rows, cols) in [(37, 64), (80, 288), (18, 2112)] {
                    let host = [matrix(&mut random, rows, cols, format)];
                    let weight = backends[0].pack_weight(&host).unwrap();
                    check_row_subsets(
                        &mut backends,
                        &weight,
                        &mut random,
                        &format!("{isa} {arithmetic} {format}"),
                    );
                }
            }
        }
    }
}

/// 200 rows at once on one thread, then some of them in calls of every kind of size on 1 to 3 threads.
fn check_row_subsets(backends: &mut [CpuBackend], weight: &CpuWeight, random: &mut Random, what: &str) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let x = random.numbers(200 * cols);
    let together = linear(&mut backends[0], weight, &x);
    for (threads, backend) in (1..).zip(backends) {
        assert_eq!(linear(backend, weight, &x), together, "{what}, {threads} threads");
        for num_rows in [1, 2, 3, 4, 5, 6, 7, 12, 32, 65, 130] {
            let first = random.below(200 - num_rows + 1);
            let part = linear(backend, weight, &x[first * cols..(first + num_rows) * cols]);
            assert_eq!(
                part,
                together[first * rows..(first + num_rows) * rows],
                "{what} {rows} x {cols}: rows {first}.. of {num_rows}, {threads} threads"
            );
        }
    }
}

#[test]
fn norms_and_gates_are_the_same_alone_and_among_others() {
    let mut random = Random(22);
    for isa in instruction_sets() {
        for num_threads in 1..=3 {
            let mut backend = backend(isa, num_threads);
            for width in [17, 576, 1536] {
                let weight = random.numbers(width);
                let weight = backend.upload_vector(&weight).unwrap();
                let rows = random.numbers(100 * 2 * width);
                let norm = |backend: &mut CpuBackend, rows: &[f32]| {
                    let num_rows = rows.len() / width;
                    let x = tensor(backend, rows, width, 0);
                    let mut out = poisoned(backend, num_rows, width);
                    let op = RmsNorm { x: &x, weight: &weight, eps: 1e-5, num_rows, out: &mut out };
                    backend.rms_norm(op).unwrap();
                    bits(&values(&out, num_rows))
                };
                let gate = |backend: &mut CpuBackend, rows: &[f32]| {
                    let num_rows = rows.len() / (2 * width);
                    let gate_up = tensor(backend, rows, 2 * width, 0);
                    let mut out = poisoned(backend, num_rows, width);
                    let activation = Activation::Silu;
                    let op = GatedActivation { gate_up: &gate_up, activation, num_rows, out: &mut out };
                    backend.gated_activation(op).unwrap();
                    bits(&values(&out, num_rows))
                };
                let (normed, gated) = (norm(&mut backend, &rows), gate(&mut backend, &rows));
                for row in [0, 1, 50, 99] {
                    let at = row * width;
                    assert_eq!(
                        norm(&mut backend, &rows[at..at + width]),
                        normed[at..at + width],
                        "{isa} row {row}"
                    );
                    let alone = gate(&mut backend, &rows[2 * at..2 * (at + width)]);
                    assert_eq!(alone, gated[at..at + width], "{isa} row {row}");
                }
            }
        }
    }
}

/// A model's worth of attention: QKV rows of a few sequences, fed to the cache in chunks.
struct Attention {
    heads: HeadLayout,
    layout: KvLayout,
    window: Option<u32>,
    softcap: Option<f32>,
    /// QKV rows of each sequence, `[len, qkv_width]`.
    sequences: Vec<Vec<f32>>,
}

/// One step: `(sequence, first position, end position)` of each sequence in it.
type Step = Vec<(usize, usize, usize)>;

impl Attention {
    fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence].len() / self.heads.qkv_width()
    }

    /// Runs the steps with block tables in an order drawn from `seed`; returns the bits of each sequence's outputs.
    fn run(&self, backend: &mut CpuBackend, steps: &[Step], seed: u64) -> Vec<Vec<u32>> {
        let block_size = self.layout.block_size;
        let mut random = Random(seed);
        let mut free: Vec<u32> = (1..self.layout.num_blocks as u32).collect();
        (1..free.len()).rev().for_each(|index| free.swap(index, random.below(index + 1)));
        let tables: Vec<Vec<u32>> = (0..self.sequences.len())
            .map(|sequence| free.split_off(free.len() - self.len(sequence).div_ceil(block_size)))
            .collect();
        let frequencies: Vec<f64> =
            (0..self.heads.head_dim / 2).map(|index| 0.7f64.powi(index as i32)).collect();
        let rope = backend.upload_rope(&RopeTable::new(&frequencies, 512, 1.0)).expect("shapes fit");
        let mut kv = backend.alloc_kv(self.layout).expect("shapes fit");
        let mut outputs: Vec<Vec<u32>> = vec![Vec::new(); self.sequences.len()];
        for step in steps {
            let mut metadata = self.metadata(&tables, step);
            let num_rows = metadata.num_tokens();
            let width = self.heads.qkv_width();
            let rows: Vec<f32> = step
                .iter()
                .flat_map(|&(sequence, first, end)| &self.sequences[sequence][first * width..end * width])
                .copied()
                .collect();
            let mut qkv = tensor(backend, &rows, width, 0);
            let mut batch = backend.alloc_batch(1, 1, 1).expect("shapes fit");
            backend.upload_batch(&mut batch, &mut metadata).expect("shapes fit");
            let (batch, heads) = (&batch, self.heads);
            let op = RopeStoreKv {
                batch,
                qkv: &mut qkv,
                heads,
                qk_norm: None,
                rope: &rope,
                kv: &mut kv,
                layer: 0,
            };
            backend.rope_store_kv(op).expect("shapes fit");
            let mut out = poisoned(backend, num_rows, heads.q_width());
            let op = PagedAttention {
                batch,
                qkv: &qkv,
                heads,
                kv: &kv,
                layer: 0,
                scale: 0.3,
                window: self.window,
                softcap: self.softcap,
                out: &mut out,
            };
            backend.paged_attention(op).expect("shapes fit");
            let mut row = 0;
            for &(sequence, first, end) in step {
                for _ in first..end {
                    outputs[sequence].extend(bits(out.row(row)));
                    row += 1;
                }
            }
        }
        outputs
    }

    fn metadata(&self, tables: &[Vec<u32>], step: &Step) -> BatchMetadata {
        let block_size = self.layout.block_size;
        let mut metadata = BatchMetadata {
            query_start_loc: vec![0],
            block_table_starts: vec![0],
            ..BatchMetadata::default()
        };
        for &(sequence, first, end) in step {
            let table = &tables[sequence][..end.div_ceil(block_size)];
            for position in first..end {
                metadata.input_tokens.push(InputToken::Known(0));
                metadata.positions.push(position as u32);
                let block = table[position / block_size] as usize;
                metadata.slot_mapping.push((block * block_size + position % block_size) as u32);
            }
            metadata.query_start_loc.push(metadata.input_tokens.len() as u32);
            metadata.context_lens.push(end as u32);
            metadata.block_tables.extend(table);
            metadata.block_table_starts.push(metadata.block_tables.len() as u32);
        }
        metadata
    }

    /// Every sequence by itself, whole.
    fn alone(&self) -> Vec<Step> {
        (0..self.sequences.len()).map(|sequence| vec![(sequence, 0, self.len(sequence))]).collect()
    }

    /// Steps that mix chunks of random lengths, 1 among them, of random sequences.
    fn mixed(&self, random: &mut Random) -> Vec<Step> {
        let mut done = vec![0; self.sequences.len()];
        let mut steps = Vec::new();
        while (0..done.len()).any(|sequence| done[sequence] < self.len(sequence)) {
            let mut step = Vec::new();
            for (sequence, done) in done.iter_mut().enumerate() {
                let left = self.len(sequence) - *done;
                let chunk = random.pick(&[0, 1, 1, 2, 15, 16, 17, 40, 150]).min(left);
                if chunk > 0 {
                    step.push((sequence, *done, *done + chunk));
                    *done += chunk;
                }
            }
            steps.push(step);
        }
        steps
    }
}

fn attention(random: &mut Random) -> Attention {
    let (num_kv_heads, group) = (random.pick(&[1, 3]), random.pick(&[1, 3, 4]));
    let head_dim = random.pick(&[16, 64, 80]);
    let heads = HeadLayout { num_q_heads: num_kv_heads * group, num_kv_heads, head_dim };
    let block_size = random.pick(&[8, 16, 24, 32, 64]);
    let sequences = (0..3).map(|_| random.pick(&[1, 16, 64, 65, 130, 200])).collect::<Vec<usize>>();
    Attention {
        heads,
        layout: KvLayout { num_layers: 1, num_blocks: 90, block_size, num_kv_heads, head_dim },
        window: random.pick(&[None, Some(33), Some(100)]),
        softcap: random.pick(&[None, Some(5.0)]),
        sequences: sequences.iter().map(|len| random.numbers(len * heads.qkv_width())).collect(),
    }
}

#[test]
fn attention_is_the_same_whole_in_chunks_and_among_others() {
    for isa in instruction_sets() {
        let mut backends: Vec<_> = (1..=3).map(|num_threads| backend(isa, num_threads)).collect();
        let mut random = Random(23);
        for case in 0..30 {
            let seed = random.0;
            let attention = attention(&mut random);
            let expected = attention.run(&mut backends[0], &attention.alone(), 1);
            for (threads, backend) in (1..).zip(&mut backends) {
                let steps = attention.mixed(&mut random);
                assert_eq!(
                    attention.run(backend, &steps, random.0),
                    expected,
                    "{isa} case {case} seed {seed}, {threads} threads, {:?} {:?} window {:?}",
                    attention.heads,
                    attention.layout,
                    attention.window
                );
            }
        }
    }
}

#[test]
fn a_change_of_one_key_is_seen() {
    let mut random = Random(24);
    let mut backend = backend(Isa::detect(), 1);
    let mut attention = attention(&mut random);
    attention.window = None;
    let before = attention.run(&mut backend, &attention.alone(), 1);
    let key = attention.heads.q_width();
    attention.sequences[0][key] += 0.01;
    let after = attention.run(&mut backend, &attention.alone(), 1);
    assert!(attention.len(0) == 1 || before[0] != after[0]);
    assert_eq!(before[1..], after[1..]);
}

#[test]
fn avx2_and_avx512_give_the_same_bits() {
    if !Isa::Avx512.is_available() {
        println!("skipped: no {} on this CPU", Isa::Avx512);
        return;
    }
    for arithmetic in [Arithmetic::F32, Arithmetic::Int16] {
        let mut backends = [Isa::Avx2, Isa::Avx512].map(|isa| backend_with(isa, 2, arithmetic));
        assert_linear_agrees(&mut backends);
    }
    let mut random = Random(25);
    let [mut narrow, mut wide] = [Isa::Avx2, Isa::Avx512].map(|isa| backend(isa, 2));
    for case in 0..20 {
        let attention = attention(&mut random);
        let steps = attention.alone();
        assert_eq!(attention.run(&mut narrow, &steps, 1), attention.run(&mut wide, &steps, 1), "case {case}");
    }
}

fn assert_linear_agrees([narrow, wide]: &mut [CpuBackend; 2]) {
    let mut random = Random(26);
    for format in WeightFormat::ALL {
        let host = [matrix(&mut random, 100, 288, format)];
        let weight = narrow.pack_weight(&host).expect("shapes fit");
        for num_rows in [1, 2, 9, 33] {
            let x = random.numbers(num_rows * 288);
            assert_eq!(linear(narrow, &weight, &x), linear(wide, &weight, &x), "{format} {num_rows}");
        }
    }
}
