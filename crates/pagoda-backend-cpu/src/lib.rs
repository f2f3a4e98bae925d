//! The ops on the CPU: a fast SIMD, multi-threaded path, and [`mod@reference`], the obvious oracle of each op.
//!
//! Owns: packed weights, the KV cache's memory, the thread pool, the kernels. Does not know: models, scheduling, text.
//!
//! The numerics law: SIMD lanes run over outputs, never over a reduction; every output is summed in index order with the
//! same accumulators whether a call has 1 row or 512; threads split outputs only. So an answer has the same bits whatever
//! else is in the batch.

mod attention;
mod backend;
mod kernels;
mod kv;
mod memory;
mod options;
mod pack;
mod pool;
pub mod reference;
mod rng;
mod sampling;
mod shared;
mod simd;

pub use backend::{CpuBackend, CpuBatch, CpuPending, CpuTensor, CpuVector};
pub use kv::CpuKvCache;
pub use options::{Arithmetic, CpuOptions, Isa};
pub use pack::CpuWeight;
