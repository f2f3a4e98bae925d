//! `pagoda bench`. `serve` is a load generator for any OpenAI-compatible server, with the definitions that `report` states:
//! tokens are counted by the server's usage, never by chunks. `throughput` measures the engine without a server, `kernels` each
//! op by itself, `agreement` how far a device's answers are from the exact ones, `consistency` whether it gives the same ones by every
//! way to run its steps.

mod agreement;
mod client;
mod consistency;
mod kernels;
mod lengths;
mod load;
mod probe;
mod python_random;
mod report;
mod results;
mod roof;
mod subject;
mod throughput;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

#[cfg(test)]
pub(crate) use agreement::exact;
pub(crate) use agreement::run as agreement;
pub(crate) use consistency::run as consistency;
#[cfg(test)]
pub(crate) use kernels::device_config as kernels_device;
pub(crate) use kernels::run as kernels;
pub(crate) use lengths::Lengths;
pub(crate) use throughput::run as throughput;

use crate::args::BenchServeArgs;
use client::Target;
use load::{Arrivals, Workload};
use report::Report;

/// Runs the load, prints the table and fails if a request failed.
pub(crate) fn serve(args: &BenchServeArgs) -> anyhow::Result<()> {
    // The load needs little: one thread leaves the other cores to the server under test.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(args))
}

async fn measure(args: &BenchServeArgs) -> anyhow::Result<()> {
    let arrivals = match args.request_rate {
        Some(rate) if rate.is_finite() && rate > 0.0 => Arrivals::Open(rate),
        Some(rate) => bail!("--request-rate {rate}: it must be above 0"),
        None => Arrivals::Closed(args.concurrency.max(1)),
    };
    let target = Arc::new(Target::parse(&args.url, read_key(args.api_key_file.as_deref())?)?);
    let model = match &args.model {
        Some(model) => model.clone(),
        None => target.first_model().await?,
    };
    let limit = Duration::from_secs(args.max_seconds);
    let mut workload = Workload::new(args, model);
    let warmup = load::run(&target, &mut workload, Arrivals::Closed(1), (args.num_warmups, limit)).await;
    if let Some(failure) = warmup.failures.first() {
        bail!("the warm-up failed: {failure}");
    }
    let outcome = load::run(&target, &mut workload, arrivals, (args.num_requests, limit)).await;
    let report = Report::new(arrivals, &outcome);
    match args.json.as_deref() {
        Some(path) if path == Path::new("-") => println!("{:#}", report.json()),
        Some(path) => {
            std::fs::write(path, format!("{:#}\n", report.json()))
                .with_context(|| format!("writing {}", path.display()))?;
            println!("{}", report.table());
        }
        None => println!("{}", report.table()),
    }
    if let Some(failure) = outcome.failures.first() {
        bail!(
            "{} of {} requests failed, the first one with: {failure}",
            outcome.failures.len(),
            args.num_requests
        );
    }
    Ok(())
}

fn read_key(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    // The server's own key file marks administrators' keys.
    Ok(line.map(|line| line.strip_prefix("admin ").unwrap_or(line).trim().to_owned()))
}
