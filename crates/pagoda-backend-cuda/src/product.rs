//! Products of more rows than `skinny_gemm` takes: by the library where there is one, else by the tile kernel; weights in block
//! formats become dense panel by panel.

use pagoda_backend::BackendError;

use crate::backend::{CudaBackend, LinearPolicy};
use crate::device::{Device, Memory};
use crate::element::{Element, kernel};
use crate::params::{DequantizeParams, LinearParams, Pointer, WeightView};
use crate::products::{Product, ProductShape};

/// Bytes of the place where block formats become dense before a GEMM.
const PANEL_BYTES: usize = 32 << 20;
/// Rows and columns of a tile of `gemm`.
const GEMM_TILE: usize = 128;

impl<D: Device> CudaBackend<D> {
    /// The product of a dense weight, by the library or the tile kernel.
    pub(crate) fn gemm(&mut self, dense: DenseProduct) -> Result<(), BackendError> {
        let DenseProduct { params, .. } = dense;
        if self.policy == LinearPolicy::Fastest
            && let Some(products) = &mut self.products
            && products.multiply(&mut self.device, dense.product(self.element), dense.max_rows)?
        {
            return Ok(());
        }
        let tiles = |rows: u32| (rows as usize).div_ceil(GEMM_TILE);
        let grid = [tiles(params.weight.rows), tiles(params.num_rows), 1];
        self.launch(kernel!(self.element, "gemm"), grid, (256, 3 * 2 * 128 * 40 * 2), params)
    }

    /// The product of a block-format weight with many rows: a panel of it becomes dense, then the tile kernel.
    pub(crate) fn gemm_by_panels(&mut self, whole: DenseProduct) -> Result<(), BackendError> {
        let params = whole.params;
        let WeightView { rows, cols, .. } = params.weight;
        let panel_rows = panel_rows(cols as usize);
        let num_bytes = panel_bytes(rows as usize, cols as usize);
        let panel = self.panel.reserve(&mut self.device, num_bytes)?.address();
        for first_row in (0..rows).step_by(panel_rows) {
            let num_rows = (rows - first_row).min(panel_rows as u32);
            let dequantize = DequantizeParams { weight: params.weight, out: panel, first_row, num_rows };
            let num_blocks = (num_rows as usize * cols as usize).div_ceil(256 * 8);
            self.launch(kernel!(self.element, "dequantize"), [num_blocks, 1, 1], (256, 0), dequantize)?;
            let dense = WeightView { codes: panel, scales: 0, rows: num_rows, cols, format: 0, reserved: 0 };
            let out_bytes = if params.out_is_f32 == 1 { 4 } else { 2 };
            let bias = if params.bias == 0 { 0 } else { params.bias + u64::from(first_row) * 4 };
            let out = params.out + u64::from(first_row) * out_bytes;
            let bias_elements =
                if params.bias == 0 { 0 } else { whole.bias_elements + u64::from(first_row) * 2 };
            let params = LinearParams { weight: dense, bias, out, ..params };
            self.gemm(DenseProduct { params, bias_elements, ..whole })?;
        }
        Ok(())
    }
}

/// A product of many rows.
#[derive(Clone, Copy)]
pub(crate) struct DenseProduct {
    pub(crate) params: LinearParams,
    /// The bias as the element type, or 0.
    pub(crate) bias_elements: Pointer,
    /// Rows for which x and out have room.
    pub(crate) max_rows: u32,
}

impl DenseProduct {
    /// As the library sees it.
    fn product(&self, element: Element) -> Product {
        let LinearParams { weight, x, bias, out, num_rows, out_stride, out_is_f32, .. } = self.params;
        let WeightView { codes, rows, cols, .. } = weight;
        let (out_is_f32, has_bias) = (out_is_f32 == 1, bias != 0);
        Product {
            shape: ProductShape { element, rows, cols, out_stride, out_is_f32, has_bias },
            num_rows,
            weight: codes,
            x,
            bias: if out_is_f32 { bias } else { self.bias_elements },
            out,
            workspace: 0,
        }
    }
}

/// Rows of a weight that are dense at the same time.
fn panel_rows(cols: usize) -> usize {
    (PANEL_BYTES / (cols * 2) / GEMM_TILE * GEMM_TILE).max(GEMM_TILE)
}

/// Bytes of the largest panel of a weight.
pub(crate) fn panel_bytes(rows: usize, cols: usize) -> usize {
    panel_rows(cols).min(rows) * cols * 2
}
