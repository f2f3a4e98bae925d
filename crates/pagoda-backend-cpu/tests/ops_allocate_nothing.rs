//! No op of the forward pass allocates once its buffers are there.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use pagoda_backend::{
    Activation, AddRmsNorm, Backend, BackendError, BlockCopy, Embed, GatedActivation, GatherRows, HeadLayout,
    KvLayout, Linear, PagedAttention, RmsNorm, RopeStoreKv, RopeTable, WeightFormat,
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

#[test]
fn a_forward_pass_allocates_nothing_after_the_first() {
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
    forward(&mut backend).unwrap();
    // Threads that are still starting allocate; an op that does would do so in every round.
    let round = |forward: &mut dyn FnMut()| {
        let before = NUM_ALLOCATIONS.load(Ordering::SeqCst);
        (0..10).for_each(|_| forward());
        NUM_ALLOCATIONS.load(Ordering::SeqCst) - before
    };
    let counts: Vec<usize> =
        (0..20).map(|_| round(&mut || forward(&mut backend).expect("shapes fit"))).collect();
    assert!(counts.contains(&0), "allocations in each round: {counts:?}");
    let before = NUM_ALLOCATIONS.load(Ordering::SeqCst);
    // The counter counts.
    drop(backend.alloc(1, 1).unwrap());
    assert!(NUM_ALLOCATIONS.load(Ordering::SeqCst) > before);
}
