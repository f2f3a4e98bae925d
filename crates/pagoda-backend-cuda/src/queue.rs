//! [`Queue`]: where libraries queue their work beside the kernels.

use cudarc::driver::result;
use cudarc::driver::sys;
use pagoda_backend::BackendError;

use crate::fault::step_error;

/// A stream, and the context that must be current where it is used. Both live as long as the device.
#[derive(Clone, Copy)]
pub(crate) struct Queue {
    pub(crate) context: sys::CUcontext,
    pub(crate) stream: sys::CUstream,
}

// SAFETY: handles of the driver, which may be used from any thread in which the context is current.
unsafe impl Send for Queue {}

impl Queue {
    pub(crate) fn make_current(self) -> Result<(), BackendError> {
        // SAFETY: the context was retained and is never released.
        unsafe { result::ctx::set_current(self.context) }.map_err(step_error)
    }
}
