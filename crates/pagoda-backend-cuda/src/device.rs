//! What [`crate::CudaBackend`] needs of a device: memory, copies, launches, captures. The driver is one; the host shim that runs
//! the same kernels in the tests is another; [`crate::MeterDevice`], which only counts, the third.

use pagoda_backend::BackendError;

/// A launch: blocks in `grid`, `num_threads` threads each, all in one dimension.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name in its source.
    pub kernel: &'static str,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub num_threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The bytes of the kernel's one parameter.
    pub params: &'a [u8],
}

/// A matrix as the copy engine sees it; a kernel gets it by value.
pub type TensorMap = [u64; 16];

/// A device's memory and its queue of work. Calls take effect in order.
pub trait Device: Send + 'static {
    /// A piece of memory, freed when dropped.
    type Memory: Memory;
    /// Bytes on their way to the host.
    type Reading: Send;
    /// Captured launches.
    type Graph: Send;
    /// A moment in its work.
    type Moment: Send;

    /// One line for the start-up table.
    fn describe(&self) -> String;
    /// Memory with all bytes `fill`.
    fn alloc(&mut self, num_bytes: usize, fill: u8, what: &'static str)
    -> Result<Self::Memory, BackendError>;
    /// Bytes of the memory that has been allocated and not dropped.
    fn allocated_bytes(&self) -> u64;
    /// Host to device; `bytes` may be reused when the call returns.
    fn write(&mut self, to: &Self::Memory, offset: usize, bytes: &[u8]) -> Result<(), BackendError> {
        self.write_with(to, offset, bytes.len(), &mut |at, piece| {
            piece.copy_from_slice(&bytes[at..at + piece.len()]);
        })
    }
    /// Host to device, in pieces that `fill(first byte, piece)` writes one after the other, straight into memory that the
    /// device fetches them from: while it does, the next piece is filled. Pieces begin at multiples of 4 KiB.
    fn write_with(
        &mut self,
        to: &Self::Memory,
        offset: usize,
        num_bytes: usize,
        fill: &mut dyn FnMut(usize, &mut [u8]),
    ) -> Result<(), BackendError>;
    /// Makes ready for so many readings at the same time of at most `num_bytes` each, so that they allocate nothing.
    fn reserve_readings(&mut self, num_readings: usize, num_bytes: usize) -> Result<(), BackendError>;
    /// Starts to copy to the host what is there after everything that was queued before. Does not wait.
    fn start_read(
        &mut self,
        from: &Self::Memory,
        offset: usize,
        num_bytes: usize,
    ) -> Result<Self::Reading, BackendError>;
    /// Waits for the bytes.
    fn finish_read(&mut self, reading: Self::Reading, bytes: &mut [u8]) -> Result<(), BackendError>;
    /// Device to host, after everything that was queued before.
    fn read(&mut self, from: &Self::Memory, offset: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        let reading = self.start_read(from, offset, bytes.len())?;
        self.finish_read(reading, bytes)
    }
    /// What the device's copy engine (TMA) must know to fetch boxes of 16 rows and 64 columns of the matrix
    /// `[num_rows, num_cols]` of 2-byte numbers that is `memory`.
    fn tensor_map(
        &mut self,
        memory: &Self::Memory,
        num_rows: usize,
        num_cols: usize,
    ) -> Result<TensorMap, BackendError>;
    /// Queues a kernel.
    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), BackendError>;
    /// From now on launches are recorded instead of queued, until [`Device::end_capture`]. Nothing else may be called.
    fn begin_capture(&mut self) -> Result<(), BackendError>;
    /// What was recorded.
    fn end_capture(&mut self) -> Result<Self::Graph, BackendError>;
    /// Queues the launches of a capture, with the parameters they had.
    fn replay(&mut self, graph: &Self::Graph) -> Result<(), BackendError>;
    /// The moment at which everything queued so far has ended. Asked for only by what measures.
    fn moment(&mut self) -> Result<Self::Moment, BackendError>;
    /// Seconds from a moment to a later one. Waits for both.
    fn seconds_between(&mut self, from: &Self::Moment, to: &Self::Moment) -> Result<f64, BackendError>;
}

/// A piece of a device's memory.
pub trait Memory: Send {
    /// Where it begins, aligned to 256 bytes.
    fn address(&self) -> u64;
    /// Its size.
    fn num_bytes(&self) -> usize;
}
