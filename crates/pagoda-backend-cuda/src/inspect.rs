//! What no model needs and measurements and tests do: to write an activation matrix, and to read one, or a slot of the KV cache.

use pagoda_backend::{BackendError, KvFormat, KvLayout};

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::e4m3;
use crate::memory::{CudaKvCache, CudaTensor, TensorKind};

impl<D: Device> CudaBackend<D> {
    /// Writes rows from `first_row` on, rounded to what the matrix holds.
    pub fn write_tensor(
        &mut self,
        tensor: &CudaTensor<D::Memory>,
        first_row: usize,
        values: &[f32],
    ) -> Result<(), BackendError> {
        let mut bytes = Vec::with_capacity(values.len() * 4);
        match tensor.kind {
            TensorKind::Element => self.element.encode(values.iter().copied(), &mut bytes),
            TensorKind::F32 => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
        }
        self.device.write(&tensor.memory, first_row * tensor.width * tensor.kind.element_bytes(), &bytes)
    }

    /// The first `num_rows` rows.
    pub fn read_tensor(
        &mut self,
        tensor: &CudaTensor<D::Memory>,
        num_rows: usize,
    ) -> Result<Vec<f32>, BackendError> {
        let element_bytes = tensor.kind.element_bytes();
        let mut bytes = vec![0; num_rows * tensor.width * element_bytes];
        self.device.read(&tensor.memory, 0, &mut bytes)?;
        Ok(match tensor.kind {
            TensorKind::Element => {
                bytes.chunks_exact(2).map(|pair| self.element.decode([pair[0], pair[1]])).collect()
            }
            TensorKind::F32 => bytes
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
                .collect(),
        })
    }

    /// K, then V, of one slot of one layer: `[kv heads, head_dim]` each.
    pub fn read_slot(
        &mut self,
        kv: &CudaKvCache<D::Memory>,
        layer: usize,
        slot: usize,
    ) -> Result<(Vec<f32>, Vec<f32>), BackendError> {
        let KvLayout { num_blocks, block_size, num_kv_heads, head_dim, .. } = kv.layout;
        let block = layer * num_blocks + slot / block_size;
        let tile_bytes = kv.layout.tile_bytes(kv.format);
        let mut read = |which: usize| {
            let mut values = Vec::with_capacity(num_kv_heads * head_dim);
            for head in 0..num_kv_heads {
                let mut tile = vec![0; tile_bytes];
                let index = (block * 2 + which) * num_kv_heads + head;
                self.device.read(&kv.memory, index * tile_bytes, &mut tile)?;
                values.extend(self.read_tile_slot(kv, &tile, slot % block_size));
            }
            Ok(values)
        };
        Ok((read(0)?, read(1)?))
    }

    /// The numbers of one slot of a tile.
    fn read_tile_slot(&self, kv: &CudaKvCache<D::Memory>, tile: &[u8], offset: usize) -> Vec<f32> {
        let KvLayout { block_size, head_dim, .. } = kv.layout;
        if kv.format == KvFormat::E4m3 {
            return e4m3::decode(
                &tile[offset * head_dim..][..head_dim],
                tile[block_size * head_dim + offset],
            );
        }
        let bytes = &tile[offset * head_dim * 2..][..head_dim * 2];
        bytes.chunks_exact(2).map(|pair| self.element.decode([pair[0], pair[1]])).collect()
    }
}
