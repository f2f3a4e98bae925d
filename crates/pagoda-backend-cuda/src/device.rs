//! What [`crate::CudaBackend`] needs of a device: memory, copies, launches. The driver is one; the host shim that runs the same
//! kernels in the tests is the other.

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

/// A device's memory and its queue of work. Calls take effect in order.
pub trait Device: Send + 'static {
    /// A piece of memory, freed when dropped.
    type Memory: Memory;

    /// One line for the start-up table.
    fn describe(&self) -> String;
    /// Memory with all bytes `fill`.
    fn alloc(&mut self, num_bytes: usize, fill: u8, what: &'static str)
    -> Result<Self::Memory, BackendError>;
    /// Host to device; `bytes` may be reused when the call returns.
    fn write(&mut self, to: &Self::Memory, offset: usize, bytes: &[u8]) -> Result<(), BackendError>;
    /// Device to host, after everything that was queued before.
    fn read(&mut self, from: &Self::Memory, offset: usize, bytes: &mut [u8]) -> Result<(), BackendError>;
    /// Queues a kernel.
    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), BackendError>;
}

/// A piece of a device's memory.
pub trait Memory: Send {
    /// Where it begins, aligned to 256 bytes.
    fn address(&self) -> u64;
    /// Its size.
    fn num_bytes(&self) -> usize;
}
