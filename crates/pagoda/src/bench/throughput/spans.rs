//! What the steps' times by a GPU's clock say: how much of the time it had nothing to do, and whether they were all run alike.

use pagoda_backend_cuda::StepSpan;

/// Of the time from the first step's begin to the last one's end, the share in which no step runs, in percent. `None` without a
/// clock.
pub(crate) fn pause_percent(spans: &[StepSpan]) -> Option<f64> {
    let (first, last) = (spans.first()?, spans.last()?);
    let total_s = last.end_s - first.start_s;
    let pauses_s: f64 = spans.windows(2).map(|pair| pair[1].start_s - pair[0].end_s).sum();
    (total_s > 0.0).then(|| 100.0 * pauses_s / total_s)
}

/// Whether all reached the GPU by the same way.
pub(crate) fn is_of_one_kind(spans: &[StepSpan]) -> bool {
    spans.windows(2).all(|pair| pair[0].path == pair[1].path)
}

#[cfg(test)]
mod tests {
    use pagoda_backend_cuda::StepPath;

    use super::*;

    fn span(start_s: f64, end_s: f64, path: StepPath) -> StepSpan {
        StepSpan { start_s, end_s, path }
    }

    #[test]
    fn pauses_are_what_no_step_covers() {
        let steps = [(5.0, 8.0), (8.5, 10.0), (10.0, 12.5), (14.0, 15.0)];
        let spans = steps.map(|(start_s, end_s)| span(start_s, end_s, StepPath::Replayed));
        assert_eq!(pause_percent(&spans), Some(20.0));
        assert_eq!(pause_percent(&spans[..1]), Some(0.0));
        assert_eq!(pause_percent(&[]), None);
    }

    #[test]
    fn a_capture_among_replays_is_another_kind() {
        let kinds = |paths: &[StepPath]| {
            is_of_one_kind(&paths.iter().map(|path| span(0.0, 1.0, *path)).collect::<Vec<_>>())
        };
        use StepPath::{Captured, Launched, Replayed};
        assert!(kinds(&[Replayed, Replayed]) && kinds(&[Launched, Launched]) && kinds(&[]));
        assert!(!kinds(&[Replayed, Launched, Replayed]) && !kinds(&[Replayed, Captured]));
    }
}
