//! [`MeterDevice`]: has no memory and does no work, but counts what is asked of it. A model loaded onto it says to the byte what
//! it will take of a real device, without a device and without reading a weight.

use pagoda_backend::BackendError;

use crate::allocated::{AllocatedBytes, CountedBytes};
use crate::device::{Device, Launch, Memory, TensorMap};

/// A device that counts.
#[derive(Debug, Default)]
pub struct MeterDevice {
    allocated: AllocatedBytes,
}

/// What would be memory.
#[derive(Debug)]
pub struct MeterMemory {
    num_bytes: usize,
    _counted: CountedBytes,
}

impl Memory for MeterMemory {
    fn address(&self) -> u64 {
        0
    }

    fn num_bytes(&self) -> usize {
        self.num_bytes
    }
}

impl Device for MeterDevice {
    type Memory = MeterMemory;
    type Reading = ();
    type Graph = ();
    type Moment = ();

    fn describe(&self) -> String {
        "a device that counts".to_owned()
    }

    fn alloc(&mut self, num_bytes: usize, _fill: u8, _: &'static str) -> Result<MeterMemory, BackendError> {
        Ok(MeterMemory { num_bytes, _counted: self.allocated.count(num_bytes) })
    }

    fn allocated_bytes(&self) -> u64 {
        self.allocated.now()
    }

    fn write_with(
        &mut self,
        _: &MeterMemory,
        _: usize,
        _: usize,
        _: &mut dyn FnMut(usize, &mut [u8]),
    ) -> Result<(), BackendError> {
        Ok(())
    }

    fn reserve_readings(&mut self, _: usize, _: usize) -> Result<(), BackendError> {
        Ok(())
    }

    fn start_read(&mut self, _: &MeterMemory, _: usize, _: usize) -> Result<(), BackendError> {
        no_results()
    }

    fn finish_read(&mut self, (): (), _: &mut [u8]) -> Result<(), BackendError> {
        no_results()
    }

    fn tensor_map(&mut self, _: &MeterMemory, _: usize, _: usize) -> Result<TensorMap, BackendError> {
        Ok(TensorMap::default())
    }

    fn launch(&mut self, _: &Launch<'_>) -> Result<(), BackendError> {
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn end_capture(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn replay(&mut self, (): &()) -> Result<(), BackendError> {
        Ok(())
    }

    fn moment(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn seconds_between(&mut self, (): &(), (): &()) -> Result<f64, BackendError> {
        no_results()
    }
}

fn no_results<T>() -> Result<T, BackendError> {
    Err(BackendError::Unsupported("a device that counts has no results".to_owned()))
}
