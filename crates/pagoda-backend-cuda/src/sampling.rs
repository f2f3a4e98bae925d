//! The lists of a step's sample rows, laid end to end for the kernel, and what the kernel answers.

use pagoda_backend::{BackendError, NonFiniteLogits, Sample, SampleRow, Sampled, StepLimits};

use crate::backend::CudaBackend;
use crate::device::{Device, Memory};
use crate::memory::{Scratch, TensorKind};
use crate::params::{
    NONE, SampleBias, SampleCount, SampleParams, SampleReport, SampleRule, SampleTop, read_plain,
};
use crate::staging::Staging;

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
const NUM_STEPS_IN_FLIGHT: usize = 2;

/// Reused from step to step.
pub(crate) struct SampleLists<M> {
    rules: Vec<SampleRule>,
    counts: Vec<SampleCount>,
    biases: Vec<SampleBias>,
    banned: Vec<u32>,
    masks: Vec<u32>,
    /// All five, one behind the other.
    staging: Staging,
    on_device: Scratch<M>,
    ruled: Scratch<M>,
    pub(crate) last_samples: Scratch<M>,
    /// Output memory that no pending sample holds.
    outputs: Vec<M>,
}

impl<D: Device> CudaBackend<D> {
    /// Queues the choice of a token for each row, and its way to the host.
    pub(crate) fn queue_samples(&mut self, op: Sample<'_, Self>) -> Result<CudaPending<D>, BackendError> {
        assert_eq!(op.logits.kind, TensorKind::F32, "logits come from alloc_logits");
        assert!(op.vocab_size <= op.logits.width, "{} ids of {} logits", op.vocab_size, op.logits.width);
        let num_logit_rows = op.rows.iter().map(|row| row.row as usize + 1).max().unwrap_or(0);
        let logits = op.logits.rows(num_logit_rows);
        let (params, output) = self.samples.upload(&mut self.device, op.rows, (op.vocab_size, op.first))?;
        let params = SampleParams { logits, stride: op.logits.width as u32, ..params };
        match self.launch_sample(op.rows.len(), params, &output) {
            Ok(reading) => Ok(CudaPending { output, reading }),
            Err(error) => {
                self.samples.keep(output);
                Err(error)
            }
        }
    }

    fn launch_sample(
        &mut self,
        num_rows: usize,
        params: SampleParams,
        output: &SampleOutput<D::Memory>,
    ) -> Result<D::Reading, BackendError> {
        const SHARED_BYTES: u32 = 16 * 4 + 16 * 8 + 256 * 8 + 16;
        self.launch("sample", [num_rows, 1, 1], (512, SHARED_BYTES), params)?;
        self.end_step_part()?;
        self.device.start_read(&output.memory, 0, output.num_bytes())
    }
}

impl<M: Memory> SampleLists<M> {
    pub(crate) fn new() -> Self {
        SampleLists {
            rules: Vec::new(),
            counts: Vec::new(),
            biases: Vec::new(),
            banned: Vec::new(),
            masks: Vec::new(),
            staging: Staging::default(),
            on_device: Scratch::new(0, "sampling"),
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
        let list_bytes = Staging::list_bytes::<SampleRule>(max_rows)
            + 3 * USUAL_LIST_BYTES
            + Staging::list_bytes::<u32>(max_rows * limits.vocab_size.div_ceil(32));
        self.on_device.reserve(device, list_bytes)?;
        self.ruled.reserve(device, max_rows * limits.vocab_size * 4)?;
        // Prompt logprobs follow the samples.
        self.last_samples.reserve(device, (limits.max_tokens + max_rows) * 4)?;
        let output_bytes = max_rows * (size_of::<SampleReport>() + USUAL_TOP * size_of::<SampleTop>());
        let num_slices = limits.max_sequences.div_ceil(limits.max_logit_rows.max(1));
        let num_outputs = NUM_STEPS_IN_FLIGHT * num_slices;
        for _ in self.outputs.len()..num_outputs {
            self.outputs.push(device.alloc(output_bytes, 0xFF, "sampling")?);
        }
        device.reserve_readings(num_outputs, output_bytes)
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
        let needs_ruled = self.rules.iter().any(|rule| {
            rule.num_counts + rule.num_biases + rule.num_banned > 0 || rule.first_mask_word != NONE
        });
        let ruled_bytes = if needs_ruled { rows.len() * vocab_size * 4 } else { 0 };
        let staging = &mut self.staging;
        staging.clear();
        let rules = staging.push(&self.rules);
        let counts = staging.push(&self.counts);
        let biases = staging.push(&self.biases);
        let banned = staging.push(&self.banned);
        let masks = staging.push(&self.masks);
        let lists = self.on_device.reserve(device, staging.num_bytes())?;
        staging.write(device, lists)?;
        let lists = lists.address();
        let ruled = self.ruled.reserve(device, ruled_bytes)?.address();
        let last_samples = self.last_samples.reserve(device, (first + rows.len()) * 4)?.address();
        // Last, so that nothing can fail that would have to give it back.
        let output = SampleOutput { memory: self.take_output(device, output_bytes)?, max_top, num_top };
        let params = SampleParams {
            logits: 0,
            rules: rules.from(lists),
            counts: counts.from(lists),
            biases: biases.from(lists),
            banned: banned.from(lists),
            masks: masks.from(lists),
            ruled,
            reports: output.memory.address(),
            top: output.memory.address() + reports_bytes as u64,
            last_samples: last_samples + first as u64 * 4,
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

    /// Takes back what no choice is written to any more, so that a step after a fault does not allocate.
    fn keep(&mut self, output: SampleOutput<M>) {
        self.outputs.push(output.memory);
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
