//! What the tasks of a region share: pointers to disjoint parts, and memory of each thread's own.

use std::cell::UnsafeCell;

/// A pointer that tasks may use at the same time for disjoint parts.
pub(crate) struct Disjoint<T>(*mut T);

impl<T> Clone for Disjoint<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Disjoint<T> {}

// SAFETY: whoever derives a reference or a write from the pointer keeps the parts disjoint.
unsafe impl<T: Send> Send for Disjoint<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<T> {}

impl<T> Disjoint<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Disjoint(slice.as_mut_ptr())
    }

    /// The element at `index`.
    pub(crate) fn at(self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

/// A pointer that tasks only read; may be null.
#[derive(Clone, Copy)]
pub(crate) struct ReadOnly<T>(pub(crate) *const T);

// SAFETY: what it points at outlives the region and is only read.
unsafe impl<T: Sync> Send for ReadOnly<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for ReadOnly<T> {}

impl<T> ReadOnly<T> {
    pub(crate) fn get(self) -> *const T {
        self.0
    }
}

/// One `T` per thread of the pool.
pub(crate) struct PerThread<T>(Vec<UnsafeCell<T>>);

// SAFETY: `get` is unique per thread by its contract.
unsafe impl<T: Send> Sync for PerThread<T> {}

impl<T> PerThread<T> {
    /// One value for each of `num_threads`.
    pub(crate) fn new<E>(num_threads: usize, mut make: impl FnMut() -> Result<T, E>) -> Result<Self, E> {
        (0..num_threads).map(|_| make().map(UnsafeCell::new)).collect::<Result<_, _>>().map(PerThread)
    }

    /// # Safety
    /// `thread` is the number that the pool gave to the task that calls, and the task holds one reference at a time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn get(&self, thread: usize) -> &mut T {
        // SAFETY: thread numbers are unique among tasks that run at the same time.
        unsafe { &mut *self.0[thread].get() }
    }

    /// Any thread's, while no task runs.
    pub(crate) fn first_mut(&mut self) -> Option<&mut T> {
        self.0.first_mut().map(UnsafeCell::get_mut)
    }
}
