//! [`Buffer`]: zeroed, 64-byte aligned memory of fixed length; large ones ask for huge pages.
//!
//! Large buffers come straight from the kernel, so untouched pages of a KV pool cost nothing, and a refusal is an error
//! that names the need rather than an abort.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use pagoda_backend::BackendError;

/// Numbers that are valid as all zero bits.
pub(crate) trait Zeroable: Copy + Send + Sync + 'static {}
impl Zeroable for f32 {}
impl Zeroable for i16 {}
impl Zeroable for u8 {}

const ALIGNMENT: usize = 64;
/// From here on a buffer is mapped by itself; also the size and alignment of a huge page.
const HUGE_PAGE: usize = 2 << 20;

enum Source {
    Heap(Layout),
    #[cfg(unix)]
    Mapping {
        start: NonNull<u8>,
        len_bytes: usize,
    },
}

/// A fixed number of `T`, zero at first.
pub(crate) struct Buffer<T> {
    data: NonNull<T>,
    len: usize,
    source: Source,
}

// SAFETY: the buffer owns its memory, and `T` is plain data.
unsafe impl<T: Zeroable> Send for Buffer<T> {}
// SAFETY: shared access is reading only.
unsafe impl<T: Zeroable> Sync for Buffer<T> {}

impl<T: Zeroable> Buffer<T> {
    /// `len` zeroes; `what` names the memory in the error.
    pub(crate) fn zeroed(len: usize, what: &'static str) -> Result<Self, BackendError> {
        let refused = || BackendError::OutOfMemory {
            what,
            needed_bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
        };
        let len_bytes = len.checked_mul(size_of::<T>()).ok_or_else(refused)?;
        let (data, source) = match len_bytes {
            #[cfg(unix)]
            HUGE_PAGE.. => map(len_bytes).ok_or_else(refused)?,
            _ => allocate(len_bytes).ok_or_else(refused)?,
        };
        Ok(Buffer { data: data.cast(), len, source })
    }
}

fn allocate(len_bytes: usize) -> Option<(NonNull<u8>, Source)> {
    let layout = Layout::from_size_align(len_bytes.max(ALIGNMENT), ALIGNMENT).ok()?;
    // SAFETY: the layout's size is not 0.
    let data = NonNull::new(unsafe { alloc_zeroed(layout) })?;
    Some((data, Source::Heap(layout)))
}

#[cfg(unix)]
fn map(len_bytes: usize) -> Option<(NonNull<u8>, Source)> {
    let mapped_bytes = len_bytes.checked_add(HUGE_PAGE)?;
    // SAFETY: a fresh private mapping touches no other memory.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            mapped_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANON,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return None;
    }
    let start = NonNull::new(start.cast::<u8>())?;
    // SAFETY: one huge page was added to the length, so the next boundary leaves `len_bytes` behind it.
    let data = unsafe { start.add(start.as_ptr().align_offset(HUGE_PAGE)) };
    #[cfg(target_os = "linux")]
    // SAFETY: advice on our own mapping; a refusal changes nothing but speed.
    unsafe {
        libc::madvise(data.as_ptr().cast(), len_bytes, libc::MADV_HUGEPAGE);
    }
    Some((data, Source::Mapping { start, len_bytes: mapped_bytes }))
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        match self.source {
            // SAFETY: allocated with this layout, and nothing borrows from a buffer being dropped.
            Source::Heap(layout) => unsafe { dealloc(self.data.as_ptr().cast(), layout) },
            // SAFETY: mapped with this start and length, and nothing borrows from a buffer being dropped.
            #[cfg(unix)]
            Source::Mapping { start, len_bytes } => unsafe {
                libc::munmap(start.as_ptr().cast(), len_bytes);
            },
        }
    }
}

impl<T: Zeroable> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` numbers were allocated, zeroed, and are owned.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Zeroable> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_buffers_are_zero_aligned_and_writable() {
        for len in [0, 1, 1000, HUGE_PAGE / 4, HUGE_PAGE] {
            let mut buffer = Buffer::<f32>::zeroed(len, "test").unwrap();
            assert!(buffer.len() == len && buffer.iter().all(|&value| value == 0.0));
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            buffer.fill(1.0);
        }
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        for len in [usize::MAX, usize::MAX / 8] {
            let error = Buffer::<f32>::zeroed(len, "the moon").err();
            assert!(matches!(error, Some(BackendError::OutOfMemory { what: "the moon", .. })), "{error:?}");
        }
    }
}
