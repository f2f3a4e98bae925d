//! What the library is told of a product: what is done to its operands, and how they lie.

use std::ffi::{c_int, c_void};

use pagoda_backend::BackendError;

use super::symbols::{
    COMPUTE_32F, DESC_BIAS_POINTER, DESC_EPILOGUE, DESC_TRANSPOSE_A, EPILOGUE_BIAS, LAYOUT_COLS, Opaque,
    REDUCTION_IN_F32, SEARCH_REDUCTIONS, SEARCH_WORKSPACE_BYTES, Status, Symbols, TRANSPOSED, TYPE_BF16,
    TYPE_F16, TYPE_F32,
};
use crate::element::Element;
use crate::products::{PRODUCT_WORKSPACE_BYTES, Product, ProductShape};

/// A refusal, if it is one. After a fault of the device the next call of the driver says so.
pub(super) fn done(status: Status, what: &str) -> Result<(), BackendError> {
    match status {
        0 => Ok(()),
        status => Err(BackendError::Refused(format!("{what} of cuBLASLt: status {status}"))),
    }
}

/// Of a shape; how many rows there are and where the bias is differ from product to product.
#[derive(Clone, Copy)]
pub(super) struct Descriptors {
    pub(super) desc: Opaque,
    pub(super) weight: Opaque,
    pub(super) x: Opaque,
    pub(super) out: Opaque,
}

impl Descriptors {
    pub(super) fn new(symbols: Symbols, shape: ProductShape) -> Result<Self, BackendError> {
        let element = match shape.element {
            Element::Bf16 => TYPE_BF16,
            Element::F16 => TYPE_F16,
        };
        let out_type = if shape.out_is_f32 { TYPE_F32 } else { element };
        let (rows, cols) = (u64::from(shape.rows), u64::from(shape.cols));
        let layout = |what, number_type: c_int, height: u64, width: u64, stride: u64| {
            let mut layout = std::ptr::null_mut();
            // SAFETY: the layout outlives the call.
            let status = unsafe {
                (symbols.create_layout)(&raw mut layout, number_type, height, width, stride as i64)
            };
            done(status, what).map(|()| layout)
        };
        let mut desc = std::ptr::null_mut();
        // SAFETY: the descriptor outlives the call.
        done(unsafe { (symbols.create_desc)(&raw mut desc, COMPUTE_32F, TYPE_F32) }, "a descriptor")?;
        let descriptors = Descriptors {
            desc,
            weight: layout("a weight's layout", element, cols, rows, cols)?,
            x: layout("a layout of x", element, cols, 1, cols)?,
            out: layout("a layout of out", out_type, rows, 1, u64::from(shape.out_stride))?,
        };
        set(symbols.set_desc, desc, DESC_TRANSPOSE_A, TRANSPOSED)?;
        if shape.has_bias {
            set(symbols.set_desc, desc, DESC_EPILOGUE, EPILOGUE_BIAS)?;
        }
        Ok(descriptors)
    }

    /// What is the product's own.
    pub(super) fn describe(self, symbols: Symbols, product: &Product) -> Result<(), BackendError> {
        let num_rows = u64::from(product.num_rows);
        set(symbols.set_layout, self.x, LAYOUT_COLS, num_rows)?;
        set(symbols.set_layout, self.out, LAYOUT_COLS, num_rows)?;
        if product.shape.has_bias {
            set(symbols.set_desc, self.desc, DESC_BIAS_POINTER, product.bias)?;
        }
        Ok(())
    }

    pub(super) fn destroy(self, symbols: Symbols) {
        // SAFETY: each was made once and is destroyed once.
        unsafe {
            let _ = (symbols.destroy_desc)(self.desc);
            for layout in [self.weight, self.x, self.out] {
                let _ = (symbols.destroy_layout)(layout);
            }
        }
    }
}

/// Which algorithms are looked for.
pub(super) struct Search(pub(super) Opaque);

impl Search {
    pub(super) fn new(symbols: Symbols) -> Result<Self, BackendError> {
        let mut search = std::ptr::null_mut();
        // SAFETY: the search outlives the call.
        done(unsafe { (symbols.create_search)(&raw mut search) }, "a search")?;
        set(symbols.set_search, search, SEARCH_WORKSPACE_BYTES, PRODUCT_WORKSPACE_BYTES as u64)?;
        set(symbols.set_search, search, SEARCH_REDUCTIONS, REDUCTION_IN_F32)?;
        Ok(Search(search))
    }

    pub(super) fn destroy(&self, symbols: Symbols) {
        // SAFETY: made once and destroyed once.
        unsafe {
            let _ = (symbols.destroy_search)(self.0);
        }
    }
}

type Setter = unsafe extern "C" fn(Opaque, c_int, *const c_void, usize) -> Status;

/// Sets an attribute, a number of the size that the library expects.
fn set<T: Copy>(setter: Setter, what: Opaque, attribute: c_int, value: T) -> Result<(), BackendError> {
    // SAFETY: the number outlives the call, which is told its size.
    let status = unsafe { setter(what, attribute, (&raw const value).cast(), size_of::<T>()) };
    done(status, "an attribute")
}
