//! The figures of a run, and how they are shown. TTFT: from sending to the first chunk with output. ITL: gaps between
//! chunks, all requests pooled. TPOT: (last chunk - first chunk) / (output tokens - 1), one value per request.

use std::time::Duration;

use serde_json::{Value, json};

use super::load::{Arrivals, Outcome};

/// The summary of one run.
pub(crate) struct Report {
    load: String,
    num_completed: usize,
    num_failed: usize,
    duration_s: f64,
    num_prompt_tokens: u64,
    num_cached_tokens: u64,
    num_output_tokens: u64,
    latencies: Vec<(&'static str, Percentiles)>,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Percentiles {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
}

impl Percentiles {
    fn new(mut values_ms: Vec<f64>) -> Self {
        if values_ms.is_empty() {
            return Percentiles::default();
        }
        values_ms.sort_unstable_by(f64::total_cmp);
        Percentiles {
            mean: values_ms.iter().sum::<f64>() / values_ms.len() as f64,
            p50: percentile(&values_ms, 0.50),
            p90: percentile(&values_ms, 0.90),
            p99: percentile(&values_ms, 0.99),
        }
    }
}

/// Linear between the two nearest ranks, as numpy does it.
fn percentile(sorted: &[f64], quantile: f64) -> f64 {
    let rank = quantile * (sorted.len() - 1) as f64;
    let (low, fraction) = (rank.floor() as usize, rank.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * fraction
}

impl Report {
    /// Summarises a run.
    pub(crate) fn new(arrivals: Arrivals, outcome: &Outcome) -> Self {
        let load = match arrivals {
            Arrivals::Closed(concurrency) => format!("closed loop, {concurrency} at a time"),
            Arrivals::Open(rate) => format!("open loop, {rate} requests/s (Poisson)"),
        };
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let (mut ttft, mut tpot, mut itl, mut latency) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for record in &outcome.records {
            let (Some(first), Some(last)) = (record.chunk_times.first(), record.chunk_times.last()) else {
                continue;
            };
            ttft.push(ms(*first));
            latency.push(ms(*last));
            if record.num_output_tokens > 1 {
                tpot.push(ms(*last - *first) / (record.num_output_tokens - 1) as f64);
            }
            itl.extend(record.chunk_times.windows(2).map(|pair| ms(pair[1] - pair[0])));
        }
        let sum = |count: fn(&super::client::Record) -> u64| outcome.records.iter().map(count).sum();
        Report {
            load,
            num_completed: outcome.records.len(),
            num_failed: outcome.failures.len(),
            duration_s: outcome.duration.as_secs_f64(),
            num_prompt_tokens: sum(|record| record.num_prompt_tokens),
            num_cached_tokens: sum(|record| record.num_cached_tokens),
            num_output_tokens: sum(|record| record.num_output_tokens),
            latencies: vec![
                ("TTFT", Percentiles::new(ttft)),
                ("TPOT", Percentiles::new(tpot)),
                ("ITL", Percentiles::new(itl)),
                ("latency", Percentiles::new(latency)),
            ],
        }
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.duration_s.max(1e-9)
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            format!("load                 {}", self.load),
            format!("requests             {} completed, {} failed", self.num_completed, self.num_failed),
            format!("duration             {:.2} s", self.duration_s),
            format!(
                "tokens               {} prompt ({} cached), {} output",
                self.num_prompt_tokens, self.num_cached_tokens, self.num_output_tokens
            ),
            format!("requests/s           {:.2}", self.per_second(self.num_completed as u64)),
            format!("output tok/s         {:.1}", self.per_second(self.num_output_tokens)),
            format!(
                "total tok/s          {:.1}",
                self.per_second(self.num_output_tokens + self.num_prompt_tokens)
            ),
            format!("{:<20} {:>9} {:>9} {:>9} {:>9}", "ms", "mean", "p50", "p90", "p99"),
        ];
        for (name, p) in &self.latencies {
            lines.push(format!("{name:<20} {:>9.2} {:>9.2} {:>9.2} {:>9.2}", p.mean, p.p50, p.p90, p.p99));
        }
        lines.join("\n")
    }

    /// The same for programs.
    pub(crate) fn json(&self) -> Value {
        let mut json = json!({
            "load": self.load,
            "num_completed": self.num_completed,
            "num_failed": self.num_failed,
            "duration_s": self.duration_s,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_cached_tokens": self.num_cached_tokens,
            "num_output_tokens": self.num_output_tokens,
            "requests_per_s": self.per_second(self.num_completed as u64),
            "output_tokens_per_s": self.per_second(self.num_output_tokens),
        });
        for (name, p) in &self.latencies {
            json[format!("{}_ms", name.to_lowercase())] =
                json!({ "mean": p.mean, "p50": p.p50, "p90": p.p90, "p99": p.p99 });
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Record;
    use super::*;

    #[test]
    fn several_tokens_in_a_chunk_lower_tpot_but_not_itl() {
        let ms = Duration::from_millis;
        let record = Record {
            chunk_times: vec![ms(100), ms(140), ms(180)],
            num_prompt_tokens: 7,
            num_cached_tokens: 0,
            num_output_tokens: 5,
        };
        let outcome = Outcome { records: vec![record], failures: vec!["x".into()], duration: ms(500) };
        let report = Report::new(Arrivals::Closed(1), &outcome).json();
        assert_eq!(report["ttft_ms"]["p50"], 100.0);
        assert_eq!(report["itl_ms"]["p99"], 40.0);
        assert_eq!(report["tpot_ms"]["p50"], 20.0);
        assert_eq!(report["output_tokens_per_s"], 10.0);
        assert_eq!(report["num_failed"], 1);
    }

    #[test]
    fn percentiles_interpolate_between_ranks() {
        let values: Vec<f64> = (1..=5).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 3.0);
        assert_eq!(percentile(&values, 0.9), 4.6);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
    }
}
