//! The device under the model, as the metrics show it.

use std::fmt;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Answers with the bytes that nobody has taken, as far as they are known.
pub type FreeBytes = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// What is known of the device.
#[derive(Default)]
pub struct DeviceReport {
    /// `cpu`, `cuda:0`.
    pub name: String,
    /// One line: model, instruction set, threads.
    pub description: String,
    /// More of it, by name: labels of its metric.
    pub facts: Vec<(&'static str, String)>,
    /// All of its own memory; a device that shares the machine's has none.
    pub total_bytes: Option<u64>,
    /// What was taken at load: what for, and bytes.
    pub taken_bytes: Vec<(&'static str, u64)>,
    /// Asked at every scrape; none where `total_bytes` is none.
    pub free_bytes: Option<FreeBytes>,
}

impl fmt::Debug for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceReport")
            .field("name", &self.name)
            .field("description", &self.description)
            .field("facts", &self.facts)
            .field("total_bytes", &self.total_bytes)
            .field("taken_bytes", &self.taken_bytes)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemoryUse {
    r#use: &'static str,
}

/// The gauges.
pub(super) struct DeviceMetrics {
    free: Gauge,
    free_bytes: Option<FreeBytes>,
}

impl DeviceMetrics {
    pub(super) fn register(report: DeviceReport, registry: &mut Registry) -> Self {
        let DeviceReport { name, description, facts, total_bytes, taken_bytes, free_bytes } = report;
        let info: Family<Vec<(&'static str, String)>, Gauge> = Family::default();
        let mut labels = vec![("device", name), ("description", description)];
        labels.extend(facts);
        info.get_or_create(&labels).set(1);
        registry.register("pagoda:device_info", "Where the model runs", info);
        let taken: Family<MemoryUse, Gauge> = Family::default();
        for (r#use, bytes) in taken_bytes {
            taken.get_or_create(&MemoryUse { r#use }).set(bytes as i64);
        }
        registry.register("pagoda:device_memory_bytes", "Memory taken at load, by use", taken);
        if let Some(bytes) = total_bytes {
            let total: Gauge = Gauge::default();
            total.set(bytes as i64);
            registry.register("pagoda:device_memory_total_bytes", "All memory of the device", total);
        }
        let free = Gauge::default();
        if free_bytes.is_some() {
            registry.register(
                "pagoda:device_memory_free_bytes",
                "Memory that nobody has taken",
                free.clone(),
            );
        }
        DeviceMetrics { free, free_bytes }
    }

    /// Asks the device. One that is lost does not answer, and keeps its last number.
    pub(super) fn update(&self) {
        if let Some(bytes) = self.free_bytes.as_ref().and_then(|free_bytes| free_bytes()) {
            self.free.set(bytes as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_shows_its_name_and_its_memory() {
        let mut registry = Registry::default();
        let metrics = DeviceMetrics::register(
            DeviceReport {
                name: "cuda:0".into(),
                description: "a GPU".into(),
                facts: vec![("compute_capability", "9.0".into()), ("cuda_driver", "13.0".into())],
                total_bytes: Some(21),
                taken_bytes: vec![("weights", 7), ("kv_cache", 9)],
                free_bytes: Some(Box::new(|| Some(5))),
            },
            &mut registry,
        );
        metrics.update();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            concat!(
                r#"pagoda:device_info{device="cuda:0",description="a GPU","#,
                r#"compute_capability="9.0",cuda_driver="13.0"} 1"#
            ),
            "pagoda:device_memory_total_bytes 21",
            r#"pagoda:device_memory_bytes{use="weights"} 7"#,
            r#"pagoda:device_memory_bytes{use="kv_cache"} 9"#,
            "pagoda:device_memory_free_bytes 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
