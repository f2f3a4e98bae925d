//! [`DriverDevice`]: an NVIDIA GPU through its driver. One stream, on which copies and launches take effect in order.
//!
//! *Not yet run on a GPU.*

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute_enum};
use pagoda_backend::BackendError;

use crate::device::{Device, Launch, Memory};
use crate::images::image_of;
use crate::probe::{CudaUnavailable, DeviceInfo, driver_error, probe};

/// Dynamic shared memory that a kernel may have without being asked.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

/// A GPU.
pub struct DriverDevice {
    info: DeviceInfo,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<&'static str, sys::CUfunction>,
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
        Ok(DriverDevice { info, context, stream, modules: HashMap::new(), functions: HashMap::new() })
    }

    /// Bytes of its memory that nobody has taken.
    pub fn free_bytes(&self) -> Result<u64, BackendError> {
        self.make_current()?;
        let (free_bytes, _total_bytes) = result::mem_get_info().map_err(fatal)?;
        Ok(free_bytes as u64)
    }

    fn make_current(&self) -> Result<(), BackendError> {
        // SAFETY: the context is retained as long as the process lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(fatal)
    }

    /// The function of a kernel; loads its image at the first use.
    fn function(&mut self, kernel: &'static str, shared_bytes: u32) -> Result<sys::CUfunction, BackendError> {
        if let Some(function) = self.functions.get(kernel) {
            return Ok(*function);
        }
        let (file, image) =
            image_of(kernel).ok_or_else(|| BackendError::Fatal(format!("no kernel {kernel} is embedded")))?;
        let module = match self.modules.get(file) {
            Some(module) => *module,
            None => {
                // SAFETY: a fatbin that nvcc wrote, which names its own length.
                let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(fatal)?;
                self.modules.insert(file, module);
                module
            }
        };
        let name = CString::new(kernel).expect("kernel names have no 0");
        // SAFETY: the module is loaded and stays so.
        let function = unsafe { result::module::get_function(module, name) }.map_err(fatal)?;
        if shared_bytes > PLAIN_SHARED_BYTES {
            let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was just found. A kernel asks for one size always.
            unsafe { result::function::set_function_attribute(function, attribute, shared_bytes as i32) }
                .map_err(fatal)?;
        }
        self.functions.insert(kernel, function);
        Ok(function)
    }
}

/// A piece of a GPU's memory.
pub struct DriverMemory {
    address: sys::CUdeviceptr,
    num_bytes: usize,
    context: sys::CUcontext,
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
            _ => fatal(error),
        })?;
        let memory = DriverMemory { address, num_bytes, context: self.context };
        // SAFETY: just allocated with this size.
        unsafe { result::memset_d8_async(address, fill, num_bytes, self.stream) }.map_err(fatal)?;
        Ok(memory)
    }

    fn write(&mut self, to: &DriverMemory, offset: usize, bytes: &[u8]) -> Result<(), BackendError> {
        assert!(offset + bytes.len() <= to.num_bytes, "a write behind the end");
        self.make_current()?;
        // SAFETY: within the memory. From pageable memory the driver returns when it has its own copy of the bytes.
        unsafe { result::memcpy_htod_async(to.address + offset as u64, bytes, self.stream) }.map_err(fatal)
    }

    fn read(&mut self, from: &DriverMemory, offset: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        assert!(offset + bytes.len() <= from.num_bytes, "a read behind the end");
        self.make_current()?;
        // SAFETY: within the memory; `bytes` is borrowed until the stream has done everything.
        unsafe {
            result::memcpy_dtoh_async(bytes, from.address + offset as u64, self.stream).map_err(fatal)?;
            result::stream::synchronize(self.stream).map_err(fatal)
        }
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), BackendError> {
        self.make_current()?;
        let function = self.function(launch.kernel, launch.shared_bytes)?;
        // Parameters at the alignment that the kernel expects.
        let mut params = vec![0u64; launch.params.len().div_ceil(8)];
        // SAFETY: as many bytes as the vector has room for.
        unsafe {
            params
                .as_mut_ptr()
                .cast::<u8>()
                .copy_from_nonoverlapping(launch.params.as_ptr(), launch.params.len());
        }
        let [x, y, z] = launch.grid;
        let mut arguments = [params.as_mut_ptr().cast::<c_void>()];
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
        .map_err(fatal)
    }
}

fn fatal(error: DriverError) -> BackendError {
    BackendError::Fatal(driver_error(error).to_string())
}
