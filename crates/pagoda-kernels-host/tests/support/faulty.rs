//! A device that does what another does, counts it, and fails on command.

use std::sync::{Arc, Mutex};

use pagoda_backend::BackendError;
use pagoda_backend_cuda::{Device, Launch, TensorMap};

/// Shared between a test and the device that the engine owns.
#[derive(Clone, Default)]
pub(crate) struct Commands(Arc<Mutex<State>>);

/// Which launch fails.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// The one after so many more.
    After(usize),
    /// The next one of a kernel whose name begins so.
    Kernel(&'static str),
}

#[derive(Default)]
struct State {
    /// Of device memory, and of buffers for readings beyond those that were reserved.
    num_allocs: usize,
    num_writes: usize,
    num_launches: usize,
    num_replays: usize,
    /// `e` for a step's first launch, `r` for a result that the host has waited for.
    trace: String,
    /// Where a launch fails, once.
    fail_launch: Option<(Place, BackendError)>,
    /// Allocations until there is no memory left.
    allocs_left: Option<usize>,
    refuses_captures: bool,
    /// After a sticky error every call fails with it.
    lost: Option<BackendError>,
}

impl Commands {
    /// A launch fails; a fatal error stays.
    pub(crate) fn fail_launch(&self, place: Place, error: BackendError) {
        self.0.lock().expect("no panic with the lock").fail_launch = Some((place, error));
    }

    /// There is memory for `num_allocs` more allocations.
    pub(crate) fn exhaust_memory_after(&self, num_allocs: usize) {
        self.0.lock().expect("no panic with the lock").allocs_left = Some(num_allocs);
    }

    /// From now on nothing can be captured.
    pub(crate) fn refuse_captures(&self) {
        self.0.lock().expect("no panic with the lock").refuses_captures = true;
    }

    /// Allocations, launches and replays so far.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let state = self.0.lock().expect("no panic with the lock");
        (state.num_allocs, state.num_launches, state.num_replays)
    }

    /// Copies to the device so far.
    pub(crate) fn num_writes(&self) -> usize {
        self.0.lock().expect("no panic with the lock").num_writes
    }

    /// What has happened since the last call: see `State::trace`.
    pub(crate) fn take_trace(&self) -> String {
        std::mem::take(&mut self.0.lock().expect("no panic with the lock").trace)
    }

    fn note(&self, what: char) {
        self.0.lock().expect("no panic with the lock").trace.push(what);
    }

    fn check(&self) -> Result<(), BackendError> {
        self.0.lock().expect("no panic with the lock").lost.clone().map_or(Ok(()), Err)
    }

    fn launch(&self, kernel: &str) -> Result<(), BackendError> {
        let mut state = self.0.lock().expect("no panic with the lock");
        state.num_launches += 1;
        let Some((place, error)) = state.fail_launch.take() else { return Ok(()) };
        let later = match place {
            Place::After(0) => None,
            Place::After(num_launches) => Some(Place::After(num_launches - 1)),
            Place::Kernel(start) => (!kernel.starts_with(start)).then_some(place),
        };
        if let Some(later) = later {
            state.fail_launch = Some((later, error));
            return Ok(());
        }
        if matches!(error, BackendError::Fatal(_)) {
            state.lost = Some(error.clone());
        }
        Err(error)
    }

    fn alloc(&self, what: &'static str, num_bytes: usize) -> Result<(), BackendError> {
        let mut state = self.0.lock().expect("no panic with the lock");
        state.num_allocs += 1;
        match &mut state.allocs_left {
            Some(0) => Err(BackendError::OutOfMemory { what, needed_bytes: num_bytes as u64 }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// The device.
pub(crate) struct Faulty<D> {
    inner: D,
    commands: Commands,
    /// Sizes of the buffers for readings that none holds.
    spare_readings: Vec<usize>,
}

impl<D: Device> Faulty<D> {
    pub(crate) fn new(inner: D, commands: &Commands) -> Self {
        Faulty { inner, commands: commands.clone(), spare_readings: Vec::new() }
    }

    /// The size of a buffer for a reading.
    fn take_reading(&mut self, num_bytes: usize) -> Result<usize, BackendError> {
        match self.spare_readings.iter().position(|&buffer_bytes| buffer_bytes >= num_bytes) {
            Some(index) => Ok(self.spare_readings.swap_remove(index)),
            None => self.commands.alloc("a reading", num_bytes).map(|()| num_bytes),
        }
    }
}

impl<D: Device> Device for Faulty<D> {
    type Memory = D::Memory;
    type Reading = (D::Reading, usize);
    type Graph = D::Graph;
    type Moment = D::Moment;

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn alloc(&mut self, num_bytes: usize, fill: u8, what: &'static str) -> Result<D::Memory, BackendError> {
        self.commands.check()?;
        self.commands.alloc(what, num_bytes)?;
        self.inner.alloc(num_bytes, fill, what)
    }

    fn allocated_bytes(&self) -> u64 {
        self.inner.allocated_bytes()
    }

    fn write_with(
        &mut self,
        to: &D::Memory,
        offset: usize,
        num_bytes: usize,
        fill: &mut dyn FnMut(usize, &mut [u8]),
    ) -> Result<(), BackendError> {
        self.commands.check()?;
        self.commands.0.lock().expect("no panic with the lock").num_writes += 1;
        self.inner.write_with(to, offset, num_bytes, fill)
    }

    fn reserve_readings(&mut self, num_readings: usize, num_bytes: usize) -> Result<(), BackendError> {
        self.commands.check()?;
        self.spare_readings.extend(std::iter::repeat_n(num_bytes, num_readings));
        Ok(())
    }

    fn start_read(
        &mut self,
        from: &D::Memory,
        offset: usize,
        num_bytes: usize,
    ) -> Result<Self::Reading, BackendError> {
        self.commands.check()?;
        let buffer_bytes = self.take_reading(num_bytes)?;
        Ok((self.inner.start_read(from, offset, num_bytes)?, buffer_bytes))
    }

    fn finish_read(
        &mut self,
        (reading, buffer_bytes): Self::Reading,
        bytes: &mut [u8],
    ) -> Result<(), BackendError> {
        self.commands.check()?;
        self.commands.note('r');
        self.spare_readings.push(buffer_bytes);
        self.inner.finish_read(reading, bytes)
    }

    fn tensor_map(
        &mut self,
        memory: &D::Memory,
        num_rows: usize,
        num_cols: usize,
    ) -> Result<TensorMap, BackendError> {
        self.commands.check()?;
        self.inner.tensor_map(memory, num_rows, num_cols)
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), BackendError> {
        self.commands.check()?;
        self.commands.launch(launch.kernel)?;
        if launch.kernel.starts_with("embed") {
            self.commands.note('e');
        }
        self.inner.launch(launch)
    }

    fn begin_capture(&mut self) -> Result<(), BackendError> {
        self.commands.check()?;
        if self.commands.0.lock().expect("no panic with the lock").refuses_captures {
            return Err(BackendError::Refused("no captures".into()));
        }
        self.inner.begin_capture()
    }

    fn end_capture(&mut self) -> Result<D::Graph, BackendError> {
        self.commands.check()?;
        self.inner.end_capture()
    }

    fn replay(&mut self, graph: &D::Graph) -> Result<(), BackendError> {
        self.commands.check()?;
        self.commands.0.lock().expect("no panic with the lock").num_replays += 1;
        self.inner.replay(graph)
    }

    fn moment(&mut self) -> Result<D::Moment, BackendError> {
        self.commands.check()?;
        self.inner.moment()
    }

    fn seconds_between(&mut self, from: &D::Moment, to: &D::Moment) -> Result<f64, BackendError> {
        self.commands.check()?;
        self.inner.seconds_between(from, to)
    }
}
