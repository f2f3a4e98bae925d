//! Tensors, vectors, the rope table and the KV cache on the device.

use pagoda_backend::{BackendError, KvFormat, KvLayout};

use crate::device::{Device, Memory, TensorMap};
use crate::params::{KvView, Plain, Pointer, bytes_of};

/// Slots that a block may have: kernels find a slot's block by a shift, and read 16 slots as one piece.
pub const BLOCK_SIZES: [usize; 5] = [16, 32, 64, 128, 256];

/// What an activation matrix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorKind {
    /// The backend's element type.
    Element,
    /// Logits: bf16 would round a logit of 20 to steps of 1/8.
    F32,
}

impl TensorKind {
    pub(crate) fn element_bytes(self) -> usize {
        match self {
            TensorKind::Element => 2,
            TensorKind::F32 => 4,
        }
    }
}

/// A `[max_rows, width]` activation matrix.
pub struct CudaTensor<M> {
    pub(crate) memory: M,
    pub(crate) width: usize,
    pub(crate) kind: TensorKind,
}

impl<M: Memory> CudaTensor<M> {
    pub(crate) fn max_rows(&self) -> usize {
        self.memory.num_bytes() / (self.width * self.kind.element_bytes()).max(1)
    }

    /// The address, once it is certain that the matrix has these rows.
    pub(crate) fn rows(&self, num_rows: usize) -> Pointer {
        assert!(num_rows <= self.max_rows(), "{num_rows} rows of a matrix of {}", self.max_rows());
        self.memory.address()
    }
}

/// A vector of f32 parameters.
pub struct CudaVector<M> {
    /// The numbers, and behind them the same as the element type: a bias as the library of products wants it.
    pub(crate) memory: M,
    pub(crate) len: usize,
}

impl<M: Memory> CudaVector<M> {
    /// Address of the numbers as the element type.
    pub(crate) fn elements(&self) -> Pointer {
        self.memory.address() + Self::elements_offset(self.len) as u64
    }

    /// Aligned as an allocation is.
    pub(crate) fn elements_offset(len: usize) -> usize {
        (len * 4).next_multiple_of(256)
    }
}

/// Cosines and sines by position.
pub struct CudaRope<M> {
    pub(crate) cos: M,
    pub(crate) sin: M,
    pub(crate) half: usize,
}

/// K and V of all layers.
pub struct CudaKvCache<M> {
    pub(crate) memory: M,
    pub(crate) layout: KvLayout,
    pub(crate) format: KvFormat,
    /// Present if prefill goes by `PrefillKernel::Wgmma`.
    pub(crate) map: Option<TensorMap>,
}

impl<M: Memory> CudaKvCache<M> {
    /// Refuses shapes that no kernel is compiled for.
    pub(crate) fn check(layout: KvLayout) -> Result<(), BackendError> {
        let KvLayout { block_size, head_dim, .. } = layout;
        if !crate::attention::HEAD_DIMS.contains(&head_dim) {
            return Err(BackendError::Unsupported(format!(
                "head_dim {head_dim}: kernels have 64, 96, 128, 256"
            )));
        }
        if !BLOCK_SIZES.contains(&block_size) {
            return Err(BackendError::Unsupported(format!("blocks of {block_size} slots: {BLOCK_SIZES:?}")));
        }
        Ok(())
    }

    /// What a kernel sees of it.
    pub(crate) fn view(&self) -> KvView {
        KvView {
            data: self.memory.address(),
            num_layers: self.layout.num_layers as u32,
            num_blocks: self.layout.num_blocks as u32,
            num_kv_heads: self.layout.num_kv_heads as u32,
            head_dim: self.layout.head_dim as u32,
            log2_block_size: self.layout.block_size.trailing_zeros(),
            is_e4m3: u32::from(self.format == KvFormat::E4m3),
        }
    }
}

/// Memory that grows to the largest need and is then reused. Growing waits for the device.
pub(crate) struct Scratch<M> {
    memory: Option<M>,
    fill: u8,
    what: &'static str,
}

impl<M: Memory> Scratch<M> {
    /// Nothing yet; new memory will have all bytes `fill`.
    pub(crate) fn new(fill: u8, what: &'static str) -> Self {
        Scratch { memory: None, fill, what }
    }

    /// Where it lies now; 0 if it has not been needed.
    pub(crate) fn address(&self) -> Pointer {
        self.memory.as_ref().map_or(0, Memory::address)
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, Memory::num_bytes)
    }

    /// At least `num_bytes` (and at least one); what it held is lost if it grows.
    pub(crate) fn reserve<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        num_bytes: usize,
    ) -> Result<&M, BackendError> {
        let num_bytes = num_bytes.max(1);
        if self.memory.as_ref().is_none_or(|memory| memory.num_bytes() < num_bytes) {
            // The old memory goes when the new is there, so that a refusal changes nothing.
            self.memory = Some(device.alloc(num_bytes, self.fill, self.what)?);
        }
        Ok(self.memory.as_ref().expect("it was just made"))
    }

    /// Room for `values`, and the values in it.
    pub(crate) fn upload<D: Device<Memory = M>, P: Plain>(
        &mut self,
        device: &mut D,
        values: &[P],
    ) -> Result<Pointer, BackendError> {
        let bytes = bytes_of(values);
        self.reserve(device, bytes.len())?;
        let memory = self.memory.as_ref().expect("it was just reserved");
        device.write(memory, 0, bytes)?;
        Ok(memory.address())
    }
}
