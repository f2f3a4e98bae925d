//! [`StepClock`]: when the steps of a measurement begin and end on the device's own clock.
//!
//! A step begins where its uploads have ended and its first kernel may start, and ends with its last kernel, before its choices are
//! copied to the host. What lies between two steps is time in which no kernel runs, copies included: the figure is the stricter of the
//! possible ones. Within a step nothing is looked at: a kernel that waits for the host counts as work.
//!
//! Only measurements have a clock. Without one a step costs a look at an `Option`; with one, it costs two or three events in the stream.

use pagoda_backend::BackendError;

use crate::device::Device;

/// How the forward pass of a step came to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepPath {
    /// Kernel by kernel: prompts, and decode steps of a shape that has not been seen before.
    Launched,
    /// Kernel by kernel into a graph, and then as that.
    Captured,
    /// As a graph of an earlier step.
    Replayed,
}

/// One step on the device's clock, in seconds since the first step began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSpan {
    /// When its first kernel could begin.
    pub start_s: f64,
    /// When its last kernel had ended.
    pub end_s: f64,
    /// How it came there.
    pub path: StepPath,
}

/// Steps in their order.
pub(crate) struct StepClock<M> {
    steps: Vec<Step<M>>,
}

struct Step<M> {
    start: M,
    /// Moves on with each part of the step; a step that failed has none.
    end: Option<M>,
    path: StepPath,
}

impl<M> StepClock<M> {
    pub(crate) fn new() -> Self {
        StepClock { steps: Vec::new() }
    }

    /// A step begins.
    pub(crate) fn begin(&mut self, start: M, path: StepPath) {
        self.steps.push(Step { start, end: None, path });
    }

    /// A part of the step ends, perhaps the last.
    pub(crate) fn end(&mut self, end: M) {
        if let Some(step) = self.steps.last_mut() {
            step.end = Some(end);
        }
    }

    /// Waits for the last step. Sums of short intervals: a device's clock has half a microsecond's resolution, but a difference in
    /// single precision loses that after some seconds.
    pub(crate) fn read<D: Device<Moment = M>>(self, device: &mut D) -> Result<Vec<StepSpan>, BackendError> {
        let mut spans: Vec<StepSpan> = Vec::with_capacity(self.steps.len());
        let mut last_end = None;
        for Step { start, end, path } in self.steps {
            let Some(end) = end else { continue };
            let start_s = match (&last_end, spans.last()) {
                (Some(last_end), Some(last)) => last.end_s + device.seconds_between(last_end, &start)?,
                _ => 0.0,
            };
            let end_s = start_s + device.seconds_between(&start, &end)?;
            spans.push(StepSpan { start_s, end_s, path });
            last_end = Some(end);
        }
        Ok(spans)
    }
}
