//! The two text formats of a scrape. The OpenMetrics encoder writes one; the older Prometheus text differs in how it names
//! the family of a counter and in having no end mark.

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exposition {
    OpenMetrics,
    Prometheus,
}

impl Exposition {
    /// What the scraper accepts; the older format unless it names the newer one.
    pub(crate) fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Exposition::OpenMetrics,
            _ => Exposition::Prometheus,
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Exposition::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// All samples of the registries, which must have no name in common.
    pub(crate) fn encode<'a>(self, registries: impl IntoIterator<Item = &'a Registry>) -> String {
        let mut text = String::new();
        for registry in registries {
            encode_registry(&mut text, registry).expect("writing to a string cannot fail");
        }
        encode_eof(&mut text).expect("writing to a string cannot fail");
        match self {
            Exposition::OpenMetrics => text,
            Exposition::Prometheus => prometheus_text(&text),
        }
    }
}

/// OpenMetrics calls a counter's family `x` and its sample `x_total`; the older format calls both `x_total`.
fn prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            let is_counter =
                lines.peek().is_some_and(|next| next.starts_with("# TYPE ") && next.ends_with(" counter"));
            let suffix = if is_counter { "_total" } else { "" };
            text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
        } else if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" counter"))
        {
            text.push_str(&format!("# TYPE {name}_total counter\n"));
        } else if line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn both_formats_carry_the_same_sample_names() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc_by(3);
        registry.register("vllm:prompt_tokens", "Prompt tokens", counter);
        let gauge: Gauge = Gauge::default();
        registry.register("vllm:num_requests_running", "Requests", gauge);
        assert_eq!(
            Exposition::OpenMetrics.encode([&registry]),
            "# HELP vllm:prompt_tokens Prompt tokens.\n# TYPE vllm:prompt_tokens counter\nvllm:prompt_tokens_total 3\n\
             # HELP vllm:num_requests_running Requests.\n# TYPE vllm:num_requests_running gauge\n\
             vllm:num_requests_running 0\n# EOF\n"
        );
        assert_eq!(
            Exposition::Prometheus.encode([&registry]),
            "# HELP vllm:prompt_tokens_total Prompt tokens.\n# TYPE vllm:prompt_tokens_total counter\n\
             vllm:prompt_tokens_total 3\n\
             # HELP vllm:num_requests_running Requests.\n# TYPE vllm:num_requests_running gauge\n\
             vllm:num_requests_running 0\n"
        );
    }

    #[test]
    fn the_format_is_negotiated() {
        assert_eq!(Exposition::accepted(None), Exposition::Prometheus);
        let newer = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        assert_eq!(Exposition::accepted(Some(newer)), Exposition::OpenMetrics);
    }
}
