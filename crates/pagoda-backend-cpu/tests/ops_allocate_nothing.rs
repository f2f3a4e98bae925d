//! No op of a step allocates once its buffers are there. Named exceptions: the list of results that `sample` hands over, one
//! allocation for all its rows, and the likeliest tokens of a row that reports logprobs.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pagoda_backend::{
    Activation, AddRmsNorm, Backend, BackendError, BlockCopy, Embed, GatedActivation, GatherRows, HeadLayout,
    KvLayout, Linear, PagedAttention, RmsNorm, RopeStoreKv, RopeTable, Sample, SampleRow, TokenCount,
    WeightFormat,
};
use pagoda_backend_cpu::{CpuBackend, Isa};
use support::{Random, backend, batch, matrix, tensor};

struct Counting;

static NUM_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NUM_ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counter counts the whole process.
static ONE_TEST_AT_A_TIME: Mutex<()> = Mutex::new(());

const CALLS_PER_ROUND: usize = 10;

/// Allocations of ten calls after the first one. Threads that are still starting allocate too, so the least of twenty rounds
/// counts: an op that allocates would do so in every round.
fn fewest_allocations(mut op: impl FnMut()) -> usize {
    op();
    let round = || {
        let before = NUM_ALLOCATIONS.load(Ordering::SeqCst);
        (0..CALLS_PER_ROUND).for_each(|_| op());
        NUM_ALLOCATIONS.load(Ordering::SeqCst) - before
    };
    std::iter::repeat_with(round).take(20).min().expect("there are twenty rounds")
}

#[test]
fn the_counter_counts() {
    let _alone = ONE_TEST_AT_A_TIME.lock();
    assert_eq!(fewest_allocations(|| drop(std::hint::black_box(Box::new(7)))), CALLS_PER_ROUND);
}

#[test]
fn sampling_allocates_the_list_of_its_results_and_nothing_else() {
    const VOCAB_SIZE: usize = 3000;
    let _alone = ONE_TEST_AT_A_TIME.lock();
    let mut random = Random(43);
    let mut backend = backend(Isa::detect(), 3);
    let logits: Vec<f32> = random.numbers(8 * VOCAB_SIZE).iter().map(|number| number * 8.0).collect();
    let logits = tensor(&mut backend, &logits, VOCAB_SIZE, 0);
    let counts = [TokenCount { token: 5, num_output: 2 }, TokenCount { token: 2999, num_output: 0 }];
    let mask = [0x5555_5555; VOCAB_SIZE.div_ceil(32)];
    let plain = SampleRow { temperature: 0.9, seed: 7, ..SampleRow::greedy(0) };
    let rows = [
        SampleRow::greedy(0),
        SampleRow { row: 1, ..plain },
        SampleRow { row: 2, top_k: 50, ..plain },
        SampleRow { row: 3, top_p: 0.9, ..plain },
        SampleRow { row: 4, min_p: 0.05, ..plain },
        SampleRow { row: 5, top_k: 2000, top_p: 0.99, min_p: 0.001, ..plain },
        SampleRow { row: 6, counts: &counts, repetition_penalty: 1.1, bias: &[(9, 2.0)], ..plain },
        SampleRow { row: 7, mask: Some(&mask), top_p: 0.9, ..plain },
        SampleRow { row: 7, banned: &[1, 2], sample_index: 1, ..plain },
        SampleRow { row: 7, forced: Some(3), ..plain },
    ];
    let mut sample = |rows: &[SampleRow<'_>]| {
        fewest_allocations(|| {
            let op = Sample { logits: &logits, vocab_size: VOCAB_SIZE, rows, first: 0 };
            let pending = backend.sample(op).expect("shapes fit");
            let sampled = backend.read_back(pending).expect("the CPU is done");
            assert!(sampled.len() == rows.len() && sampled.iter().all(Result::is_ok));
        })
    };
    assert_eq!(sample(&rows), CALLS_PER_ROUND);
    // The other exception: one list for each row with logprobs.
    let reporting = rows.clone().map(|row| SampleRow { num_logprobs: Some(5), ..row });
    assert_eq!(sample(&reporting), CALLS_PER_ROUND * (1 + rows.len()));
}

#[test]
fn a_forward_pass_allocates_nothing_after_the_first() {
    let _alone = ONE_TEST_AT_A_TIME.lock();
    let mut random = Random(41);
    let mut backend = backend(Isa::detect(), 3);
    let heads = HeadLayout { num_q_heads: 4, num_kv_heads: 2, head_dim: 32 };
    let layout = KvLayout { num_layers: 1, num_blocks: 40, block_size: 16, num_kv_heads: 2, head_dim: 32 };
    let sequences = [(70, 70), (33, 33), (9, 9)];
    let num_rows = 70 + 33 + 9;
    let vector = backend.upload_vector(&random.numbers(128)).unwrap();
    let table = backend.pack_weight(&[matrix(&mut random, 64, 128, WeightFormat::Q8_0)]).unwrap();
    let weight = backend.pack_weight(&[matrix(&mut random, 256, 128, WeightFormat::Q4_1)]).unwrap();
    let rope = backend.upload_rope(&RopeTable::new(&[0.5; 16], 128, 1.0)).unwrap();
    let mut kv = backend.alloc_kv(layout).unwrap();
    let mut device_batch = backend.alloc_batch(num_rows, 3, 40).unwrap();
    backend.upload_batch(&mut device_batch, &mut batch(&mut random, layout, &sequences)).unwrap();
    let mut hidden = backend.alloc(num_rows, 128).unwrap();
    let mut residual = backend.alloc(num_rows, 128).unwrap();
    let mut wide = backend.alloc(num_rows, 256).unwrap();
    let mut last = backend.alloc(3, 128).unwrap();
    let mut normed = tensor(&mut backend, &random.numbers(num_rows * 128), 128, 0);
    let mut forward = |backend: &mut CpuBackend| -> Result<(), BackendError> {
        let (eps, weight_of_norm, batch) = (1e-5, &vector, &device_batch);
        backend.copy_blocks(&mut kv, &[BlockCopy { source: 1, target: 2, num_slots: 3 }])?;
        backend.embed(Embed { batch, table: &table, scale: 1.0, out: &mut residual })?;
        backend.rms_norm(RmsNorm {
            x: &residual,
            weight: weight_of_norm,
            eps,
            num_rows,
            out: &mut normed,
        })?;
        backend.linear(Linear { x: &normed, weight: &weight, bias: None, num_rows, out: &mut wide })?;
        let qkv = &mut wide;
        backend.rope_store_kv(RopeStoreKv {
            batch,
            qkv,
            heads,
            qk_norm: None,
            rope: &rope,
            kv: &mut kv,
            layer: 0,
        })?;
        let (scale, window, softcap) = (0.2, None, None);
        let (qkv, kv, out) = (&wide, &kv, &mut hidden);
        backend.paged_attention(PagedAttention {
            batch,
            qkv,
            heads,
            kv,
            layer: 0,
            scale,
            window,
            softcap,
            out,
        })?;
        let (x, residual, out) = (&hidden, &mut residual, &mut normed);
        backend.add_rms_norm(AddRmsNorm { x, residual, weight: weight_of_norm, eps, num_rows, out })?;
        backend.linear(Linear { x: &normed, weight: &weight, bias: None, num_rows, out: &mut wide })?;
        let (gate_up, activation) = (&wide, Activation::Silu);
        backend.gated_activation(GatedActivation { gate_up, activation, num_rows, out: &mut hidden })?;
        backend.gather_rows(GatherRows { x: &hidden, rows: &[0, 1, 2], out: &mut last })
    };
    assert_eq!(fewest_allocations(|| forward(&mut backend).expect("shapes fit")), 0);
}
