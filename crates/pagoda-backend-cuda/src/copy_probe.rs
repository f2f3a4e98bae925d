//! How fast a device copies its own memory: what every figure about bandwidth is stated against.
//!
//! *Not yet run on a GPU.*

use std::time::{Duration, Instant};

use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::result::{self, DriverError};

use crate::probe::{CudaUnavailable, driver_error, probe};

/// Time of `num_copies` copies of `num_bytes` within the memory of `cuda:ordinal`, after two that are not counted. Each reads
/// and writes as many bytes. Takes twice the bytes and gives them back.
pub fn time_copies(ordinal: i32, num_bytes: usize, num_copies: u32) -> Result<Duration, CudaUnavailable> {
    probe()?;
    run(ordinal, num_bytes, num_copies).map_err(driver_error)
}

fn run(ordinal: i32, num_bytes: usize, num_copies: u32) -> Result<Duration, DriverError> {
    let device = result::device::get(ordinal)?;
    // SAFETY: the device is one of the driver's; its primary context lives as long as the process. The stream and both pieces
    // of memory are made here, used within their sizes, and freed once, after the work that uses them.
    unsafe {
        let context = result::primary_ctx::retain(device)?;
        result::ctx::set_current(context)?;
        let stream = result::stream::create(StreamKind::NonBlocking)?;
        let from = result::malloc_sync(num_bytes)?;
        let to = result::malloc_sync(num_bytes)?;
        result::memset_d8_async(from, 0x5a, num_bytes, stream)?;
        let copy = || result::memcpy_dtod_async(to, from, num_bytes, stream);
        copy()?;
        copy()?;
        result::stream::synchronize(stream)?;
        let start = Instant::now();
        for _ in 0..num_copies {
            copy()?;
        }
        result::stream::synchronize(stream)?;
        let elapsed = start.elapsed();
        result::free_sync(from)?;
        result::free_sync(to)?;
        result::stream::destroy(stream)?;
        Ok(elapsed)
    }
}
