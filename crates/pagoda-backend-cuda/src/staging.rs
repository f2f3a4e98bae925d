//! [`Staging`]: the lists of a step one behind the other, so that one copy brings all of them to the device.

use pagoda_backend::BackendError;

use crate::device::{Device, Memory};
use crate::params::{Plain, Pointer, bytes_of};

/// Lists begin at multiples of this: a cache line of the device.
const ALIGNMENT: usize = 128;

/// Where a list begins among the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Offset(usize);

impl Offset {
    /// The list's address on the device, if all of them begin at `base`.
    pub(crate) fn from(self, base: Pointer) -> Pointer {
        base + self.0 as u64
    }
}

/// Lists for the device. Reused from step to step.
#[derive(Default)]
pub(crate) struct Staging {
    bytes: Vec<u8>,
}

impl Staging {
    /// Bytes that a list of `len` entries takes at most.
    pub(crate) fn list_bytes<P: Plain>(len: usize) -> usize {
        (len * size_of::<P>()).next_multiple_of(ALIGNMENT)
    }

    /// Begins anew.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Lays a list behind those before it.
    pub(crate) fn push<P: Plain>(&mut self, values: &[P]) -> Offset {
        let start = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(bytes_of(values));
        Offset(start)
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Queues the one copy.
    pub(crate) fn write<D: Device>(&self, device: &mut D, to: &D::Memory) -> Result<(), BackendError> {
        assert!(self.bytes.len() <= to.num_bytes(), "more lists than there is room for");
        if self.bytes.is_empty() { Ok(()) } else { device.write(to, 0, &self.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_lie_one_behind_the_other_at_whole_lines() {
        let mut staging = Staging::default();
        for _ in 0..2 {
            staging.clear();
            let offsets = [staging.push(&[7u32; 3]), staging.push::<u32>(&[]), staging.push(&[9u32; 33])];
            assert_eq!(offsets.map(|offset| offset.from(1000)), [1000, 1128, 1128]);
            assert_eq!(staging.num_bytes(), 128 + 33 * 4);
            assert_eq!(staging.bytes[128..132], 9u32.to_le_bytes());
        }
        assert_eq!(Staging::list_bytes::<u32>(33), 256);
    }
}
