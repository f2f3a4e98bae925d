//! From flags to numbers: [`ListenConfig`] is known before the model, [`Config`] after its checkpoint has been opened. What
//! is in them is checked and complete; no default is left to be chosen below.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use pagoda_backend_cpu::{Arithmetic, CpuOptions, Isa};
use pagoda_engine::EngineConfig;
use pagoda_model::{Checkpoint, RunnerConfig};
use pagoda_server::{ApiKeys, AutoToolChoice, ServerConfig};

use crate::args::{ModelArgs, ServeArgs};
use crate::batch_limits::BatchLimits;
use crate::device::{DeviceConfig, DeviceMemory, GpuOptions};
use crate::kv_pool::KvPool;

/// A context window below this is of no use to anyone: the start is refused.
pub(crate) const MIN_MODEL_LEN: usize = 64;

/// Where to listen, and who may call.
#[derive(Debug)]
pub(crate) struct ListenConfig {
    /// Port 0 takes a free one.
    pub(crate) address: SocketAddr,
    /// Names, keys, origins, limits.
    pub(crate) server: ServerConfig,
    /// Others can reach the server and need no key.
    pub(crate) is_open_to_others: bool,
}

/// Everything that the model and the engine are told.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Sizes of pool and batch.
    pub(crate) runner: RunnerConfig,
    /// Requests that may wait.
    pub(crate) max_queued_requests: usize,
    /// Blocks left free when a request is admitted.
    pub(crate) watermark_blocks: usize,
    /// Whether equal prompt beginnings share KV.
    pub(crate) prefix_caching: bool,
    /// Tokens that may be chosen.
    pub(crate) vocab_size: usize,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

impl ListenConfig {
    /// Checks the flags about the network. `model` is what the user typed or the default model's name.
    pub(crate) fn resolve(args: &ServeArgs, model: &str) -> anyhow::Result<Self> {
        let names = match &args.served_model_name[..] {
            [] => vec![served_name(model)],
            names => names.to_vec(),
        };
        check_names("--served-model-name", &names)?;
        let mut server = ServerConfig::new(names);
        server.accept_any_model = args.accept_any_model;
        server.schema_bounds = args.schema.bounds();
        if let Some(file) = &args.api_key_file {
            server.api_keys = read_keys(file)?;
        }
        let needs_no_key = server.api_keys.is_empty();
        let is_open_to_others = needs_no_key && !args.host.is_loopback();
        if is_open_to_others && !args.insecure_no_auth {
            bail!(
                "--host {} can be reached by others: give --api-key-file, or --insecure-no-auth if that is meant",
                args.host
            );
        }
        server.cors_origins = args.cors_origin.clone();
        server.tools_first = args.tools_first;
        server.requests.sse_keep_alive = Duration::from_secs(args.sse_keep_alive);
        if args.tool_choice_auto == "required" {
            server.auto_tool_choice = AutoToolChoice::Required;
        }
        server.drain.drain_timeout = Duration::from_secs(args.drain_timeout);
        Ok(ListenConfig { address: SocketAddr::new(args.host, args.port), server, is_open_to_others })
    }
}

/// A model is listed once under each of its names.
pub(crate) fn check_names(flag: &str, names: &[String]) -> anyhow::Result<()> {
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() {
            bail!("{flag} has an empty name");
        }
        if names[..index].contains(name) {
            bail!("{flag} has {name} twice");
        }
    }
    Ok(())
}

fn read_keys(file: &Path) -> anyhow::Result<ApiKeys> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("reading --api-key-file {}", file.display()))?;
    let keys = ApiKeys::parse(&text).with_context(|| format!("in --api-key-file {}", file.display()))?;
    if keys.is_empty() {
        bail!("--api-key-file {} holds no key", file.display());
    }
    Ok(keys)
}

/// A path is served under its last part, without the ending.
pub(crate) fn served_name(model: &str) -> String {
    let path = Path::new(model);
    if !path.exists() {
        return model.to_owned();
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name =
        [".gguf", ".json"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name).to_owned();
    if name.is_empty() { "model".to_owned() } else { name }
}

impl DeviceConfig {
    /// Checks the flags about the device.
    pub(crate) fn resolve(args: &ModelArgs) -> anyhow::Result<Self> {
        Ok(DeviceConfig {
            choice: args.device,
            cpu: CpuOptions { num_threads: num_threads(args)?, isa: isa(args)? },
            arithmetic: if args.cpu_arithmetic == "int16" { Arithmetic::Int16 } else { Arithmetic::F32 },
            gpu: GpuOptions {
                dtype: args.kernels.dtype,
                is_fp8_kv: args.kv_cache_dtype == "fp8",
                has_graphs: !args.no_cuda_graphs,
                policy: args.kernels.policy(),
            },
            kernels: args.kernels,
        })
    }
}

impl Config {
    /// Checks the flags about the model against the model and the machine, and sizes the KV pool.
    pub(crate) fn resolve(
        args: &ModelArgs,
        checkpoint: &Checkpoint,
        device: DeviceMemory,
    ) -> anyhow::Result<Self> {
        let limits = BatchLimits::resolve(args, device.kind)?;
        let model_limit = checkpoint.config().max_position_embeddings;
        let max_model_len = args.max_model_len.unwrap_or(model_limit);
        if max_model_len > model_limit || max_model_len < MIN_MODEL_LEN {
            bail!(
                "--max-model-len {max_model_len}: this model can do {MIN_MODEL_LEN} to {model_limit} tokens"
            );
        }
        let wanted = RunnerConfig {
            block_size: limits.block_size,
            num_blocks: 0,
            max_num_seqs: limits.max_num_seqs,
            max_num_batched_tokens: limits.max_num_batched_tokens,
            max_model_len,
        };
        let mut warnings: Vec<String> = too_many_threads(args).into_iter().collect();
        let runner = KvPool { args, checkpoint, device }.fit(wanted, &mut warnings)?;
        let config = Config {
            max_queued_requests: limits.max_queued_requests,
            watermark_blocks: (runner.num_blocks / 100).clamp(1, 16),
            prefix_caching: !args.no_prefix_caching,
            vocab_size: checkpoint.num_choosable_tokens(),
            runner,
            warnings,
        };
        config.engine().validate()?;
        Ok(config)
    }

    /// What the engine is told; the trace is the caller's to add.
    pub(crate) fn engine(&self) -> EngineConfig {
        EngineConfig {
            block_size: self.runner.block_size,
            num_blocks: self.runner.num_blocks,
            max_num_seqs: self.runner.max_num_seqs,
            max_num_batched_tokens: self.runner.max_num_batched_tokens,
            max_model_len: self.runner.max_model_len,
            max_queued_requests: self.max_queued_requests,
            watermark_blocks: self.watermark_blocks,
            prefix_caching: self.prefix_caching,
            vocab_size: self.vocab_size,
            ..EngineConfig::default()
        }
    }
}

/// Threads of the model.
pub(crate) fn num_threads(args: &ModelArgs) -> anyhow::Result<usize> {
    match args.threads {
        Some(0) => bail!("--threads must be at least 1"),
        Some(threads) => Ok(threads),
        None => Ok(num_cpus()),
    }
}

/// The CPUs that affinity and control group leave.
fn num_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, |threads| threads.get())
}

/// Threads wait for each other after every op, so that those without a CPU hold up all.
fn too_many_threads(args: &ModelArgs) -> Option<String> {
    let (threads, num_cpus) = (args.threads?, num_cpus());
    (threads > num_cpus).then(|| {
        format!("--threads {threads} is more than the {num_cpus} CPUs that this process may use: every step will be slower")
    })
}

fn isa(args: &ModelArgs) -> anyhow::Result<Option<Isa>> {
    let isa = match args.isa.as_deref() {
        None => return Ok(Some(Isa::detect())),
        Some("avx2") => Isa::Avx2,
        Some("avx512") => Isa::Avx512,
        Some(_) => Isa::Portable,
    };
    if !isa.is_available() {
        bail!("--isa {isa}: this CPU does not have it");
    }
    Ok(Some(isa))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn serve_args(flags: &[&str]) -> ServeArgs {
        match Cli::parse_from(["pagoda", "serve"].iter().chain(flags)).command {
            Command::Serve(args) => *args,
            _ => unreachable!(),
        }
    }

    #[test]
    fn an_address_that_others_can_reach_needs_a_key_or_a_clear_word() {
        for host in ["0.0.0.0", "192.0.2.1", "::"] {
            let error = ListenConfig::resolve(&serve_args(&["--host", host]), "m").unwrap_err();
            assert!(error.to_string().contains("--api-key-file"), "{error}");
            let open =
                ListenConfig::resolve(&serve_args(&["--host", host, "--insecure-no-auth"]), "m").unwrap();
            assert!(open.is_open_to_others);
        }
        for host in ["127.0.0.1", "::1"] {
            assert!(!ListenConfig::resolve(&serve_args(&["--host", host]), "m").unwrap().is_open_to_others);
        }
    }

    #[test]
    fn a_key_file_opens_other_addresses_and_an_empty_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        let flags = ["--host", "0.0.0.0", "--api-key-file", file.to_str().unwrap()];
        std::fs::write(&file, "# none yet\n").unwrap();
        assert!(ListenConfig::resolve(&serve_args(&flags), "m").is_err());
        std::fs::write(&file, "sk-0123456789abcdef0123456789abcdef\n").unwrap();
        assert!(!ListenConfig::resolve(&serve_args(&flags), "m").unwrap().is_open_to_others);
    }

    #[test]
    fn a_name_that_is_given_twice_or_empty_is_refused() {
        for (names, reason) in [("A,A", "has A twice"), ("A,B,A", "has A twice"), ("A,,B", "empty name")] {
            let error = ListenConfig::resolve(&serve_args(&["--served-model-name", names]), "m").unwrap_err();
            let error = error.to_string();
            assert!(error.contains("--served-model-name") && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn localhost_is_an_address_and_other_names_are_refused_with_what_is_wanted() {
        let listen =
            ListenConfig::resolve(&serve_args(&["--host", "localhost", "--port", "7"]), "m").unwrap();
        assert_eq!(listen.address.to_string(), "127.0.0.1:7");
        assert!(!listen.is_open_to_others);
        let error = Cli::try_parse_from(["pagoda", "serve", "--host", "example"]).unwrap_err().to_string();
        assert!(error.contains("an IP address or localhost"), "{error}");
    }

    #[test]
    fn origins_are_separated_by_commas_or_flags() {
        let flags = ["--cors-origin", "http://a,http://b:1", "--cors-origin", "http://c"];
        let listen = ListenConfig::resolve(&serve_args(&flags), "m").unwrap();
        assert_eq!(listen.server.cors_origins, ["http://a", "http://b:1", "http://c"]);
    }

    #[test]
    fn more_threads_than_cpus_are_warned_of_with_their_number() {
        let warning =
            |threads: usize| too_many_threads(&serve_args(&["--threads", &threads.to_string()]).model);
        let warned = warning(num_cpus() + 1).unwrap();
        assert!(warned.contains("--threads") && warned.contains(&format!("{} CPUs", num_cpus())), "{warned}");
        assert_eq!(warning(num_cpus()), None);
        assert_eq!(too_many_threads(&serve_args(&[]).model), None);
    }

    #[test]
    fn names_come_from_the_flag_or_from_the_model() {
        let names = |flags: &[&str], model| {
            ListenConfig::resolve(&serve_args(flags), model).unwrap().server.served_model_names
        };
        assert_eq!(names(&[], "org/repo"), ["org/repo"]);
        assert_eq!(names(&["--served-model-name", "a,gpt-4o-mini"], "org/repo"), ["a", "gpt-4o-mini"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tiny.Q8_0.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(names(&[], file.to_str().unwrap()), ["tiny.Q8_0"]);
    }
}
