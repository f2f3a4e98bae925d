//! Which devices there are. Loads the driver's library, and says in one line what is missing if it cannot.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute};

/// The first driver of CUDA 13, in the numbers of `cuDriverGetVersion`.
const MIN_DRIVER: i32 = 13_000;

/// Why there is no device to run on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaUnavailable {
    /// The build found no nvcc.
    #[error("built without GPU kernels: run scripts/install_nvcc.sh and build again")]
    BuiltWithoutKernels,
    /// No `libcuda.so.1` can be loaded.
    #[error("no NVIDIA driver on this machine")]
    NoDriver,
    /// The driver is older than the kernels.
    #[error("the NVIDIA driver is for CUDA {major}.{minor}; CUDA 13 needs driver 580 or newer")]
    DriverTooOld {
        /// CUDA version that the driver speaks.
        major: i32,
        /// CUDA version that the driver speaks.
        minor: i32,
    },
    /// A driver, but nothing to drive.
    #[error("the NVIDIA driver sees no device")]
    NoDevice,
    /// Another number than the devices have.
    #[error("there is no cuda:{ordinal}: this machine has cuda:0 to cuda:{last}")]
    NoSuchDevice {
        /// The one asked for.
        ordinal: i32,
        /// The last one there is.
        last: usize,
    },
    /// The driver refused.
    #[error("the NVIDIA driver failed: {0}")]
    Driver(String),
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The `N` of `cuda:N`.
    pub ordinal: i32,
    /// The maker's name.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub num_multiprocessors: i32,
    /// Bytes of memory.
    pub total_bytes: u64,
    /// Major and minor version of the CUDA that the driver speaks.
    pub driver_version: (i32, i32),
}

/// The devices of this machine. Never panics, whatever is missing.
pub fn probe() -> Result<Vec<DeviceInfo>, CudaUnavailable> {
    // SAFETY: loads a library and looks whether it is there; its initialisers are the driver's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaUnavailable::NoDriver);
    }
    result::init().map_err(|error| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => CudaUnavailable::NoDevice,
        _ => driver_error(error),
    })?;
    let mut version = 0;
    // SAFETY: the library is there and initialised; `version` outlives the call.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(driver_error)?;
    if version < MIN_DRIVER {
        let (major, minor) = version_parts(version);
        return Err(CudaUnavailable::DriverTooOld { major, minor });
    }
    let count = result::device::get_count().map_err(driver_error)?;
    if count == 0 {
        return Err(CudaUnavailable::NoDevice);
    }
    (0..count).map(|ordinal| describe(ordinal, version_parts(version)).map_err(driver_error)).collect()
}

/// 13010 is 13.1.
fn version_parts(version: i32) -> (i32, i32) {
    (version / 1000, version % 1000 / 10)
}

fn describe(ordinal: i32, driver_version: (i32, i32)) -> Result<DeviceInfo, DriverError> {
    let device = result::device::get(ordinal)?;
    // SAFETY: `device` is a device that the driver just gave us.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    Ok(DeviceInfo {
        ordinal,
        name: result::device::get_name(device)?,
        compute_capability: (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: as above.
        total_bytes: unsafe { result::device::total_mem(device)? } as u64,
        driver_version,
    })
}

pub(crate) fn driver_error(error: DriverError) -> CudaUnavailable {
    let name =
        error.error_name().map_or_else(|_| format!("{:?}", error.0), |name| name.to_string_lossy().into());
    CudaUnavailable::Driver(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_gets_a_reason_and_no_panic() {
        match probe() {
            Ok(devices) => assert!(!devices.is_empty()),
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    }
}
