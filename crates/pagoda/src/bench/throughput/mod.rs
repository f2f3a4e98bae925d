//! `pagoda bench throughput`: the engine and the model without a server. Three workloads: `nano` (256 requests at once, lengths
//! uniform in 100..1024, seed 0: the exact lengths of the script that other engines publish figures for), `decode` (a batch
//! of equally long contexts, made by filling blocks) and `prefill` (one prompt). Greedy, nothing ends early, no prefix is
//! shared. Every figure stands beside the roof of the device as probed in the same process.

mod lent;
mod measure;
mod spans;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;

use self::lent::fill_blocks;
use self::measure::{Bed, NanoWorkload};
use super::probe;
use super::results::Results;
use super::roof::{ModelCost, Probe};
use crate::args::{BenchThroughputArgs, ModelArgs};
use crate::config::{Config, served_name};
use crate::device::{Device, DeviceConfig};
use crate::{banner, environment, serve};

/// Tokens of a context beyond the one asked for that a decode measurement may reach.
const CONTEXT_MARGIN: usize = 16;

/// Loads the model once and runs every workload asked for.
pub(crate) fn run(args: &BenchThroughputArgs) -> anyhow::Result<()> {
    let store = environment::model_store(&args.model.store)?;
    let model = args.model.model.clone().unwrap_or_else(|| store.catalogue.default.clone());
    let mut device = Device::open(&DeviceConfig::resolve(&args.model)?)?;
    let checkpoint = serve::open_checkpoint(args.model.load_format, &store.locate(&model)?)
        .with_context(|| format!("{model} cannot be loaded"))?;
    let probe = probe::measure(&mut device)?;
    let memory = device.memory()?;
    let config =
        Config::resolve(&sized(args, checkpoint.config().max_position_embeddings), &checkpoint, memory)?;
    let mut runner = device.load(&checkpoint, config.runner).context("loading the model")?;
    let weight_bytes = runner.memory().weight_bytes;
    println!("model    {model}: {}", banner::describe(checkpoint.config()));
    println!("device   {}", runner.describe());
    println!("probe    {probe}");
    if args.workload.iter().any(|workload| workload == "decode") {
        fill_blocks(&mut runner, &config.runner)?;
    }
    let common = json!({
        "bench": "throughput",
        "model": served_name(&model),
        "device": runner.describe(),
        "version": env!("CARGO_PKG_VERSION"),
        "probe": probe.json(),
    });
    let pipeline_depth = runner.pipeline_depth();
    let deadline = Instant::now() + Duration::from_secs(args.max_seconds);
    let mut session = Session {
        cost: ModelCost::new(checkpoint.config(), weight_bytes, memory.kv_format),
        bed: Bed { executor: Arc::new(Mutex::new(runner)), config, pipeline_depth, deadline },
        probe,
        results: Results::open(args.json.as_deref(), common)?,
    };
    for workload in &args.workload {
        match workload.as_str() {
            "nano" => session.nano(args)?,
            "decode" => session.decode(args)?,
            _ => session.prefill(args)?,
        }
    }
    Ok(())
}

/// The flags with what the workloads need in place of what was not given.
fn sized(args: &BenchThroughputArgs, model_limit: usize) -> ModelArgs {
    let mut model = args.model.clone();
    let (mut num_seqs, mut len) = (1, 0);
    for workload in &args.workload {
        let (workload_seqs, workload_len) = match workload.as_str() {
            "nano" => (args.num_requests, 2 * args.request_len.1),
            "decode" => {
                let longest = args.context_len.iter().max().copied().unwrap_or(0);
                (
                    args.batch_size.iter().max().copied().unwrap_or(1),
                    longest + args.num_steps + CONTEXT_MARGIN,
                )
            }
            _ => (1, args.prompt_len.iter().max().copied().unwrap_or(0) + 1),
        };
        num_seqs = num_seqs.max(workload_seqs);
        len = len.max(workload_len);
    }
    model.max_num_seqs.get_or_insert(num_seqs);
    model.max_model_len.get_or_insert(len.clamp(128, model_limit.max(128)));
    model
}

/// A loaded model and what its figures are stated against.
struct Session {
    bed: Bed,
    cost: ModelCost,
    probe: Probe,
    results: Results,
}

impl Session {
    fn nano(&mut self, args: &BenchThroughputArgs) -> anyhow::Result<()> {
        let seed = args.seed;
        let workload = NanoWorkload::new(args.num_requests, args.request_len, seed);
        let lengths = workload.lengths();
        let (num_prompt, num_output) =
            lengths.iter().fold((0, 0), |(prompt, output), length| (prompt + length.0, output + length.1));
        let roof = num_output as f64 / self.cost.batch_s(&self.probe, &lengths);
        let mut pauses = Vec::new();
        let mut rates = self.repeat(args, |bed| {
            let nano = bed.nano(&workload)?;
            pauses.extend(nano.pause_percent);
            Ok(num_output as f64 / nano.total_s)
        })?;
        let rate = median(&mut rates);
        let idle_percent = (!pauses.is_empty()).then(|| median(&mut pauses));
        let percent = 100.0 * rate / roof;
        let text = format!(
            "nano     {} requests, {num_prompt} prompt and {num_output} output tokens: {rate:.1} tok/s, {percent:.1} % of \
             {roof:.0}{}",
            args.num_requests,
            idle_text(idle_percent)
        );
        let fields = json!({
            "workload": "nano", "num_requests": args.num_requests, "seed": seed, "num_prompt_tokens": num_prompt,
            "num_output_tokens": num_output, "output_tokens_per_s": rate, "repeats": rates,
            "roof_tokens_per_s": roof, "percent_of_roof": percent, "gpu_idle_percent": idle_percent,
        });
        self.results.add(&text, fields)
    }

    fn decode(&mut self, args: &BenchThroughputArgs) -> anyhow::Result<()> {
        for &context_len in &args.context_len {
            for &batch_size in &args.batch_size {
                if let Some(why) = self.misfit(batch_size, context_len + args.num_steps + CONTEXT_MARGIN) {
                    println!("decode   {batch_size} x {context_len}: skipped: {why}");
                    continue;
                }
                self.decode_point(args, batch_size, context_len)?;
            }
        }
        Ok(())
    }

    fn decode_point(
        &mut self,
        args: &BenchThroughputArgs,
        batch_size: usize,
        context_len: usize,
    ) -> anyhow::Result<()> {
        let decode = self.bed.decode(batch_size, context_len, args.num_steps)?;
        let step_s = decode.total_s / args.num_steps as f64;
        let quantile = |share: f64| decode.step_s[((args.num_steps - 1) as f64 * share) as usize] * 1e3;
        let roof_s = self.cost.decode_step_s(&self.probe, batch_size, (batch_size * context_len) as f64);
        let (rate, percent) = (batch_size as f64 / step_s, 100.0 * roof_s / step_s);
        let p50_percent = 100.0 * roof_s * 1e3 / quantile(0.5);
        let kinds = if decode.is_of_one_kind { "" } else { ", graphs were captured on the way" };
        let text = format!(
            "decode   {batch_size:>4} x {context_len:>6}: {rate:>9.1} tok/s, step {:.3} ms (p50 {:.3}, p99 {:.3}), \
             {percent:.1} % (p50 {p50_percent:.1} %) of the roof's {:.0} tok/s{}{kinds}",
            step_s * 1e3,
            quantile(0.5),
            quantile(0.99),
            batch_size as f64 / roof_s,
            idle_text(decode.pause_percent)
        );
        let fields = json!({
            "workload": "decode", "batch_size": batch_size, "context_len": context_len, "num_steps": args.num_steps,
            "output_tokens_per_s": rate, "step_ms": step_s * 1e3, "step_ms_p50": quantile(0.5),
            "step_ms_p99": quantile(0.99), "roof_tokens_per_s": batch_size as f64 / roof_s,
            "percent_of_roof": percent, "percent_of_roof_p50": p50_percent,
            "gpu_idle_percent": decode.pause_percent, "has_captures": !decode.is_of_one_kind, "tries": decode.num_tries,
        });
        self.results.add(&text, fields)
    }

    fn prefill(&mut self, args: &BenchThroughputArgs) -> anyhow::Result<()> {
        for &prompt_len in &args.prompt_len {
            if let Some(why) = self.misfit(1, prompt_len + 1) {
                println!("prefill  {prompt_len}: skipped: {why}");
                continue;
            }
            // The first one captures and loads what a prompt of this length needs.
            self.bed.prefill(prompt_len)?;
            let mut rates = self.repeat(args, |bed| Ok(prompt_len as f64 / bed.prefill(prompt_len)?))?;
            let rate = median(&mut rates);
            let roof = prompt_len as f64 / self.cost.prefill_s(&self.probe, prompt_len);
            let percent = 100.0 * rate / roof;
            let text = format!(
                "prefill  {prompt_len:>6}: {rate:>9.1} tok/s, first token after {:.1} ms, {percent:.1} % of the roof's {roof:.0}",
                1e3 * prompt_len as f64 / rate
            );
            let fields = json!({
                "workload": "prefill", "prompt_len": prompt_len, "prompt_tokens_per_s": rate, "repeats": rates,
                "roof_tokens_per_s": roof, "percent_of_roof": percent,
            });
            self.results.add(&text, fields)?;
        }
        Ok(())
    }

    fn repeat(
        &self,
        args: &BenchThroughputArgs,
        mut measure: impl FnMut(&Bed) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Vec<f64>> {
        let rates: Vec<f64> =
            (0..args.repeats.max(1)).map(|_| measure(&self.bed)).collect::<Result<_, _>>()?;
        if rates.iter().all(|rate| rate.is_finite()) {
            Ok(rates)
        } else {
            bail!("a rate is no number: {rates:?}")
        }
    }

    /// Why so many sequences of this length cannot run at once.
    fn misfit(&self, num_seqs: usize, len: usize) -> Option<String> {
        let (config, runner) = (&self.bed.config, &self.bed.config.runner);
        let needed = num_seqs * (len.div_ceil(runner.block_size) + 1) + config.watermark_blocks;
        if len > runner.max_model_len {
            Some(format!("{len} tokens are more than --max-model-len {}", runner.max_model_len))
        } else if num_seqs > runner.max_num_seqs {
            Some(format!("more than --max-num-seqs {}", runner.max_num_seqs))
        } else if needed >= runner.num_blocks {
            Some(format!("{needed} KV blocks are needed, {} are there", runner.num_blocks - 1))
        } else {
            None
        }
    }
}

/// How long a GPU had nothing to do, where that is known.
fn idle_text(percent: Option<f64>) -> String {
    percent.map_or_else(String::new, |percent| format!(", GPU idle {percent:.2} %"))
}

/// The middle one; of two the lower.
fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_three_is_the_second() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [2.0, 1.0]), 1.0);
    }
}
