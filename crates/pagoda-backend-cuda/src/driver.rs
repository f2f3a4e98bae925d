//! [`DriverDevice`]: an NVIDIA GPU through its driver. One stream, on which copies and launches take effect in order.
//!
//! *Not yet run on a GPU.*

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;
use std::path::PathBuf;

use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute_enum};
use pagoda_backend::BackendError;

use crate::allocated::{AllocatedBytes, CountedBytes};
use crate::cublaslt::CublasLt;
use crate::device::{Device, Launch, Memory, TensorMap};
use crate::fault::step_error;
use crate::images::{image_of, images};
use crate::pinned::{DriverReading, Event, SEGMENT_BYTES, WriteRing};
use crate::probe::{CudaUnavailable, DeviceInfo, driver_error, probe};
use crate::queue::Queue;

/// Columns and rows of a box that the copy engine fetches: `BOX_COLS`, `BOX_ROWS` of kernels/include/hopper.cuh.
const BOX: [u32; 2] = [64, 16];
/// Dynamic shared memory that a kernel may have without being asked.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

/// A GPU.
pub struct DriverDevice {
    info: DeviceInfo,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<&'static str, sys::CUfunction>,
    allocated: AllocatedBytes,
    /// What is written goes through it.
    ring: WriteRing,
    /// Buffers that no reading holds.
    readings: Vec<DriverReading>,
    /// A launch's parameters at the alignment that kernels expect.
    params: Vec<u64>,
}

// SAFETY: handles of the driver, which may be used from any thread in which the context is current; every call makes it so.
unsafe impl Send for DriverDevice {}

impl DriverDevice {
    /// Opens `cuda:ordinal`.
    pub fn open(ordinal: i32) -> Result<Self, CudaUnavailable> {
        if crate::embedded_kernels().len() == 0 {
            return Err(CudaUnavailable::BuiltWithoutKernels);
        }
        let devices = probe()?;
        let last = devices.len() - 1;
        let info = devices.into_iter().find(|device| device.ordinal == ordinal);
        let info = info.ok_or(CudaUnavailable::NoSuchDevice { ordinal, last })?;
        let device = result::device::get(ordinal).map_err(driver_error)?;
        // SAFETY: the device is one of the driver's; its primary context lives as long as the process.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(driver_error)?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(driver_error)?;
        let stream = result::stream::create(StreamKind::NonBlocking).map_err(driver_error)?;
        let mut device = DriverDevice {
            info,
            context,
            stream,
            modules: HashMap::new(),
            functions: HashMap::new(),
            allocated: AllocatedBytes::default(),
            ring: WriteRing::new().map_err(driver_error)?,
            readings: Vec::new(),
            params: Vec::new(),
        };
        device.load_modules().map_err(driver_error)?;
        Ok(device)
    }

    /// Every embedded file at once. The driver may leave a kernel's code on the host until it is first launched: the reserve
    /// of the memory budget has room for that.
    fn load_modules(&mut self) -> Result<(), DriverError> {
        for (file, image) in images() {
            // SAFETY: a fatbin that nvcc wrote, which names its own length, aligned as its fields are; the driver only reads it.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
            self.modules.insert(file, module);
        }
        Ok(())
    }

    /// The device's number, name and size.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The `N` of `cuda:N`.
    pub fn ordinal(&self) -> i32 {
        self.info.ordinal
    }

    /// NVIDIA's library of products on this device's queue: the first of `files` that can be loaded, or what the system's loader
    /// finds. Says why there is none.
    pub fn open_products(&self, files: &[PathBuf]) -> Result<CublasLt, String> {
        CublasLt::open(files, Queue { context: self.context, stream: self.stream }, &self.info.name)
    }

    /// Bytes of its memory that nobody has taken.
    pub fn free_bytes(&self) -> Result<u64, BackendError> {
        self.make_current()?;
        let (free_bytes, _total_bytes) = result::mem_get_info().map_err(step_error)?;
        Ok(free_bytes as u64)
    }

    /// For others to watch its memory while it works.
    pub fn memory_meter(&self) -> MemoryMeter {
        MemoryMeter { context: self.context }
    }

    fn make_current(&self) -> Result<(), BackendError> {
        // SAFETY: the context is retained as long as the process lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(step_error)
    }

    /// The function of a kernel.
    fn function(&mut self, kernel: &'static str, shared_bytes: u32) -> Result<sys::CUfunction, BackendError> {
        if let Some(function) = self.functions.get(kernel) {
            return Ok(*function);
        }
        let embedded = image_of(kernel).and_then(|(file, _)| self.modules.get(file));
        let module =
            *embedded.ok_or_else(|| BackendError::Fatal(format!("no kernel {kernel} is embedded")))?;
        let name = CString::new(kernel).expect("kernel names have no 0");
        // SAFETY: the module is loaded and stays so.
        let function = unsafe { result::module::get_function(module, name) }.map_err(step_error)?;
        if shared_bytes > PLAIN_SHARED_BYTES {
            let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was just found. A kernel asks for one size always.
            unsafe { result::function::set_function_attribute(function, attribute, shared_bytes as i32) }
                .map_err(step_error)?;
        }
        self.functions.insert(kernel, function);
        Ok(function)
    }
}

/// Tells a GPU's free memory to whoever asks, on any thread.
#[derive(Debug)]
pub struct MemoryMeter {
    context: sys::CUcontext,
}

// SAFETY: a handle of the driver, which may be used from any thread in which the context is current.
unsafe impl Send for MemoryMeter {}
// SAFETY: as above.
unsafe impl Sync for MemoryMeter {}

impl MemoryMeter {
    /// Bytes that nobody has taken; a device that is lost does not say.
    pub fn free_bytes(&self) -> Option<u64> {
        // SAFETY: the context is retained as long as the process lives.
        unsafe { result::ctx::set_current(self.context) }.ok()?;
        result::mem_get_info().ok().map(|(free_bytes, _total_bytes)| free_bytes as u64)
    }
}

/// A piece of a GPU's memory.
pub struct DriverMemory {
    address: sys::CUdeviceptr,
    num_bytes: usize,
    context: sys::CUcontext,
    _counted: CountedBytes,
}

// SAFETY: an address and a handle; the driver may be asked to free it from any thread.
unsafe impl Send for DriverMemory {}

impl Memory for DriverMemory {
    fn address(&self) -> u64 {
        self.address
    }

    fn num_bytes(&self) -> usize {
        self.num_bytes
    }
}

impl Drop for DriverMemory {
    fn drop(&mut self) {
        // SAFETY: the context lives as long as the process; the memory is freed once, after the work that uses it (the driver
        // waits). A device that is lost cannot free: there is nobody to tell.
        unsafe {
            if result::ctx::set_current(self.context).is_ok() {
                let _ = result::free_sync(self.address);
            }
        }
    }
}

impl Device for DriverDevice {
    type Memory = DriverMemory;
    type Reading = DriverReading;
    type Graph = DriverGraph;
    type Moment = DriverMoment;

    fn describe(&self) -> String {
        let (major, minor) = self.info.compute_capability;
        format!("cuda:{} {}, compute capability {major}.{minor}", self.info.ordinal, self.info.name)
    }

    fn alloc(
        &mut self,
        num_bytes: usize,
        fill: u8,
        what: &'static str,
    ) -> Result<DriverMemory, BackendError> {
        self.make_current()?;
        // SAFETY: the context is current.
        let address = unsafe { result::malloc_sync(num_bytes) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                BackendError::OutOfMemory { what, needed_bytes: num_bytes as u64 }
            }
            _ => step_error(error),
        })?;
        let _counted = self.allocated.count(num_bytes);
        let memory = DriverMemory { address, num_bytes, context: self.context, _counted };
        // SAFETY: just allocated with this size.
        unsafe { result::memset_d8_async(address, fill, num_bytes, self.stream) }.map_err(step_error)?;
        Ok(memory)
    }

    fn allocated_bytes(&self) -> u64 {
        self.allocated.now()
    }

    fn write_with(
        &mut self,
        to: &DriverMemory,
        offset: usize,
        num_bytes: usize,
        fill: &mut dyn FnMut(usize, &mut [u8]),
    ) -> Result<(), BackendError> {
        assert!(offset + num_bytes <= to.num_bytes, "a write behind the end");
        self.make_current()?;
        for at in (0..num_bytes).step_by(SEGMENT_BYTES) {
            let piece =
                self.ring.take((num_bytes - at).min(SEGMENT_BYTES), self.stream).map_err(step_error)?;
            fill(at, piece);
            // SAFETY: within the memory; the ring hands the piece out again only when this copy has ended.
            unsafe { result::memcpy_htod_async(to.address + (offset + at) as u64, &*piece, self.stream) }
                .map_err(step_error)?;
        }
        Ok(())
    }

    fn reserve_readings(&mut self, num_readings: usize, num_bytes: usize) -> Result<(), BackendError> {
        self.make_current()?;
        for _ in 0..num_readings {
            self.readings.push(DriverReading::new(num_bytes).map_err(step_error)?);
        }
        Ok(())
    }

    fn start_read(
        &mut self,
        from: &DriverMemory,
        offset: usize,
        num_bytes: usize,
    ) -> Result<DriverReading, BackendError> {
        assert!(offset + num_bytes <= from.num_bytes, "a read behind the end");
        self.make_current()?;
        let is_large_enough = |reading: &DriverReading| reading.buffer.num_bytes() >= num_bytes;
        let mut reading = match self.readings.iter().position(is_large_enough) {
            Some(index) => self.readings.swap_remove(index),
            None => DriverReading::new(num_bytes).map_err(step_error)?,
        };
        reading.num_bytes = num_bytes;
        let target = &mut reading.buffer.bytes_mut()[..num_bytes];
        // SAFETY: within the memory; the buffer is in the reading until the event has passed.
        unsafe { result::memcpy_dtoh_async(target, from.address + offset as u64, self.stream) }
            .map_err(step_error)?;
        reading.event.record(self.stream).map_err(step_error)?;
        Ok(reading)
    }

    fn finish_read(&mut self, reading: DriverReading, bytes: &mut [u8]) -> Result<(), BackendError> {
        self.make_current()?;
        reading.event.wait().map_err(step_error)?;
        bytes.copy_from_slice(&reading.buffer.bytes()[..reading.num_bytes]);
        self.readings.push(reading);
        Ok(())
    }

    fn tensor_map(
        &mut self,
        memory: &DriverMemory,
        num_rows: usize,
        num_cols: usize,
    ) -> Result<TensorMap, BackendError> {
        if self.info.compute_capability != (9, 0) {
            return Err(BackendError::Unsupported(format!("wgmma on {}", self.describe())));
        }
        if num_rows > i32::MAX as usize {
            return Err(BackendError::Unsupported(format!("a matrix of {num_rows} rows for the TMA")));
        }
        assert!(num_rows * num_cols * 2 <= memory.num_bytes, "a matrix beyond its memory");
        self.make_current()?;
        let mut map = MaybeUninit::<sys::CUtensorMap>::uninit();
        let (dims, strides) = ([num_cols as u64, num_rows as u64], [num_cols as u64 * 2]);
        // SAFETY: rank 2: two dimensions, boxes and steps, one stride, all of which outlive the call; the address is the memory's.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
                2,
                memory.address as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                BOX.as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(step_error)?;
        // SAFETY: the driver has filled it.
        Ok(unsafe { map.assume_init() }.opaque)
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), BackendError> {
        self.make_current()?;
        let function = self.function(launch.kernel, launch.shared_bytes)?;
        self.params.clear();
        self.params.resize(launch.params.len().div_ceil(8), 0);
        // SAFETY: as many bytes as the vector has room for.
        unsafe {
            let params = self.params.as_mut_ptr().cast::<u8>();
            params.copy_from_nonoverlapping(launch.params.as_ptr(), launch.params.len());
        }
        let [x, y, z] = launch.grid;
        let mut arguments = [self.params.as_mut_ptr().cast::<c_void>()];
        // SAFETY: the kernel has one parameter of this layout (a test compares it), which the driver copies before it returns;
        // the addresses in it are of memory that the backend holds.
        unsafe {
            let block = (launch.num_threads, 1, 1);
            result::launch_kernel(
                function,
                (x, y, z),
                block,
                launch.shared_bytes,
                self.stream,
                &mut arguments,
            )
        }
        .map_err(step_error)
    }

    fn begin_capture(&mut self) -> Result<(), BackendError> {
        self.make_current()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(step_error)
    }

    fn end_capture(&mut self) -> Result<DriverGraph, BackendError> {
        self.make_current()?;
        // SAFETY: the stream is capturing; the graph is destroyed once it has been made executable, which copies it.
        unsafe {
            let graph = result::stream::end_capture(self.stream).map_err(step_error)?;
            let flags = sys::CUgraphInstantiate_flags(0);
            let executable = result::graph::instantiate(graph, flags);
            let _ = result::graph::destroy(graph);
            let executable = executable.map_err(step_error)?;
            Ok(DriverGraph { executable, context: self.context })
        }
    }

    fn replay(&mut self, graph: &DriverGraph) -> Result<(), BackendError> {
        self.make_current()?;
        // SAFETY: graph and stream live; the addresses in the graph are of memory that the backend holds.
        unsafe { result::graph::launch(graph.executable, self.stream) }.map_err(step_error)
    }

    fn moment(&mut self) -> Result<DriverMoment, BackendError> {
        self.make_current()?;
        let event = Event::timed().map_err(step_error)?;
        event.record(self.stream).map_err(step_error)?;
        Ok(DriverMoment { event })
    }

    fn seconds_between(&mut self, from: &DriverMoment, to: &DriverMoment) -> Result<f64, BackendError> {
        self.make_current()?;
        to.event.wait().map_err(step_error)?;
        to.event.seconds_since(&from.event).map_err(step_error)
    }
}

/// A moment in a stream's work, as the GPU's clock has it.
pub struct DriverMoment {
    event: Event,
}

/// Captured launches.
pub struct DriverGraph {
    executable: sys::CUgraphExec,
    context: sys::CUcontext,
}

// SAFETY: a handle of the driver, which may be used from any thread in which the context is current.
unsafe impl Send for DriverGraph {}

impl Drop for DriverGraph {
    fn drop(&mut self) {
        // SAFETY: the context lives as long as the process; the graph is destroyed once.
        unsafe {
            if result::ctx::set_current(self.context).is_ok() {
                let _ = result::graph::exec_destroy(self.executable);
            }
        }
    }
}
