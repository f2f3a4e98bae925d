//! The functions of `libcublasLt` that are used, looked up one by one, so that a library without one of them is a sentence.
//!
//! Types and numbers as in `cublasLt.h`, `library_types.h` and `cublas_api.h` of CUDA 12 and 13, which agree on these.

use std::ffi::{CStr, CString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Handles and descriptors.
pub(super) type Opaque = *mut c_void;
/// `cublasStatus_t`; 0 is success.
pub(super) type Status = c_int;

pub(super) const COMPUTE_32F: c_int = 68;
pub(super) const TYPE_F32: c_int = 0;
pub(super) const TYPE_F16: c_int = 2;
pub(super) const TYPE_BF16: c_int = 14;
/// Of a product.
pub(super) const DESC_TRANSPOSE_A: c_int = 3;
pub(super) const DESC_EPILOGUE: c_int = 7;
pub(super) const DESC_BIAS_POINTER: c_int = 8;
pub(super) const TRANSPOSED: i32 = 1;
pub(super) const EPILOGUE_BIAS: u32 = 4;
/// Of a matrix.
pub(super) const LAYOUT_COLS: c_int = 3;
/// Of the search for algorithms.
pub(super) const SEARCH_WORKSPACE_BYTES: c_int = 1;
pub(super) const SEARCH_REDUCTIONS: c_int = 3;
/// Parts of sums meet in the workspace, as f32: neither rounded between nor in the order of their arrival.
pub(super) const REDUCTION_IN_F32: u32 = 2;

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Found {
    pub(super) algorithm: [u64; 8],
    pub(super) workspace_bytes: usize,
    pub(super) status: Status,
    pub(super) waves: f32,
    reserved: [c_int; 4],
}

macro_rules! symbols {
    ($($field:ident = $name:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// Their addresses.
        #[derive(Clone, Copy)]
        pub(super) struct Symbols {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Symbols {
            /// Loads a file or, of a bare name, what the loader finds under it. It stays loaded.
            pub(super) fn load(path: &Path) -> Result<Self, String> {
                let library = open(path)?;
                Ok(Symbols {
                    $(
                        // SAFETY: a function pointer is as large as an address; the header declares this signature.
                        $field: unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $result>(
                                symbol(library, $name)?,
                            )
                        },
                    )*
                })
            }
        }
    };
}

symbols! {
    version = c"cublasLtGetVersion": fn() -> usize;
    create = c"cublasLtCreate": fn(*mut Opaque) -> Status;
    destroy = c"cublasLtDestroy": fn(Opaque) -> Status;
    // Handle, product, alpha, A, layout, B, layout, beta, C, layout, D, layout, algorithm, workspace and its size, stream.
    multiply = c"cublasLtMatmul": fn(
        Opaque, Opaque, *const c_void, *const c_void, Opaque, *const c_void, Opaque, *const c_void, *const c_void, Opaque,
        *mut c_void, Opaque, *const u64, *mut c_void, usize, *mut c_void
    ) -> Status;
    // Handle, product, layouts of A, B, C and D, search, how many at most, results, how many.
    search = c"cublasLtMatmulAlgoGetHeuristic": fn(
        Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut Found, *mut c_int
    ) -> Status;
    // Handle, product, layouts of A, B, C and D, algorithm, result.
    check = c"cublasLtMatmulAlgoCheck": fn(
        Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, *const u64, *mut Found
    ) -> Status;
    create_desc = c"cublasLtMatmulDescCreate": fn(*mut Opaque, c_int, c_int) -> Status;
    set_desc = c"cublasLtMatmulDescSetAttribute": fn(Opaque, c_int, *const c_void, usize) -> Status;
    destroy_desc = c"cublasLtMatmulDescDestroy": fn(Opaque) -> Status;
    create_layout = c"cublasLtMatrixLayoutCreate": fn(*mut Opaque, c_int, u64, u64, i64) -> Status;
    set_layout = c"cublasLtMatrixLayoutSetAttribute": fn(Opaque, c_int, *const c_void, usize) -> Status;
    destroy_layout = c"cublasLtMatrixLayoutDestroy": fn(Opaque) -> Status;
    create_search = c"cublasLtMatmulPreferenceCreate": fn(*mut Opaque) -> Status;
    set_search = c"cublasLtMatmulPreferenceSetAttribute": fn(Opaque, c_int, *const c_void, usize) -> Status;
    destroy_search = c"cublasLtMatmulPreferenceDestroy": fn(Opaque) -> Status;
}

fn open(path: &Path) -> Result<*mut c_void, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: the name ends in 0; the initialisers are the library's own.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !library.is_null() {
        return Ok(library);
    }
    // SAFETY: after a failure there is a message, which lives until the next call of the loader.
    let message = unsafe { CStr::from_ptr(libc::dlerror()) };
    Err(message.to_string_lossy().into_owned())
}

fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: the library is open.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    if address.is_null() { Err(format!("no {} in it", name.to_string_lossy())) } else { Ok(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_such_library_gets_a_reason() {
        let error = |path| Symbols::load(Path::new(path)).err().unwrap();
        assert!(error("/nonexistent/libcublasLt.so.13").contains("No such file"), "no file");
        assert!(error("libc.so.6").contains("no cublasLtGetVersion in it"), "another library");
        assert!(!error("lib\0cublasLt").is_empty(), "no name of a file");
    }

    #[test]
    fn what_a_search_returns_is_as_large_as_in_the_header() {
        assert_eq!((size_of::<Found>(), std::mem::offset_of!(Found, status)), (96, 72));
    }
}
