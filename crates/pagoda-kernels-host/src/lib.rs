//! Runs the CUDA kernels on the host, through the same launches as on a device.
//!
//! Owns: [`HostDevice`], a device whose memory is the process's and whose kernels are `kernels/*.cu` compiled by g++ against
//! `kernels/simt`. Does not know: what the kernels compute.

mod compile;
mod device;
mod library;
mod products;

pub use compile::{Sanitize, compile_all, compile_one};
pub use device::{HostDevice, HostGraph, HostMemory, Order};
pub use products::{Fault, HostProducts};
