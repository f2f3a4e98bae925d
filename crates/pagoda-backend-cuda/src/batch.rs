//! A step's metadata on the device, and the work lists of its attention.

use pagoda_backend::{BackendError, BatchMetadata, InputToken};

use crate::attention::{AttentionPlan, Cuts};
use crate::device::{Device, Memory};
use crate::params::{AttentionWork, LAST_SAMPLED, Pointer};
use crate::staging::Staging;

/// Where the lists of a batch lie. They are packed: each place depends on the lengths of the lists before it, and on nothing else.
///
/// A capture holds these places. The block tables, whose length changes while the work keeps its shape, lie behind all others, so that
/// places are the same for every step of as many rows, sequences and splits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct BatchPlaces {
    pub(crate) input_tokens: Pointer,
    pub(crate) positions: Pointer,
    pub(crate) slots: Pointer,
    pub(crate) query_starts: Pointer,
    pub(crate) context_lens: Pointer,
    pub(crate) block_table_starts: Pointer,
    pub(crate) decode_work: Pointer,
    pub(crate) prefill_work: Pointer,
    pub(crate) block_tables: Pointer,
}

/// The metadata of a step, in one piece of memory that one copy fills.
pub struct CudaBatch<M> {
    pub(crate) host: BatchMetadata,
    pub(crate) plan: AttentionPlan,
    pub(crate) places: BatchPlaces,
    tokens: Vec<u32>,
    staging: Staging,
    memory: M,
}

impl<M: Memory> CudaBatch<M> {
    pub(crate) fn new<D: Device<Memory = M>>(
        device: &mut D,
        max_tokens: usize,
        max_sequences: usize,
        max_table_len: usize,
    ) -> Result<Self, BackendError> {
        // A split has at least one block of the table to itself; a power of two, as the plan's padding.
        let max_splits = (max_table_len + max_sequences).next_power_of_two();
        let max_bytes = 3 * Staging::list_bytes::<u32>(max_tokens)
            + 2 * Staging::list_bytes::<u32>(max_sequences + 1)
            + Staging::list_bytes::<u32>(max_sequences)
            + Staging::list_bytes::<AttentionWork>(max_splits)
            + Staging::list_bytes::<AttentionWork>(max_tokens)
            + Staging::list_bytes::<u32>(max_table_len);
        Ok(CudaBatch {
            host: BatchMetadata::default(),
            plan: AttentionPlan::default(),
            places: BatchPlaces::default(),
            tokens: Vec::with_capacity(max_tokens),
            staging: Staging::default(),
            memory: device.alloc(max_bytes.max(1), 0, "a step's metadata")?,
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
        let (base, staging) = (self.memory.address(), &mut self.staging);
        staging.clear();
        self.places = BatchPlaces {
            input_tokens: staging.push(&self.tokens).from(base),
            positions: staging.push(&self.host.positions).from(base),
            slots: staging.push(&self.host.slot_mapping).from(base),
            query_starts: staging.push(&self.host.query_start_loc).from(base),
            context_lens: staging.push(&self.host.context_lens).from(base),
            block_table_starts: staging.push(&self.host.block_table_starts).from(base),
            decode_work: staging.push(&self.plan.decode).from(base),
            prefill_work: staging.push(&self.plan.prefill).from(base),
            block_tables: staging.push(&self.host.block_tables).from(base),
        };
        staging.write(device, &self.memory)
    }
}
