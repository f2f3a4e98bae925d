//! The lists of a step's sample rows, laid end to end for the kernel, and what the kernel answers.

use pagoda_backend::{BackendError, NonFiniteLogits, SampleRow, Sampled, StepLimits};

use crate::device::{Device, Memory};
use crate::memory::Scratch;
use crate::params::{
    NONE, SampleBias, SampleCount, SampleParams, SampleReport, SampleRule, SampleTop, read_plain,
};

/// Chosen tokens on their way to the host.
pub struct CudaPending<D: Device> {
    output: SampleOutput<D::Memory>,
    reading: D::Reading,
}

/// Where a launch writes what it has chosen.
pub(crate) struct SampleOutput<M> {
    /// `[num_rows]` reports, then `[num_rows, max_top]` likeliest tokens.
    memory: M,
    max_top: usize,
    /// Likeliest tokens of each row.
    num_top: Vec<usize>,
}

impl<M> SampleOutput<M> {
    fn reports_bytes(&self) -> usize {
        self.num_top.len() * size_of::<SampleReport>()
    }

    fn num_bytes(&self) -> usize {
        self.reports_bytes() + self.num_top.len() * self.max_top * size_of::<SampleTop>()
    }
}

/// Likeliest tokens per row that the buffers taken at load have room for; more are possible.
const USUAL_TOP: usize = 20;
/// Bytes of every list of a step that are taken at load. Longer ones (long histories under penalties) grow it.
const USUAL_LIST_BYTES: usize = 256 << 10;
/// Steps whose choices may be on their way at the same time.
const NUM_OUTPUTS: usize = 2;

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

    /// Takes what samples within these limits need.
    pub(crate) fn reserve<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        limits: &StepLimits,
    ) -> Result<(), BackendError> {
        let max_rows = limits.max_sequences.max(limits.max_logit_rows);
        let mask_bytes = max_rows * limits.vocab_size.div_ceil(32) * 4;
        let [rules, counts, biases, banned, masks] = &mut self.on_device;
        rules.reserve(device, max_rows * size_of::<SampleRule>())?;
        for list in [counts, biases, banned] {
            list.reserve(device, USUAL_LIST_BYTES)?;
        }
        masks.reserve(device, mask_bytes)?;
        self.ruled.reserve(device, max_rows * limits.vocab_size * 4)?;
        // Prompt logprobs follow the samples.
        self.last_samples.reserve(device, (limits.max_tokens + max_rows) * 4)?;
        let output_bytes = max_rows * (size_of::<SampleReport>() + USUAL_TOP * size_of::<SampleTop>());
        while self.outputs.len() < NUM_OUTPUTS {
            self.outputs.push(device.alloc(output_bytes, 0xFF, "sampling")?);
        }
        Ok(())
    }

    /// Uploads the rows; the answer lacks the logits.
    pub(crate) fn upload<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        rows: &[SampleRow<'_>],
        (vocab_size, first): (usize, usize),
    ) -> Result<(SampleParams, SampleOutput<M>), BackendError> {
        // Growing would lose what the step sampled before.
        assert!(
            first == 0 || self.last_samples.num_bytes() >= (first + rows.len()) * 4,
            "samples of a second part of a step, for which nothing was reserved"
        );
        self.lay_out(rows);
        let num_top: Vec<usize> =
            rows.iter().map(|row| row.num_logprobs.map_or(0, |n| (n as usize).min(vocab_size))).collect();
        let max_top = num_top.iter().copied().max().unwrap_or(0);
        let reports_bytes = rows.len() * size_of::<SampleReport>();
        let output_bytes = reports_bytes + rows.len() * max_top * size_of::<SampleTop>();
        let output = SampleOutput { memory: self.take_output(device, output_bytes)?, max_top, num_top };
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
            reports: output.memory.address(),
            top: output.memory.address() + reports_bytes as u64,
            last_samples: self.last_samples.reserve(device, (first + rows.len()) * 4)?.address()
                + first as u64 * 4,
            stride: 0,
            vocab_size: vocab_size as u32,
            max_top: max_top as u32,
            reserved: 0,
        };
        Ok((params, output))
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

    /// Takes back what no launch writes to, so that a step after a fault does not allocate.
    pub(crate) fn keep(&mut self, output: SampleOutput<M>) {
        self.outputs.push(output.memory);
    }

    /// Queues the way of the choices to the host.
    pub(crate) fn start_read<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        output: SampleOutput<M>,
    ) -> Result<CudaPending<D>, BackendError> {
        let reading = device.start_read(&output.memory, 0, output.num_bytes())?;
        Ok(CudaPending { output, reading })
    }

    /// Waits for the choices.
    pub(crate) fn finish_read<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        pending: CudaPending<D>,
    ) -> Result<Vec<Result<Sampled, NonFiniteLogits>>, BackendError> {
        let CudaPending { output, reading } = pending;
        let mut bytes = vec![0; output.num_bytes()];
        device.finish_read(reading, &mut bytes)?;
        let reports_bytes = output.reports_bytes();
        let reports: Vec<SampleReport> = read_plain(&bytes[..reports_bytes]);
        let tops: Vec<SampleTop> = read_plain(&bytes[reports_bytes..]);
        let samples = reports.iter().zip(&output.num_top).enumerate().map(|(row, (report, &num_top))| {
            if report.is_failed != 0 {
                return Err(NonFiniteLogits);
            }
            let top = &tops[row * output.max_top..][..num_top];
            let top = top.iter().map(|top| (top.token, top.logprob)).collect();
            Ok(Sampled { token: report.token, logprob: report.logprob, top, rank: report.rank })
        });
        let samples = samples.collect();
        self.outputs.push(output.memory);
        Ok(samples)
    }
}
