//! The launches of a step's attention: decode kernels for sequences with one query row, one prefill kernel for the others.

use pagoda_backend::{BackendError, PagedAttention};

use super::{AttentionShape, PrefillKernel, decode_parts};
use crate::backend::CudaBackend;
use crate::device::{Device, Memory};
use crate::params::{AttentionWork, PagedAttentionParams, WgmmaPrefillParams};

impl<D: Device> CudaBackend<D> {
    pub(crate) fn launch_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<(), BackendError> {
        let (heads, layout, batch) = (op.heads, op.kv.layout, op.batch);
        assert_eq!((op.qkv.width, op.out.width), (heads.qkv_width(), heads.q_width()), "attention widths");
        assert_eq!((heads.num_kv_heads, heads.head_dim), (layout.num_kv_heads, layout.head_dim), "KV heads");
        assert!(heads.num_q_heads.is_multiple_of(heads.num_kv_heads), "{} query heads", heads.num_q_heads);
        let num_rows = batch.host.num_tokens();
        let num_splits = batch.plan.decode_launches.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let parts = decode_parts(heads);
        let stats = num_splits * heads.num_q_heads * 4;
        let params = PagedAttentionParams {
            qkv: op.qkv.rows(num_rows),
            out: op.out.rows(num_rows),
            kv: op.kv.view(),
            block_tables: batch.places.block_tables,
            block_table_starts: batch.places.block_table_starts,
            context_lens: batch.places.context_lens,
            query_starts: batch.places.query_starts,
            work: batch.places.decode_work,
            partial_out: self.partial_out.reserve(&mut self.device, stats * heads.head_dim)?.address(),
            partial_stats: self.partial_stats.reserve(&mut self.device, stats * 2)?.address(),
            arrivals: self
                .arrivals
                .reserve(&mut self.device, batch.host.num_sequences() * parts * 4)?
                .address(),
            num_q_heads: heads.num_q_heads as u32,
            layer: op.layer as u32,
            window: op.window.unwrap_or(0),
            scale: op.scale,
            softcap: op.softcap.unwrap_or(0.0),
            reserved: 0,
        };
        let shape = AttentionShape { element: self.element, kv: op.kv.format, head_dim: heads.head_dim };
        for splits in &batch.plan.decode_launches {
            let work = params.work + (splits.start * size_of::<AttentionWork>()) as u64;
            let params = PagedAttentionParams { work, ..params };
            self.launch(shape.decode_kernel(), [splits.len(), parts, 1], shape.decode_geometry(), params)?;
        }
        let params = PagedAttentionParams { work: batch.places.prefill_work, ..params };
        let grid = [batch.plan.prefill.len(), heads.num_q_heads, 1];
        match (batch.plan.kernel, op.kv.map) {
            (PrefillKernel::Mma, _) => {
                self.launch(shape.prefill_kernel(), grid, shape.prefill_geometry(), params)
            }
            (PrefillKernel::Wgmma, map) => {
                let kv_map = map.expect("the batch was uploaded for the cache that is used");
                let params = WgmmaPrefillParams { kv_map, attention: params, reserved: [0; 15] };
                self.launch(shape.wgmma_prefill_kernel(), grid, shape.wgmma_prefill_geometry(), params)
            }
        }
    }
}
