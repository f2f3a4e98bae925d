//! Seeded inputs, instruction sets in turn, comparisons.
#![allow(dead_code)]

use half::{bf16, f16};
use pagoda_backend::{Backend, BatchMetadata, HostMatrix, InputToken, KvLayout, WeightFormat};
use pagoda_backend_cpu::{Arithmetic, CpuBackend, CpuOptions, CpuTensor, Isa};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Uniform in -1..1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn numbers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.number()).collect()
    }
}

/// Every instruction set of this CPU, or the one that `PAGODA_TEST_ISA` names; those it lacks are named as skipped.
pub(crate) fn instruction_sets() -> Vec<Isa> {
    let only = std::env::var("PAGODA_TEST_ISA").ok();
    let is_wanted = |isa: &Isa| only.as_ref().is_none_or(|only| *only == isa.to_string());
    let (available, absent): (Vec<_>, Vec<_>) =
        Isa::ALL.into_iter().filter(is_wanted).partition(|isa| isa.is_available());
    for isa in absent {
        println!("skipped: no {isa} on this CPU");
    }
    assert!(!available.is_empty(), "PAGODA_TEST_ISA={only:?} leaves no instruction set of this CPU");
    available
}

pub(crate) fn backend(isa: Isa, num_threads: usize) -> CpuBackend {
    backend_with(isa, num_threads, Arithmetic::F32)
}

pub(crate) fn backend_with(isa: Isa, num_threads: usize, arithmetic: Arithmetic) -> CpuBackend {
    let options = CpuOptions { num_threads, isa: Some(isa) };
    CpuBackend::new(options).expect("memory and threads").with_arithmetic(arithmetic)
}

/// A tensor with these rows, and `spare` rows of NaN behind them.
pub(crate) fn tensor(backend: &mut CpuBackend, values: &[f32], width: usize, spare: usize) -> CpuTensor {
    let num_rows = values.len() / width;
    let mut tensor = backend.alloc(num_rows + spare, width).expect("memory and threads");
    for (row, values) in values.chunks_exact(width).enumerate() {
        tensor.row_mut(row).copy_from_slice(values);
    }
    for row in num_rows..num_rows + spare {
        tensor.row_mut(row).fill(f32::NAN);
    }
    tensor
}

/// All NaN, so that an output that an op forgets shows.
pub(crate) fn poisoned(backend: &mut CpuBackend, num_rows: usize, width: usize) -> CpuTensor {
    tensor(backend, &[], width, num_rows)
}

pub(crate) fn values(tensor: &CpuTensor, num_rows: usize) -> Vec<f32> {
    (0..num_rows).flat_map(|row| tensor.row(row).to_vec()).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// `|a - b| / |b|`; NaN in `actual` makes it NaN.
pub(crate) fn relative_l2(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let square = |value: f64| value * value;
    let difference: f64 =
        actual.iter().zip(expected).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
    (difference / norm.max(1e-30)).sqrt()
}

#[track_caller]
pub(crate) fn assert_close(actual: &[f32], expected: &[f32], limit: f64, what: &str) {
    let distance = relative_l2(actual, expected);
    assert!(distance <= limit, "{what}: relative L2 {distance:.3e} > {limit:.1e}");
}

/// A matrix of random weights; scales and minima are ordinary, codes take every value.
pub(crate) fn matrix(
    random: &mut Random,
    rows: usize,
    cols: usize,
    format: WeightFormat,
) -> HostMatrix<'static> {
    let mut data = Vec::with_capacity(rows * format.row_bytes(cols));
    for _ in 0..rows * cols / format.block_len() {
        let value = random.number();
        let scale = f16::from_f32(0.02 + 0.01 * value);
        match format {
            WeightFormat::F32 => data.extend(value.to_le_bytes()),
            WeightFormat::Bf16 => data.extend(bf16::from_f32(value).to_le_bytes()),
            WeightFormat::F16 => data.extend(f16::from_f32(value).to_le_bytes()),
            WeightFormat::Q8_0 | WeightFormat::Q4_0 => data.extend(scale.to_le_bytes()),
            WeightFormat::Q4_1 => {
                data.extend(scale.to_le_bytes());
                data.extend(f16::from_f32(random.number() * 0.1).to_le_bytes());
            }
        }
        let num_codes = if format == WeightFormat::Q8_0 { 32 } else { 16 };
        if format.block_len() > 1 {
            data.extend((0..num_codes).map(|_| random.bits() as u8));
        }
    }
    HostMatrix { rows, cols, format, data: data.into() }
}

/// Sequences over a shuffled block pool: `(context_len, query_len)` each.
pub(crate) fn batch(random: &mut Random, layout: KvLayout, sequences: &[(usize, usize)]) -> BatchMetadata {
    let mut free: Vec<u32> = (1..layout.num_blocks as u32).collect();
    for index in (1..free.len()).rev() {
        free.swap(index, random.below(index + 1));
    }
    let mut metadata =
        BatchMetadata { query_start_loc: vec![0], block_table_starts: vec![0], ..BatchMetadata::default() };
    for &(context_len, query_len) in sequences {
        let num_blocks = context_len.div_ceil(layout.block_size);
        let table: Vec<u32> = (0..num_blocks).map(|_| free.pop().expect("enough blocks")).collect();
        for position in context_len - query_len..context_len {
            let block = table[position / layout.block_size] as usize;
            metadata.input_tokens.push(InputToken::Known(0));
            metadata.positions.push(position as u32);
            metadata.slot_mapping.push((block * layout.block_size + position % layout.block_size) as u32);
        }
        metadata.query_start_loc.push(metadata.input_tokens.len() as u32);
        metadata.context_lens.push(context_len as u32);
        metadata.block_tables.extend(table);
        metadata.block_table_starts.push(metadata.block_tables.len() as u32);
    }
    metadata
}
