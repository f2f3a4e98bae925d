//! How many KV blocks there are, and the context window that fits into them. On a GPU they take what the weights, the workspace
//! and a reserve leave of the free memory, counted to the byte; on a CPU a share of it.

use anyhow::bail;
use pagoda_engine::EngineConfig;
use pagoda_model::{Checkpoint, MemoryBudget, RunnerConfig, kv_bytes_per_block};

use crate::args::ModelArgs;
use crate::config::MIN_MODEL_LEN;
use crate::device::{DeviceKind, DeviceMemory, measure_on_gpu};
use crate::pull::bytes_text;

/// Part of the available memory that the KV cache takes unasked: a CPU's memory belongs to others too.
const CPU_SHARE: u64 = 4;
/// Bytes of a GPU that are left to the driver, and this part of the free ones: captured graphs, the ends of allocations, lists
/// longer than usual.
const GPU_RESERVE_BYTES: u64 = 512 << 20;
const GPU_RESERVE_PART: u64 = 50;

/// What the pool's size depends on.
pub(crate) struct KvPool<'a> {
    pub(crate) args: &'a ModelArgs,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) device: DeviceMemory,
}

impl KvPool<'_> {
    /// Fills in the number of blocks, and shrinks a window that nobody asked for to what they hold.
    pub(crate) fn fit(
        &self,
        wanted: RunnerConfig,
        warnings: &mut Vec<String>,
    ) -> anyhow::Result<RunnerConfig> {
        let wanted_blocks =
            2 + wanted.max_num_seqs.saturating_mul(wanted.max_model_len.div_ceil(wanted.block_size));
        let num_blocks = match (self.args.kv_cache_memory, self.device.kind) {
            (Some(bytes), _) => usize::try_from(bytes / self.block_bytes())?,
            (None, DeviceKind::Cpu) => {
                let bytes = self.device.available_bytes / CPU_SHARE;
                wanted_blocks.min(usize::try_from(bytes / self.block_bytes())?)
            }
            (None, DeviceKind::Gpu) => self.all_that_is_left(wanted)?,
        };
        let fitted = self.fit_window(RunnerConfig { num_blocks, ..wanted }, warnings)?;
        // Law of thumb: with less than two full windows, one long request evicts everyone else's prefixes.
        let two_windows = 2 * EngineConfig::min_num_blocks(fitted.max_model_len, fitted.block_size);
        if num_blocks < wanted_blocks.min(two_windows) {
            warnings.push(format!(
                "the KV cache holds {} tokens, less than two requests of {}: raise --kv-cache-memory or lower \
                 --max-model-len if requests are preempted",
                (num_blocks - 1) * fitted.block_size,
                fitted.max_model_len
            ));
        }
        let budget = self.budget(&fitted)?;
        match budget.total_bytes().saturating_add(self.reserve()).checked_sub(self.device.available_bytes) {
            None | Some(0) => Ok(fitted),
            Some(missing) => Err(self.shortfall(&budget, missing)),
        }
    }

    /// Blocks of a GPU.
    fn all_that_is_left(&self, wanted: RunnerConfig) -> anyhow::Result<usize> {
        let one_block = self.budget(&RunnerConfig { num_blocks: 1, ..wanted })?;
        let fixed = one_block.total_bytes() - one_block.kv_bytes + self.reserve();
        let left = self.device.available_bytes.saturating_sub(fixed);
        let least = 2 + MIN_MODEL_LEN.div_ceil(wanted.block_size) as u64;
        if left / self.block_bytes() < least {
            let needed = MemoryBudget { kv_bytes: least * self.block_bytes(), ..one_block };
            let missing = needed.total_bytes() + self.reserve() - self.device.available_bytes;
            return Err(self.shortfall(&needed, missing));
        }
        // Slots are numbered in 32 bits.
        Ok(usize::try_from(left / self.block_bytes())?.min(u32::MAX as usize / wanted.block_size))
    }

    fn block_bytes(&self) -> u64 {
        kv_bytes_per_block(self.checkpoint.config(), self.device.kv_format, self.args.block_size).max(1)
    }

    fn budget(&self, runner: &RunnerConfig) -> anyhow::Result<MemoryBudget> {
        match self.device.kind {
            DeviceKind::Cpu => Ok(MemoryBudget::plan(self.checkpoint, self.device.kv_format, runner)),
            DeviceKind::Gpu => measure_on_gpu(self.checkpoint, runner, self.device.kv_format),
        }
    }

    fn reserve(&self) -> u64 {
        match self.device.kind {
            DeviceKind::Cpu => 0,
            DeviceKind::Gpu => GPU_RESERVE_BYTES + self.device.available_bytes / GPU_RESERVE_PART,
        }
    }

    fn shortfall(&self, budget: &MemoryBudget, missing: u64) -> anyhow::Error {
        anyhow::anyhow!(
            "{missing} bytes of memory are missing ({}): weights {}, KV cache {}, workspace {} and a reserve of {} need \
             {}, {} are available: lower --kv-cache-memory, --max-model-len, --max-num-seqs or \
             --max-num-batched-tokens, or serve a smaller model",
            bytes_text(missing),
            bytes_text(budget.weight_bytes),
            bytes_text(budget.kv_bytes),
            bytes_text(budget.workspace_bytes),
            bytes_text(self.reserve()),
            bytes_text(budget.total_bytes() + self.reserve()),
            bytes_text(self.device.available_bytes)
        )
    }

    /// A window that the user did not ask for shrinks to the pool; one that was asked for is refused.
    fn fit_window(&self, runner: RunnerConfig, warnings: &mut Vec<String>) -> anyhow::Result<RunnerConfig> {
        let needed = EngineConfig::min_num_blocks(runner.max_model_len, runner.block_size);
        if runner.num_blocks >= needed {
            return Ok(runner);
        }
        let fitting_len = runner.num_blocks.saturating_sub(2) * runner.block_size;
        if self.args.max_model_len.is_some() || fitting_len < MIN_MODEL_LEN {
            bail!(
                "a KV cache of {} holds {fitting_len} tokens, one request of {} needs {}: raise --kv-cache-memory or \
                 lower --max-model-len",
                bytes_text(runner.num_blocks as u64 * self.block_bytes()),
                runner.max_model_len,
                bytes_text(needed as u64 * self.block_bytes())
            );
        }
        warnings.push(format!(
            "--max-model-len is {fitting_len} instead of the model's {}: the KV cache holds no more; raise \
             --kv-cache-memory",
            runner.max_model_len
        ));
        Ok(RunnerConfig { max_model_len: fitting_len, ..runner })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;
    use pagoda_backend::KvFormat;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::config::Config;

    const GIB: u64 = 1 << 30;

    /// A checkpoint of a published shape, without its weights.
    fn llama() -> Checkpoint {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/configs/llama-3.2-1b.json");
        Checkpoint::open_dummy(path, 0).unwrap()
    }

    fn resolve(flags: &[&str], kind: DeviceKind, available_bytes: u64) -> anyhow::Result<Config> {
        let args = match Cli::parse_from(["pagoda", "serve"].iter().chain(flags)).command {
            Command::Serve(args) => args.model,
            _ => unreachable!(),
        };
        let kv_format = if kind == DeviceKind::Gpu { KvFormat::Bf16 } else { KvFormat::F32 };
        Config::resolve(&args, &llama(), DeviceMemory { available_bytes, kv_format, kind })
    }

    #[test]
    fn a_gpus_free_memory_is_divided_to_the_last_block() {
        let checkpoint = llama();
        let config = resolve(&[], DeviceKind::Gpu, 24 * GIB).unwrap();
        let budget = measure_on_gpu(&checkpoint, &config.runner, KvFormat::Bf16).unwrap();
        let reserve = GPU_RESERVE_BYTES + 24 * GIB / GPU_RESERVE_PART;
        let left = 24 * GIB - reserve - budget.total_bytes();
        // 16 layers x (K, V) x 8 heads x 64 channels x 2 bytes x 16 slots.
        assert!(left < 16 * 2 * 8 * 64 * 2 * 16, "{left} bytes are left");
        assert_eq!(config.runner.max_model_len, 131_072);
        assert_eq!((config.runner.max_num_seqs, config.runner.max_num_batched_tokens), (256, 4096));
        // 1,235,814,400 weights, of which 65 vectors of a layer's width are kept in f32.
        let vectors = 33 * 2048;
        assert_eq!(budget.weight_bytes, 2 * (1_235_814_400 - vectors) + 4 * vectors + 16 * 4 + 1);
    }

    #[test]
    fn a_gpu_that_is_too_small_is_refused_with_the_missing_bytes() {
        let error = resolve(&[], DeviceKind::Gpu, 3 * GIB).unwrap_err().to_string();
        let missing: u64 = error.split(' ').next().unwrap().parse().unwrap();
        assert!(error.contains("--max-num-batched-tokens"), "{error}");
        // So many more would do, and one less would not: a window of 64 tokens is the least.
        let flags = ["--max-model-len", "131072"];
        assert!(resolve(&flags, DeviceKind::Gpu, 3 * GIB).is_err());
        let enough = 3 * GIB + missing + missing / 40;
        assert!(resolve(&[], DeviceKind::Gpu, enough).is_ok(), "{error}");
        assert!(resolve(&[], DeviceKind::Gpu, 3 * GIB + missing - 1).is_err());
    }

    #[test]
    fn kv_memory_that_was_asked_for_is_given_or_refused() {
        let config = resolve(&["--kv-cache-memory", "1GiB"], DeviceKind::Gpu, 24 * GIB).unwrap();
        assert_eq!(config.runner.num_blocks as u64, GIB / (16 * 2 * 8 * 64 * 2 * 16));
        for kind in [DeviceKind::Cpu, DeviceKind::Gpu] {
            let error = resolve(&["--kv-cache-memory", "40GiB"], kind, 24 * GIB).unwrap_err().to_string();
            assert!(
                error.contains("--kv-cache-memory") && error.contains("bytes of memory are missing"),
                "{error}"
            );
        }
    }

    /// 16 layers x (K, V) x 8 heads x 64 channels x 4 bytes x 16 slots.
    const CPU_BLOCK_BYTES: u64 = 16 * 2 * 8 * 64 * 4 * 16;

    #[test]
    fn on_a_cpu_the_pool_is_a_quarter_of_the_memory_where_the_requests_could_use_more() {
        let config = resolve(&["--max-model-len", "8192"], DeviceKind::Cpu, 24 * GIB).unwrap();
        // 32 sequences of 8192 tokens would take 16,384 blocks and 2.
        assert_eq!(config.runner.num_blocks as u64, 6 * GIB / CPU_BLOCK_BYTES);
        assert_eq!(config.runner.num_blocks, 6144);
        assert_eq!(config.runner.max_model_len, 8192);
        assert_eq!(config.warnings, [""; 0]);
    }

    #[test]
    fn on_a_cpu_the_pool_is_what_the_requests_can_use_where_there_is_more_memory() {
        let flags = ["--max-model-len", "2048", "--max-num-seqs", "4"];
        let config = resolve(&flags, DeviceKind::Cpu, 24 * GIB).unwrap();
        assert_eq!(config.runner.num_blocks, 2 + 4 * 2048 / 16);
        // One sequence alone needs no room for a second one, and nobody is warned.
        let flags = ["--max-model-len", "2048", "--max-num-seqs", "1"];
        let one = resolve(&flags, DeviceKind::Cpu, 24 * GIB).unwrap();
        assert_eq!(one.runner.num_blocks, 2 + 2048 / 16);
        assert_eq!([config.warnings, one.warnings], [[""; 0], [""; 0]]);
    }

    #[test]
    fn a_pool_of_less_than_two_windows_is_warned_of_with_its_tokens() {
        // A quarter is 6144 blocks. Two requests of 49,120 tokens need 2 x 3072, of 49,136 two more.
        let fits = resolve(&["--max-model-len", "49120"], DeviceKind::Cpu, 24 * GIB).unwrap();
        assert_eq!((fits.runner.num_blocks, fits.warnings), (6144, Vec::new()));
        let small = resolve(&["--max-model-len", "49136"], DeviceKind::Cpu, 24 * GIB).unwrap();
        let [warning] = &small.warnings[..] else { panic!("{:?}", small.warnings) };
        assert!(warning.contains("holds 98288 tokens, less than two requests of 49136"), "{warning}");
        assert!(warning.contains("--kv-cache-memory") && warning.contains("--max-model-len"), "{warning}");
    }

    #[test]
    fn a_window_nobody_asked_for_shrinks_and_one_that_was_asked_for_is_refused() {
        let small = ["--kv-cache-memory", "64MiB"];
        let config = resolve(&small, DeviceKind::Cpu, 24 * GIB).unwrap();
        assert_eq!(config.runner.max_model_len, (config.runner.num_blocks - 2) * 16);
        assert!(config.warnings[0].contains("--kv-cache-memory"), "{:?}", config.warnings);
        let asked = [&small[..], &["--max-model-len", "8192"]].concat();
        assert!(resolve(&asked, DeviceKind::Cpu, 24 * GIB).is_err());
        assert!(resolve(&["--kv-cache-memory", "2MiB"], DeviceKind::Cpu, 24 * GIB).is_err());
    }
}
