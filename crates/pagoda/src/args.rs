//! What can be typed: every flag, its documentation and its default. Knows nothing about what the values mean together;
//! that is `config`'s business.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::conformance::Variant;
use crate::device::DeviceChoice;
use crate::products::Gemm;
use crate::schema_args::SchemaArgs;

/// PagedAttention LLM inference server with an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "pagoda", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model over the OpenAI HTTP API.
    Serve(Box<ServeArgs>),
    /// Fetch a model into the cache, verify it and print where it is.
    Pull(PullArgs),
    /// Measure a server.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print what this machine offers: CPU, memory, cache, models.
    Doctor(StoreArgs),
    /// Compare every op on a GPU of this machine with the CPU reference.
    Conformance(ConformanceArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ConformanceArgs {
    /// The N of cuda:N.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) device: i32,
    /// Only cases whose name begins with one of these.
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Only these ways to compute, separated by commas [default: all that the GPU has].
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Variant::ALL, hide_default_value = true)]
    pub(crate) variant: Vec<Variant>,
    /// Of the inputs.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// Where models are looked for.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArgs {
    /// A catalogue file to use instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    pub(crate) catalogue: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A catalogue name or org/repo[:GGUF]; the default model if omitted.
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Which of several ways a GPU computes.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct KernelArgs {
    /// Numbers of activations, weights, K and V on a GPU: auto is bf16; f16 has a finer fraction and overflows beyond 65504.
    /// Weights of block formats keep their codes.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Dtype,
    /// What multiplies many rows on a GPU: auto is cuBLASLt where it is on the machine and passes its test, own is the built-in
    /// kernel.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) gemm: Gemm,
    /// What does the attention of prompts on a GPU: wgmma is for compute capability 9.0 and has not run on a GPU yet.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) prefill_kernel: PrefillChoice,
    /// One kernel for the products of every number of rows on a GPU, and no cuBLASLt: slower, and the bits of an answer do not
    /// depend on what else is in a step. The CPU is always so.
    #[arg(long)]
    pub(crate) deterministic: bool,
}

/// `--dtype`, by our names and by those that vLLM and PyTorch have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// Whatever the device computes with: bf16 on a GPU, f32 on the CPU.
    #[default]
    Auto,
    /// 8 bits of exponent, 7 of fraction.
    #[value(alias = "bfloat16")]
    Bf16,
    /// 5 bits of exponent, 10 of fraction.
    #[value(aliases = ["float16", "half"])]
    F16,
}

/// `--prefill-kernel`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrefillChoice {
    /// Every GPU and shape.
    #[default]
    Mma,
    /// By wgmma and TMA, where there is a kernel for the shape.
    Wgmma,
}

/// Which model, and with what resources it runs.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// A catalogue name, an org/repo[:GGUF] of the hub, a GGUF file or a folder with safetensors; the default model if
    /// omitted.
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Where the weights come from: auto reads the model's files; dummy[:SEED] draws random ones for the shape of a
    /// config.json (that file, or its folder), to measure speed.
    #[arg(long, default_value = "auto", value_name = "auto|dummy[:SEED]")]
    pub(crate) load_format: LoadFormat,

    /// Where the model runs: auto takes the first GPU, and the CPU where there is none.
    #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda:N")]
    pub(crate) device: DeviceChoice,
    /// Longest prompt plus output, in tokens [default: the model's own limit].
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_model_len: Option<usize>,
    /// Most sequences that run at the same time [default: 32, on a GPU 256].
    #[arg(long)]
    pub(crate) max_num_seqs: Option<usize>,
    /// Most tokens computed in one step, prompts and outputs together; at least max-num-seqs [default: 512, on a GPU 4096].
    #[arg(long)]
    pub(crate) max_num_batched_tokens: Option<usize>,
    /// Most requests that wait; the next one gets 429 [default: 4 x max-num-seqs].
    #[arg(long)]
    pub(crate) max_queued_requests: Option<usize>,
    /// Tokens in one KV block: a multiple of 8; on a GPU a power of two from 16 to 256.
    #[arg(long, default_value_t = 16)]
    pub(crate) block_size: usize,
    /// Memory for the KV cache, e.g. 2GiB or 800M [default: on a CPU what max-num-seqs x max-model-len needs, but at most a
    /// quarter of the available memory; on a GPU all that is left].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) kv_cache_memory: Option<u64>,
    /// How a GPU keeps K and V: auto is the activations' type, fp8 is e4m3 with a scale per head and token, in half the bytes.
    #[arg(long, default_value = "auto", value_parser = ["auto", "fp8"])]
    pub(crate) kv_cache_dtype: String,
    /// On a GPU: launch every kernel by itself instead of whole decode steps as CUDA graphs.
    #[arg(long)]
    pub(crate) no_cuda_graphs: bool,
    #[command(flatten)]
    pub(crate) kernels: KernelArgs,
    /// Do not share the KV of equal prompt beginnings.
    #[arg(long)]
    pub(crate) no_prefix_caching: bool,
    /// CPU threads for the model [default: those this process may use].
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Instruction set of the CPU kernels [default: the best that this CPU has].
    #[arg(long, value_parser = ["portable", "avx2", "avx512"])]
    pub(crate) isa: Option<String>,
    /// How quantised weights are multiplied on the CPU: f32 is exact to f32's rounding, int16 is faster and rounds the
    /// activations.
    #[arg(long, default_value = "f32", value_parser = ["f32", "int16"])]
    pub(crate) cpu_arithmetic: String,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Address to listen on; localhost is 127.0.0.1. Anything but loopback needs --api-key-file.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = parse_host)]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 takes a free one and prints it.
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,

    /// Names that clients may use for the model, separated by commas [default: the name it was loaded by].
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) served_model_name: Vec<String>,
    /// Answer chat and completions under any model name, instead of 404 for an unknown one.
    #[arg(long)]
    pub(crate) accept_any_model: bool,
    /// The model of /v1/embeddings, loaded at the first call: a catalogue name, a folder with safetensors, or none
    /// [default: the catalogue's].
    #[arg(long, value_name = "NAME|PATH|none")]
    pub(crate) embedding_model: Option<String>,
    /// Names that /v1/models lists for the embedding model, separated by commas; it answers to any name [default: the name
    /// it was chosen by].
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) embedding_name: Vec<String>,
    /// A chat template (Jinja) to use instead of the model's.
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,

    /// Put the tools of a chat before the system's text, where the template permits: an edit of the text then leaves the
    /// tools in the prefix cache.
    #[arg(long)]
    pub(crate) tools_first: bool,
    /// Seconds of silence after which a stream sends a comment.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) sse_keep_alive: u64,
    /// What a tool_choice of auto means, and none at all: auto leaves it to the model, required makes it call a tool. For
    /// weak models, which else answer agents with text.
    #[arg(long, default_value = "auto", value_parser = ["auto", "required"])]
    pub(crate) tool_choice_auto: String,

    #[command(flatten)]
    pub(crate) schema: SchemaArgs,

    /// File with one API key per line; empty lines and lines starting with # are skipped.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Serve without keys on an address that others can reach.
    #[arg(long)]
    pub(crate) insecure_no_auth: bool,
    /// Origins that browsers may call from, separated by commas.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) cors_origin: Vec<String>,

    /// Write each step's plan as a table to this file (- for stderr).
    #[arg(long, value_name = "FILE")]
    pub(crate) trace_steps: Option<PathBuf>,
    /// Form of the log lines on stderr; RUST_LOG filters them.
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    pub(crate) log_format: String,
    /// Seconds that accepted requests get to finish after SIGTERM or Ctrl-C.
    #[arg(long, value_name = "SECONDS", default_value_t = 25)]
    pub(crate) drain_timeout: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Load an OpenAI-compatible server and report latency and throughput.
    Serve(BenchServeArgs),
    /// Run the engine without a server: many requests at once, decode steps, prompts, each beside the device's roof.
    Throughput(Box<BenchThroughputArgs>),
    /// Run each op by itself, beside a copy and a product of the same minute.
    Kernels(BenchKernelsArgs),
    /// Compare a device's choices with those of the exact CPU arithmetic, on the same text.
    Agreement(Box<BenchAgreementArgs>),
    /// Compare the answers of many requests at once between ways to run the same steps, and with the exact CPU arithmetic.
    Consistency(Box<BenchConsistencyArgs>),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchThroughputArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What to run: nano, decode, prefill.
    #[arg(long, default_value = "nano", value_delimiter = ',', value_parser = ["nano", "decode", "prefill"])]
    pub(crate) workload: Vec<String>,
    /// Requests of nano.
    #[arg(long, default_value_t = 256)]
    pub(crate) num_requests: usize,
    /// Prompt and output tokens of each request of nano, uniform between LOW and HIGH.
    #[arg(long, default_value = "100-1024", value_name = "LOW-HIGH", value_parser = parse_range)]
    pub(crate) request_len: (usize, usize),
    /// Sequences of decode.
    #[arg(long, default_value = "1,2,4,8,16,32,64,128,256", value_delimiter = ',')]
    pub(crate) batch_size: Vec<usize>,
    /// Context tokens of decode, in the middle of the steps.
    #[arg(long, default_value = "128,1024,4096,16384", value_delimiter = ',')]
    pub(crate) context_len: Vec<usize>,
    /// Counted steps of decode.
    #[arg(long, default_value_t = 32, value_parser = parse_at_least_one)]
    pub(crate) num_steps: usize,
    /// Prompt tokens of prefill.
    #[arg(long, default_value = "128,512,2048,8192,32768", value_delimiter = ',')]
    pub(crate) prompt_len: Vec<usize>,
    /// Repeats of nano and prefill; the median counts.
    #[arg(long, default_value_t = 3)]
    pub(crate) repeats: usize,
    /// Seed of nano's lengths and prompts.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u32,
    /// Fail after this many seconds.
    #[arg(long, default_value_t = 3600)]
    pub(crate) max_seconds: u64,
    /// Append a line of JSON for each figure to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchKernelsArgs {
    /// Whose ops.
    #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda:N")]
    pub(crate) device: DeviceChoice,
    #[command(flatten)]
    pub(crate) kernels: KernelArgs,
    /// Only cases whose name begins with one of these.
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Print the cases with their bytes and FLOPs, and run none.
    #[arg(long)]
    pub(crate) list: bool,
    /// Append a line of JSON for each figure to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchAgreementArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A text to compare on [default: a built-in one; random tokens for random weights].
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Tokens compared at most.
    #[arg(long, default_value_t = 1024)]
    pub(crate) num_tokens: usize,
    #[command(flatten)]
    pub(crate) limits: AgreementLimits,
    /// Append a line of JSON to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchConsistencyArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Requests, half of which arrive while the others run.
    #[arg(long, default_value_t = 32, value_parser = parse_at_least_one)]
    pub(crate) num_requests: usize,
    /// Prompt tokens of each, drawn between LOW and HIGH.
    #[arg(long, default_value = "5-200", value_name = "LOW-HIGH", value_parser = parse_range)]
    pub(crate) prompt_len: (usize, usize),
    /// Output tokens of each.
    #[arg(long, default_value_t = 48, value_parser = parse_at_least_one)]
    pub(crate) output_len: usize,
    /// Requests whose tokens are compared with the exact arithmetic.
    #[arg(long, default_value_t = 8, value_parser = parse_at_least_one)]
    pub(crate) num_exact: usize,
    /// Of lengths and prompts.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u32,
    #[command(flatten)]
    pub(crate) limits: AgreementLimits,
    /// Append a line of JSON for each way to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// How far a device may be from the exact arithmetic.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct AgreementLimits {
    /// Fail if the likeliest token is the same at fewer places than this, in percent.
    #[arg(long, default_value_t = 99.0)]
    pub(crate) min_percent: f64,
    /// Fail if the logprob of the text's (or answer's) own tokens differs by more than this in the mean.
    #[arg(long, default_value_t = 0.02)]
    pub(crate) max_difference: f64,
    /// Fail if another token is the likeliest where the exact logprobs of the two differ by this much or more.
    #[arg(long, default_value_t = 0.3)]
    pub(crate) max_gap: f64,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchServeArgs {
    /// Base URL, e.g. http://127.0.0.1:8000 or localhost:8000. Plain HTTP only: of a server behind TLS name its own port.
    pub(crate) url: String,
    /// Model name [default: the first one that the server lists].
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Which endpoint to call.
    #[arg(long, default_value = "completions", value_parser = ["completions", "chat"])]
    pub(crate) endpoint: String,
    /// Requests in all.
    #[arg(long, default_value_t = 64)]
    pub(crate) num_requests: usize,
    /// Requests sent beforehand and not measured.
    #[arg(long, default_value_t = 1)]
    pub(crate) num_warmups: usize,
    /// Closed loop: this many requests are always under way.
    #[arg(long, default_value_t = 8, conflicts_with = "request_rate")]
    pub(crate) concurrency: usize,
    /// Open loop: requests arrive as a Poisson process of this many a second, however slow the answers are.
    #[arg(long)]
    pub(crate) request_rate: Option<f64>,
    /// Prompt tokens: N, uniform:LOW-HIGH or lognormal:MEAN[,SIGMA].
    #[arg(long, default_value = "128", value_name = "LENGTHS")]
    pub(crate) prompt_len: crate::bench::Lengths,
    /// Output tokens, in the same forms.
    #[arg(long, default_value = "128", value_name = "LENGTHS")]
    pub(crate) output_len: crate::bench::Lengths,
    /// Ids of random prompt tokens are drawn below this (completions only).
    #[arg(long, default_value_t = 10_000)]
    pub(crate) vocab_size: u32,
    /// Seed of prompts, lengths and arrivals.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Sampling temperature.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f64,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 600)]
    pub(crate) max_seconds: u64,
    /// File whose first line is the API key.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Write the results as JSON to this file (- for stdout).
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadFormat {
    /// The model's files.
    Auto,
    /// A seeded random generator.
    Dummy {
        /// Its seed.
        seed: u64,
    },
}

impl FromStr for LoadFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, seed) = text.split_once(':').unwrap_or((text, "0"));
        match (name, seed.parse()) {
            ("auto", _) if text == "auto" => Ok(LoadFormat::Auto),
            ("dummy", Ok(seed)) => Ok(LoadFormat::Dummy { seed }),
            _ => Err(format!("{text:?} is none of auto, dummy, dummy:SEED")),
        }
    }
}

/// `100-1024`: both ends at least 1.
fn parse_range(text: &str) -> Result<(usize, usize), String> {
    let range = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    match range {
        Some((low, high)) if 1 <= low && low <= high && high <= 1 << 20 => Ok((low, high)),
        _ => Err(format!("{text:?} is no LOW-HIGH")),
    }
}

fn parse_at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| format!("{text:?} is not a number above 0"))
}

/// An address; of names only the one that always means the same.
fn parse_host(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    text.parse().map_err(|_| "it must be an IP address or localhost".to_owned())
}

/// `800M`, `2GiB`, `1000000`: decimal units without `i`, binary ones with it.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: f64 = match unit.trim().to_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("unknown unit {other:?}; use k, M, G, KiB, MiB or GiB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a size"))?;
    Ok((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn load_formats_are_read_with_their_seeds() {
        assert_eq!("auto".parse(), Ok(LoadFormat::Auto));
        assert_eq!("dummy".parse(), Ok(LoadFormat::Dummy { seed: 0 }));
        assert_eq!("dummy:7".parse(), Ok(LoadFormat::Dummy { seed: 7 }));
        for bad in ["", "auto:1", "dummy:", "dummy:-1", "gguf"] {
            assert!(bad.parse::<LoadFormat>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_bytes("800M"), Ok(800_000_000));
        assert_eq!(parse_bytes("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("42"), Ok(42));
        assert!(parse_bytes("12 parsecs").is_err());
        assert!(parse_bytes("").is_err());
    }
}
