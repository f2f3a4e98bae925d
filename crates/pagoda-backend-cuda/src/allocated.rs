//! [`AllocatedBytes`]: what a device and its pieces of memory count together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are allocated now.
#[derive(Clone, Debug, Default)]
pub struct AllocatedBytes(Arc<AtomicU64>);

impl AllocatedBytes {
    /// Counts a piece of memory for as long as the answer lives.
    pub fn count(&self, num_bytes: usize) -> CountedBytes {
        let num_bytes = num_bytes as u64;
        // A size that nobody could have is refused elsewhere, with this number in the message.
        self.change(|total| total.saturating_add(num_bytes));
        CountedBytes { total: self.clone(), num_bytes }
    }

    /// All pieces that live.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn change(&self, by: impl Fn(u64) -> u64) {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| Some(by(total)))
            .expect("every total has a next one");
    }
}

/// A piece of memory, as it is counted.
#[derive(Debug)]
pub struct CountedBytes {
    total: AllocatedBytes,
    num_bytes: u64,
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.total.change(|total| total.saturating_sub(self.num_bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_is_counted_no_more() {
        let allocated = AllocatedBytes::default();
        let (first, second) = (allocated.count(100), allocated.count(28));
        assert_eq!(allocated.now(), 128);
        drop(first);
        assert_eq!(allocated.now(), 28);
        drop(second);
        assert_eq!(allocated.now(), 0);
    }
}
