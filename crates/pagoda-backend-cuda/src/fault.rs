//! Which of the driver's errors end a step, and which end the process.
//!
//! After a fault in a kernel the context is lost: every later call fails with the same error ("sticky"), and only a new process
//! helps. A refusal (no memory, a launch that asks for too much) leaves the context as it was. What is in neither list counts as
//! lost: to go on with a broken device is the worse mistake.

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;
use pagoda_backend::BackendError;

/// Refusals, after which the device works on.
const REFUSALS: [CUresult; 13] = [
    CUresult::CUDA_ERROR_OUT_OF_MEMORY,
    CUresult::CUDA_ERROR_INVALID_VALUE,
    CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
    CUresult::CUDA_ERROR_NOT_SUPPORTED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
    CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE,
];

/// A driver's error in a step.
pub(crate) fn step_error(error: DriverError) -> BackendError {
    // Not the driver's own text for it: to ask for that needs the driver, which the tests do not have.
    let name = format!("{:?}", error.0);
    if REFUSALS.contains(&error.0) { BackendError::Refused(name) } else { BackendError::Fatal(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_in_a_kernel_is_fatal_and_a_refusal_is_not() {
        let refusals = REFUSALS.map(|refusal| matches!(classify(refusal), BackendError::Refused(_)));
        assert_eq!(refusals, [true; 13]);
        for sticky in [
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
            CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        ] {
            assert!(matches!(classify(sticky), BackendError::Fatal(_)), "{sticky:?}");
        }
    }

    fn classify(result: CUresult) -> BackendError {
        step_error(DriverError(result))
    }
}
