//! The lists of a step's sample rows, laid end to end for the kernel, and what the kernel answers.

use pagoda_backend::{BackendError, NonFiniteLogits, SampleRow, Sampled};

use crate::device::{Device, Memory};
use crate::memory::Scratch;
use crate::params::{
    NONE, SampleBias, SampleCount, SampleParams, SampleReport, SampleRule, SampleTop, read_plain,
};

/// Chosen tokens on their way to the host.
pub struct CudaPending<M> {
    /// `[num_rows]` reports, then `[num_rows, max_top]` likeliest tokens.
    pub(crate) output: M,
    pub(crate) max_top: usize,
    /// Likeliest tokens of each row.
    pub(crate) num_top: Vec<usize>,
}

/// Reused from step to step.
pub(crate) struct SampleLists<M> {
    rules: Vec<SampleRule>,
    counts: Vec<SampleCount>,
    biases: Vec<SampleBias>,
    banned: Vec<u32>,
    masks: Vec<u32>,
    on_device: [Scratch<M>; 5],
    ruled: Scratch<M>,
    pub(crate) last_samples: Scratch<M>,
    /// Output memory that no pending sample holds.
    outputs: Vec<M>,
}

impl<M: Memory> SampleLists<M> {
    pub(crate) fn new() -> Self {
        SampleLists {
            rules: Vec::new(),
            counts: Vec::new(),
            biases: Vec::new(),
            banned: Vec::new(),
            masks: Vec::new(),
            on_device: std::array::from_fn(|_| Scratch::new(0, "sampling")),
            ruled: Scratch::new(0xFF, "sampling"),
            last_samples: Scratch::new(0, "sampling"),
            outputs: Vec::new(),
        }
    }

    /// Uploads the rows; the answer lacks the logits.
    pub(crate) fn upload<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        rows: &[SampleRow<'_>],
        vocab_size: usize,
    ) -> Result<(SampleParams, CudaPending<M>), BackendError> {
        self.lay_out(rows);
        let num_top: Vec<usize> =
            rows.iter().map(|row| row.num_logprobs.map_or(0, |n| (n as usize).min(vocab_size))).collect();
        let max_top = num_top.iter().copied().max().unwrap_or(0);
        let reports_bytes = rows.len() * size_of::<SampleReport>();
        let output =
            self.take_output(device, reports_bytes + rows.len() * max_top * size_of::<SampleTop>())?;
        let needs_ruled = self.rules.iter().any(|rule| {
            rule.num_counts + rule.num_biases + rule.num_banned > 0 || rule.first_mask_word != NONE
        });
        let ruled_bytes = if needs_ruled { rows.len() * vocab_size * 4 } else { 0 };
        let [rules, counts, biases, banned, masks] = &mut self.on_device;
        let params = SampleParams {
            logits: 0,
            rules: rules.upload(device, &self.rules)?,
            counts: counts.upload(device, &self.counts)?,
            biases: biases.upload(device, &self.biases)?,
            banned: banned.upload(device, &self.banned)?,
            masks: masks.upload(device, &self.masks)?,
            ruled: self.ruled.reserve(device, ruled_bytes)?.address(),
            reports: output.address(),
            top: output.address() + reports_bytes as u64,
            last_samples: self.last_samples.reserve(device, rows.len() * 4)?.address(),
            stride: 0,
            vocab_size: vocab_size as u32,
            max_top: max_top as u32,
            reserved: 0,
        };
        Ok((params, CudaPending { output, max_top, num_top }))
    }

    fn lay_out(&mut self, rows: &[SampleRow<'_>]) {
        self.rules.clear();
        self.counts.clear();
        self.biases.clear();
        self.banned.clear();
        self.masks.clear();
        for row in rows {
            self.rules.push(SampleRule {
                seed: row.seed,
                sample_index: row.sample_index,
                position: row.position,
                row: row.row,
                forced: row.forced.unwrap_or(NONE),
                num_top: row.num_logprobs.unwrap_or(NONE),
                top_k: row.top_k,
                temperature: row.temperature,
                top_p: row.top_p,
                min_p: row.min_p,
                repetition_penalty: row.repetition_penalty,
                frequency_penalty: row.frequency_penalty,
                presence_penalty: row.presence_penalty,
                first_count: self.counts.len() as u32,
                num_counts: row.counts.len() as u32,
                first_bias: self.biases.len() as u32,
                num_biases: row.bias.len() as u32,
                first_banned: self.banned.len() as u32,
                num_banned: row.banned.len() as u32,
                first_mask_word: row.mask.map_or(NONE, |_| self.masks.len() as u32),
                num_mask_words: row.mask.map_or(0, |mask| mask.len() as u32),
            });
            let counts = row.counts.iter();
            self.counts
                .extend(counts.map(|count| SampleCount { token: count.token, num_output: count.num_output }));
            self.biases.extend(row.bias.iter().map(|&(token, bias)| SampleBias { token, bias }));
            self.banned.extend(row.banned);
            self.masks.extend(row.mask.unwrap_or_default());
        }
    }

    fn take_output<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        num_bytes: usize,
    ) -> Result<M, BackendError> {
        match self.outputs.iter().position(|output| output.num_bytes() >= num_bytes) {
            Some(index) => Ok(self.outputs.swap_remove(index)),
            None => device.alloc(num_bytes.max(1), 0xFF, "sampling"),
        }
    }

    /// Waits for the answer.
    pub(crate) fn read_back<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        pending: CudaPending<M>,
    ) -> Result<Vec<Result<Sampled, NonFiniteLogits>>, BackendError> {
        let num_rows = pending.num_top.len();
        let reports_bytes = num_rows * size_of::<SampleReport>();
        let mut bytes = vec![0; reports_bytes + num_rows * pending.max_top * size_of::<SampleTop>()];
        device.read(&pending.output, 0, &mut bytes)?;
        self.outputs.push(pending.output);
        let reports: Vec<SampleReport> = read_plain(&bytes[..reports_bytes]);
        let tops: Vec<SampleTop> = read_plain(&bytes[reports_bytes..]);
        let samples = reports.iter().zip(&pending.num_top).enumerate().map(|(row, (report, &num_top))| {
            if report.is_failed != 0 {
                return Err(NonFiniteLogits);
            }
            let top = &tops[row * pending.max_top..][..num_top];
            let top = top.iter().map(|top| (top.token, top.logprob)).collect();
            Ok(Sampled { token: report.token, logprob: report.logprob, top, rank: report.rank })
        });
        Ok(samples.collect())
    }
}
