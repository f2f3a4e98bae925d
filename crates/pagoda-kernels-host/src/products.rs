//! A library of products for the host: plain loops, in the place of cuBLASLt, and ways to get them wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use pagoda_backend::BackendError;
use pagoda_backend_cuda::{Algorithm, Element, Product, ProductLibrary};

/// What it gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The bias is forgotten.
    NoBias,
    /// A weight's columns are taken for its rows.
    Transposed,
    /// The last row is not computed.
    LastRow,
}

/// The library.
pub struct HostProducts {
    fault: Fault,
    num_products: Arc<AtomicUsize>,
}

impl HostProducts {
    /// Counts its products in `num_products`.
    pub fn new(fault: Fault, num_products: Arc<AtomicUsize>) -> Self {
        HostProducts { fault, num_products }
    }

    fn number(&self, product: &Product, row: usize, index: usize, algorithm: &Algorithm) -> f32 {
        let (element, cols) = (product.shape.element, product.shape.cols as usize);
        let weight = |col: usize| match self.fault {
            Fault::Transposed => load(element, product.weight, col * product.shape.rows as usize + index),
            _ => load(element, product.weight, index * cols + col),
        };
        let term =
            |col: usize| f64::from(load(element, product.x, row * cols + col)) * f64::from(weight(col));
        let sum: f64 =
            if algorithm.0[0] == 1 { (0..cols).map(term).sum() } else { (0..cols).rev().map(term).sum() };
        let bias = match product.bias {
            _ if self.fault == Fault::NoBias || !product.shape.has_bias => 0.0,
            // SAFETY: the backend holds as many numbers there as the weight has rows.
            bias if product.shape.out_is_f32 => unsafe { (bias as *const f32).add(index).read() },
            bias => load(element, bias, index),
        };
        (sum + f64::from(bias)) as f32
    }
}

impl ProductLibrary for HostProducts {
    fn identity(&self) -> &str {
        "plain loops"
    }

    fn describe(&self) -> String {
        "plain loops".to_owned()
    }

    fn candidates(&mut self, _: &Product) -> Result<Vec<Algorithm>, BackendError> {
        Ok(vec![Algorithm([1; 8]), Algorithm([2; 8])])
    }

    fn accepts(&mut self, _: &Product, _: &Algorithm) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn multiply(&mut self, product: &Product, algorithm: &Algorithm) -> Result<(), BackendError> {
        assert!(product.workspace != 0, "a product without a workspace");
        self.num_products.fetch_add(1, Ordering::Relaxed);
        let num_rows = product.num_rows as usize - usize::from(self.fault == Fault::LastRow);
        for row in 0..num_rows {
            for index in 0..product.shape.rows as usize {
                store(product, row, index, self.number(product, row, index, algorithm));
            }
        }
        Ok(())
    }

    fn can_measure(&self) -> Result<bool, BackendError> {
        Ok(true)
    }

    /// Leaves no number in out, so that what counts is computed afterwards. The second algorithm is the faster.
    fn seconds(&mut self, product: &Product, algorithm: &Algorithm) -> Result<f64, BackendError> {
        for row in 0..product.num_rows as usize {
            for index in 0..product.shape.rows as usize {
                store(product, row, index, f32::NAN);
            }
        }
        Ok(1.0 / algorithm.0[0] as f64)
    }
}

fn load(element: Element, address: u64, index: usize) -> f32 {
    // SAFETY: the backend holds the operands of a product; the index is within its shape.
    let bits = unsafe { (address as *const u16).add(index).read() };
    match element {
        Element::Bf16 => bf16::from_bits(bits).to_f32(),
        Element::F16 => f16::from_bits(bits).to_f32(),
    }
}

fn store(product: &Product, row: usize, index: usize, value: f32) {
    let at = row * product.shape.out_stride as usize + index;
    let bits = match product.shape.element {
        Element::Bf16 => bf16::from_f32(value).to_bits(),
        Element::F16 => f16::from_f32(value).to_bits(),
    };
    // SAFETY: as of `load`; out has as many rows as the backend says.
    unsafe {
        if product.shape.out_is_f32 {
            (product.out as *mut f32).add(at).write(value);
        } else {
            (product.out as *mut u16).add(at).write(bits);
        }
    }
}
