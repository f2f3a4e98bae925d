//! A step's metadata on the device, and the work lists of its attention.

use pagoda_backend::{BackendError, BatchMetadata, InputToken};

use crate::attention::{AttentionPlan, Cuts};
use crate::device::{Device, Memory};
use crate::params::{AttentionWork, LAST_SAMPLED, Plain, Pointer, bytes_of};

/// One array of the metadata, at a fixed address.
pub(crate) struct Section<M> {
    memory: M,
}

impl<M: Memory> Section<M> {
    fn new<D: Device<Memory = M>, P: Plain>(device: &mut D, max_len: usize) -> Result<Self, BackendError> {
        let num_bytes = (max_len * size_of::<P>()).max(1);
        Ok(Section { memory: device.alloc(num_bytes, 0, "a step's metadata")? })
    }

    fn write<D: Device<Memory = M>, P: Plain>(
        &self,
        device: &mut D,
        values: &[P],
    ) -> Result<(), BackendError> {
        let bytes = bytes_of(values);
        assert!(bytes.len() <= self.memory.num_bytes(), "more metadata than alloc_batch was told of");
        if bytes.is_empty() { Ok(()) } else { device.write(&self.memory, 0, bytes) }
    }

    pub(crate) fn address(&self) -> Pointer {
        self.memory.address()
    }
}

/// The metadata of a step. Addresses do not change from step to step.
pub struct CudaBatch<M> {
    pub(crate) host: BatchMetadata,
    pub(crate) plan: AttentionPlan,
    tokens: Vec<u32>,
    pub(crate) input_tokens: Section<M>,
    pub(crate) positions: Section<M>,
    pub(crate) slots: Section<M>,
    pub(crate) query_starts: Section<M>,
    pub(crate) context_lens: Section<M>,
    pub(crate) block_tables: Section<M>,
    pub(crate) block_table_starts: Section<M>,
    pub(crate) decode_work: Section<M>,
    pub(crate) prefill_work: Section<M>,
}

impl<M: Memory> CudaBatch<M> {
    pub(crate) fn new<D: Device<Memory = M>>(
        device: &mut D,
        max_tokens: usize,
        max_sequences: usize,
        max_table_len: usize,
    ) -> Result<Self, BackendError> {
        let mut numbers = |max_len| Section::new::<D, u32>(device, max_len);
        Ok(CudaBatch {
            host: BatchMetadata::default(),
            plan: AttentionPlan::default(),
            tokens: Vec::with_capacity(max_tokens),
            input_tokens: numbers(max_tokens)?,
            positions: numbers(max_tokens)?,
            slots: numbers(max_tokens)?,
            query_starts: numbers(max_sequences + 1)?,
            context_lens: numbers(max_sequences)?,
            block_tables: numbers(max_table_len)?,
            block_table_starts: numbers(max_sequences + 1)?,
            // A split has at least one block of the table to itself; a power of two, as the plan's padding.
            decode_work: Section::new::<D, AttentionWork>(
                device,
                (max_table_len + max_sequences).next_power_of_two(),
            )?,
            prefill_work: Section::new::<D, AttentionWork>(device, max_tokens)?,
        })
    }

    pub(crate) fn upload<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        metadata: &mut BatchMetadata,
        cuts: Cuts,
    ) -> Result<(), BackendError> {
        std::mem::swap(&mut self.host, metadata);
        self.tokens.clear();
        self.tokens.extend(self.host.input_tokens.iter().map(|token| match *token {
            InputToken::Known(id) => id,
            InputToken::LastSampled(row) => LAST_SAMPLED | row,
        }));
        self.plan.make(&self.host, cuts);
        self.input_tokens.write(device, &self.tokens)?;
        self.positions.write(device, &self.host.positions)?;
        self.slots.write(device, &self.host.slot_mapping)?;
        self.query_starts.write(device, &self.host.query_start_loc)?;
        self.context_lens.write(device, &self.host.context_lens)?;
        self.block_tables.write(device, &self.host.block_tables)?;
        self.block_table_starts.write(device, &self.host.block_table_starts)?;
        self.decode_work.write(device, &self.plan.decode)?;
        self.prefill_work.write(device, &self.plan.prefill)
    }
}
