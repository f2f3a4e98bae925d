//! The ops on NVIDIA GPUs: kernels compiled ahead of time and embedded, the driver loaded at run time.
//!
//! Owns: the embedded kernels, their parameters and launches, what it takes to find a device. Does not know: models,
//! scheduling, text.
//!
//! The crate builds, and the binary starts, on a machine without CUDA: nothing here is linked against the driver, and without
//! nvcc at build time nothing is embedded. What is missing is a value of [`CudaUnavailable`], never a panic.
//!
//! [`CudaBackend`] is generic over [`Device`], so that the tests run it, launches and all, on a host that imitates the
//! machine (`kernels/simt`).

mod allocated;
mod attention;
mod backend;
mod batch;
mod clock;
mod copy_probe;
mod cublaslt;
mod device;
mod driver;
mod e4m3;
mod element;
mod fault;
mod graphs;
mod images;
mod inspect;
mod memory;
mod meter;
mod params;
mod pinned;
mod probe;
mod product;
mod products;
mod queue;
mod sampling;
mod staging;
mod weight;

pub use allocated::{AllocatedBytes, CountedBytes};
pub use attention::PrefillKernel;
pub use backend::{CudaBackend, LinearPolicy};
pub use batch::CudaBatch;
pub use clock::{StepPath, StepSpan};
pub use copy_probe::time_copies;
pub use cublaslt::CublasLt;
pub use device::{Device, Launch, Memory, TensorMap};
pub use driver::{DriverDevice, DriverGraph, DriverMemory, DriverMoment, MemoryMeter};
pub use e4m3::{E4M3_TOLERANCE, round_e4m3};
pub use element::Element;
pub use images::{embedded_archs, embedded_kernels};
pub use memory::{BLOCK_SIZES, CudaKvCache, CudaRope, CudaTensor, CudaVector};
pub use meter::{MeterDevice, MeterMemory};
pub use params::layout as params_layout;
pub use pinned::DriverReading;
pub use probe::{CudaUnavailable, DeviceInfo, probe};
pub use products::{Algorithm, PRODUCT_WORKSPACE_BYTES, Product, ProductLibrary, ProductShape};
pub use sampling::CudaPending;
pub use weight::CudaWeight;
