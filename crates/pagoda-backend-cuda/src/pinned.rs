//! Page-locked host memory, which a GPU copies from and to while the host goes on: a ring for what is written, buffers for what
//! is read back.
//!
//! *Not yet run on a GPU.*

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

/// A segment of the ring. Weights pass through in pieces of this size.
pub(crate) const SEGMENT_BYTES: usize = 4 << 20;
/// One is filled while others are on their way.
const NUM_SEGMENTS: usize = 4;

/// Page-locked memory.
pub(crate) struct Pinned {
    address: *mut u8,
    num_bytes: usize,
}

// SAFETY: owned memory, which any one thread may use.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Ordinary memory (not write-combined), so that reading it back is as fast as writing. The context must be current.
    pub(crate) fn new(num_bytes: usize) -> Result<Self, DriverError> {
        // SAFETY: the context is current; the memory is filled before it is read.
        let address = unsafe { result::malloc_host(num_bytes, 0)? }.cast::<u8>();
        // SAFETY: just allocated with this size.
        unsafe { address.write_bytes(0, num_bytes) };
        Ok(Pinned { address, num_bytes })
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this size and filled; callers read only what no copy is writing.
        unsafe { std::slice::from_raw_parts(self.address, self.num_bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.num_bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by the driver and freed once. A lost device cannot free: there is nobody to tell.
        unsafe {
            let _ = result::free_host(self.address.cast());
        }
    }
}

/// A moment in a stream's work.
pub(crate) struct Event(sys::CUevent);

// SAFETY: a handle of the driver, which may be used from any thread in which the context is current.
unsafe impl Send for Event {}

impl Event {
    /// One that has not been recorded counts as past.
    pub(crate) fn new() -> Result<Self, DriverError> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map(Event)
    }

    /// One that keeps the time at which it passed.
    pub(crate) fn timed() -> Result<Self, DriverError> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map(Event)
    }

    /// Seconds from `earlier` to this one; both are timed and have passed.
    pub(crate) fn seconds_since(&self, earlier: &Event) -> Result<f64, DriverError> {
        // SAFETY: both events live.
        unsafe { result::event::elapsed(earlier.0, self.0) }.map(|milliseconds| f64::from(milliseconds) / 1e3)
    }

    /// Means the end of everything queued so far.
    pub(crate) fn record(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: event and stream live.
        unsafe { result::event::record(self.0, stream) }
    }

    pub(crate) fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.0) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by the driver and destroyed once.
        unsafe {
            let _ = result::event::destroy(self.0);
        }
    }
}

/// Memory that is written from front to back and then again; a segment is written only when the copies out of it have ended.
pub(crate) struct WriteRing {
    segments: Vec<(Pinned, Event)>,
    current: usize,
    /// Written bytes of the current segment.
    used: usize,
}

impl WriteRing {
    pub(crate) fn new() -> Result<Self, DriverError> {
        let segment = |_| Ok((Pinned::new(SEGMENT_BYTES)?, Event::new()?));
        Ok(WriteRing {
            segments: (0..NUM_SEGMENTS).map(segment).collect::<Result<_, _>>()?,
            current: 0,
            used: 0,
        })
    }

    /// Room for `num_bytes`, at most [`SEGMENT_BYTES`], that no copy reads any more.
    pub(crate) fn take(&mut self, num_bytes: usize, stream: sys::CUstream) -> Result<&mut [u8], DriverError> {
        assert!(num_bytes <= SEGMENT_BYTES, "{num_bytes} bytes of a segment");
        if self.used + num_bytes > SEGMENT_BYTES {
            self.segments[self.current].1.record(stream)?;
            self.current = (self.current + 1) % self.segments.len();
            self.segments[self.current].1.wait()?;
            self.used = 0;
        }
        let start = self.used;
        self.used = (start + num_bytes).next_multiple_of(16);
        Ok(&mut self.segments[self.current].0.bytes_mut()[start..start + num_bytes])
    }
}

/// Bytes on their way to the host.
pub struct DriverReading {
    pub(crate) buffer: Pinned,
    pub(crate) event: Event,
    pub(crate) num_bytes: usize,
}

impl DriverReading {
    /// One that has not begun, with room for `num_bytes`. The context must be current.
    pub(crate) fn new(num_bytes: usize) -> Result<Self, DriverError> {
        let buffer = Pinned::new(num_bytes.next_power_of_two().max(4096))?;
        Ok(DriverReading { buffer, event: Event::new()?, num_bytes: 0 })
    }
}
