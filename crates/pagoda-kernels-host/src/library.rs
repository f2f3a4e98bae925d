//! Shared objects and their symbols.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A loaded shared object; stays loaded.
#[derive(Clone, Copy)]
pub(crate) struct Library(*mut c_void);

// SAFETY: a handle of the loader, which may be used from any thread.
unsafe impl Send for Library {}

impl Library {
    /// Loads a file; its symbols are seen by others only if `is_global`.
    pub(crate) fn open(path: &Path, is_global: bool) -> Result<Self, String> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        let visibility = if is_global { libc::RTLD_GLOBAL } else { libc::RTLD_LOCAL };
        // SAFETY: a file that this crate compiled; it has no initialisers but those of C++ statics.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | visibility) };
        if !handle.is_null() {
            return Ok(Library(handle));
        }
        // SAFETY: after a failure there is a message, which lives until the next call of the loader.
        let message = unsafe { CStr::from_ptr(libc::dlerror()) };
        Err(message.to_string_lossy().into_owned())
    }

    /// The address of a symbol.
    pub(crate) fn symbol(self, name: &str) -> Option<*const c_void> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is open; the name ends in 0.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        (!address.is_null()).then_some(address.cast_const())
    }
}
