//! Sizes of the batch and of the queue before it: what the flags say or what suits the device, checked before anything is
//! fetched or loaded. Every refusal names the flag and what it may be.

use anyhow::bail;
use pagoda_backend_cuda::BLOCK_SIZES;

use crate::args::ModelArgs;
use crate::device::DeviceKind;

/// Sequences at a time and tokens in a step, unless told otherwise: a step of the CPU should not make others wait for seconds,
/// one of a GPU should fill it.
const CPU_BATCH: (usize, usize) = (32, 512);
const GPU_BATCH: (usize, usize) = (256, 4096);
/// Requests that wait, per sequence that runs: more would wait longer than clients do.
const QUEUED_PER_SEQ: usize = 4;
/// The engine numbers rows and slots in 32 bits.
const MOST: usize = u32::MAX as usize;
const MOST_BLOCK_SIZE: usize = 4096;

/// What one step and the queue may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchLimits {
    /// Tokens in one KV block.
    pub(crate) block_size: usize,
    /// Sequences that run at the same time.
    pub(crate) max_num_seqs: usize,
    /// Tokens computed in one step; not less than `max_num_seqs`.
    pub(crate) max_num_batched_tokens: usize,
    /// Sequences that wait.
    pub(crate) max_queued_requests: usize,
}

impl BatchLimits {
    /// Checks the flags for a device of this kind.
    pub(crate) fn resolve(args: &ModelArgs, kind: DeviceKind) -> anyhow::Result<Self> {
        check_block_size(args.block_size, kind)?;
        let (num_seqs, num_batched_tokens) = match kind {
            DeviceKind::Cpu => CPU_BATCH,
            DeviceKind::Gpu => GPU_BATCH,
        };
        let max_num_seqs = args.max_num_seqs.unwrap_or(num_seqs);
        check_range("--max-num-seqs", max_num_seqs)?;
        let max_queued_requests =
            args.max_queued_requests.unwrap_or(max_num_seqs.saturating_mul(QUEUED_PER_SEQ).min(MOST));
        check_range("--max-queued-requests", max_queued_requests)?;
        let max_num_batched_tokens =
            args.max_num_batched_tokens.unwrap_or(num_batched_tokens.max(max_num_seqs));
        check_range("--max-num-batched-tokens", max_num_batched_tokens)?;
        if max_num_batched_tokens < max_num_seqs {
            let origin = if args.max_num_seqs.is_none() { " (the default)" } else { "" };
            bail!(
                "--max-num-batched-tokens {max_num_batched_tokens} is less than --max-num-seqs {max_num_seqs}{origin}, but every \
                 sequence that runs gets a token in every step: raise the one or lower the other"
            );
        }
        Ok(BatchLimits {
            block_size: args.block_size,
            max_num_seqs,
            max_num_batched_tokens,
            max_queued_requests,
        })
    }
}

fn check_block_size(block_size: usize, kind: DeviceKind) -> anyhow::Result<()> {
    match kind {
        DeviceKind::Cpu if !block_size.is_multiple_of(8) || !(8..=MOST_BLOCK_SIZE).contains(&block_size) => {
            bail!("--block-size {block_size}: it must be a multiple of 8 from 8 to {MOST_BLOCK_SIZE}")
        }
        DeviceKind::Gpu if !BLOCK_SIZES.contains(&block_size) => {
            bail!("--block-size {block_size}: on a GPU it must be one of {BLOCK_SIZES:?}")
        }
        _ => Ok(()),
    }
}

fn check_range(flag: &str, value: usize) -> anyhow::Result<()> {
    if !(1..=MOST).contains(&value) {
        bail!("{flag} {value}: it must be between 1 and {MOST}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn resolve(flags: &[&str], kind: DeviceKind) -> anyhow::Result<BatchLimits> {
        match Cli::parse_from(["pagoda", "serve"].iter().chain(flags)).command {
            Command::Serve(args) => BatchLimits::resolve(&args.model, kind),
            _ => unreachable!(),
        }
    }

    #[track_caller]
    fn refused(flags: &[&str], kind: DeviceKind, reasons: &[&str]) {
        let error = resolve(flags, kind).unwrap_err().to_string();
        assert!(error.starts_with(flags[0]), "{error}");
        for reason in reasons {
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_block_size_that_the_device_cannot_have_is_refused() {
        for size in ["0", "7", "12", "8192"] {
            refused(&["--block-size", size], DeviceKind::Cpu, &["multiple of 8"]);
        }
        for size in ["0", "8", "24", "512"] {
            refused(&["--block-size", size], DeviceKind::Gpu, &["16, 32"]);
        }
        assert_eq!(resolve(&["--block-size", "24"], DeviceKind::Cpu).unwrap().block_size, 24);
        assert_eq!(resolve(&["--block-size", "256"], DeviceKind::Gpu).unwrap().block_size, 256);
    }

    #[test]
    fn a_step_holds_a_token_of_every_sequence() {
        let reasons = ["--max-num-seqs 32 (the default)"];
        refused(&["--max-num-batched-tokens", "1"], DeviceKind::Cpu, &reasons);
        refused(&["--max-num-batched-tokens", "255"], DeviceKind::Gpu, &["--max-num-seqs 256 (the default)"]);
        refused(
            &["--max-num-batched-tokens", "7", "--max-num-seqs", "8"],
            DeviceKind::Cpu,
            &["--max-num-seqs 8,"],
        );
        let limits = resolve(&["--max-num-batched-tokens", "8", "--max-num-seqs", "8"], DeviceKind::Cpu);
        assert_eq!(limits.unwrap().max_queued_requests, 32);
        let many = resolve(&["--max-num-seqs", "1000"], DeviceKind::Cpu).unwrap();
        assert_eq!(many.max_num_batched_tokens, 1000);
    }

    #[test]
    fn sizes_of_zero_and_beyond_32_bits_are_refused() {
        for flag in ["--max-num-seqs", "--max-num-batched-tokens", "--max-queued-requests"] {
            for value in ["0", "4294967296"] {
                refused(&[flag, value], DeviceKind::Cpu, &["between 1 and 4294967295"]);
            }
        }
    }
}
