//! Speed of `linear` per weight format and row count, next to what this machine can do in the same minute.
//!
//! `cargo run --profile ci -p pagoda-backend-cpu --example linear_bench [threads] [int16] [formats]`
//!
//! Times are the best layer of many: what the machine can do when nobody takes it away; `cpu us` is the mean CPU time per
//! thread and layer, which a busy neighbour lengthens less. The probes come first and last: reading 128 MiB with every thread, and independent multiply-adds in registers. GB/s
//! counts the weights' packed bytes, GFLOP/s two per multiply-add.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pagoda_backend::{Backend, HostMatrix, Linear, WeightFormat};
use pagoda_backend_cpu::{Arithmetic, CpuBackend, CpuOptions};

/// Matrices of one layer of a 135M model, `(rows, cols)`; each set is repeated so that no cache holds it.
const SHAPES: [(usize, usize); 4] = [(960, 576), (576, 576), (3072, 576), (576, 1536)];
const ROW_COUNTS: [usize; 7] = [1, 2, 4, 8, 32, 128, 512];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let default_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let num_threads = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default_threads);
    let mut only: Vec<String> = arguments.collect();
    let is_int16 = only.first().is_some_and(|first| first == "int16");
    only.drain(..usize::from(is_int16));
    let arithmetic = if is_int16 { Arithmetic::Int16 } else { Arithmetic::F32 };
    let mut backend = CpuBackend::new(CpuOptions { num_threads, isa: None })
        .expect("the CPU has what it detects")
        .with_arithmetic(arithmetic);
    println!("{}", backend.describe());
    probe(num_threads);
    println!(
        "{:>6} {:>5} {:>10} {:>10} {:>9} {:>9}",
        "format", "rows", "us/layer", "cpu us", "GB/s", "GFLOP/s"
    );
    for format in WeightFormat::ALL {
        if only.is_empty() || only.contains(&format.to_string()) {
            measure(&mut backend, format, num_threads);
        }
    }
    probe(num_threads);
}

fn measure(backend: &mut CpuBackend, format: WeightFormat, num_threads: usize) {
    let layer_bytes: usize = SHAPES.iter().map(|&(rows, cols)| rows * format.row_bytes(cols)).sum();
    let num_layers = (96 << 20) / layer_bytes;
    let layers: Vec<Vec<_>> = (0..num_layers)
        .map(|_| {
            SHAPES
                .map(|(rows, cols)| backend.pack_weight(&[matrix(rows, cols, format)]).expect("memory"))
                .into()
        })
        .collect();
    for num_rows in ROW_COUNTS {
        let mut tensors: Vec<_> = SHAPES
            .iter()
            .map(|&(rows, cols)| {
                let mut x = backend.alloc(num_rows, cols).expect("memory");
                (0..num_rows).for_each(|row| x.row_mut(row).fill(0.5));
                (x, backend.alloc(num_rows, rows).expect("memory"))
            })
            .collect();
        let mut best = Duration::MAX;
        let mut num_done = 0;
        let (start, cpu_start) = (Instant::now(), cpu_seconds());
        while start.elapsed() < Duration::from_millis(400) {
            for weights in &layers {
                let layer = Instant::now();
                for (weight, (x, out)) in weights.iter().zip(&mut tensors) {
                    backend.linear(Linear { x, weight, bias: None, num_rows, out }).expect("shapes fit");
                }
                best = best.min(layer.elapsed());
                num_done += num_threads;
            }
        }
        let cpu = (cpu_seconds() - cpu_start) / num_done as f64;
        let seconds = best.as_secs_f64();
        let num_weights: usize = SHAPES.iter().map(|&(rows, cols)| rows * cols).sum();
        println!(
            "{format:>6} {num_rows:>5} {:>10.1} {:>10.1} {:>9.1} {:>9.1}",
            seconds * 1e6,
            cpu * 1e6,
            layer_bytes as f64 / seconds / 1e9,
            2.0 * num_weights as f64 * num_rows as f64 / seconds / 1e9
        );
    }
}

/// CPU time of all threads of the process.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock writes into the place given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn matrix(rows: usize, cols: usize, format: WeightFormat) -> HostMatrix<'static> {
    // 0x3c is an ordinary exponent in every float format, so that nothing runs on denormals.
    HostMatrix { rows, cols, format, data: vec![0x3c; rows * format.row_bytes(cols)].into() }
}

fn probe(num_threads: usize) {
    let words = vec![1u64; (128 << 20) / 8];
    let chunks: Vec<&[u64]> = words.chunks(words.len() / num_threads).collect();
    let read = best_of(5, || {
        on_threads(num_threads, |thread| {
            let mut sums = [0u64; 16];
            for part in chunks[thread].chunks_exact(16) {
                for (sum, word) in sums.iter_mut().zip(part) {
                    *sum ^= word;
                }
            }
            black_box(sums);
        });
    });
    const ROUNDS: usize = 1_000_000;
    let multiply = best_of(40, || on_threads(num_threads, |_| multiply_adds(ROUNDS)));
    println!(
        "probe: read {:.1} GB/s, multiply-add {:.0} GFLOP/s",
        (words.len() * 8) as f64 / read / 1e9,
        (num_threads * ROUNDS * FLOPS_PER_ROUND) as f64 / multiply / 1e9
    );
}

fn best_of(count: usize, mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..count).map(time).fold(f64::INFINITY, f64::min)
}

fn on_threads(num_threads: usize, work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..num_threads {
            let work = &work;
            scope.spawn(move || work(thread));
        }
    });
}

const FLOPS_PER_ROUND: usize = 10 * 8 * 2;

#[cfg(target_arch = "x86_64")]
fn multiply_adds(rounds: usize) {
    #[target_feature(enable = "avx2,fma")]
    fn run(rounds: usize) {
        use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
        let mut sums = [b; 10];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the features were just detected.
        unsafe { run(rounds) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_adds(_rounds: usize) {}
