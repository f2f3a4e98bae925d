//! Products of dense weights by a library: what is asked of it, which of its algorithms is taken, and the file that remembers.
//! The library is cuBLASLt on a device ([`crate::CublasLt`]) and plain loops in the tests.

mod cache;
mod choices;
mod proof;

use pagoda_backend::BackendError;

pub(crate) use self::choices::Products;
use crate::element::Element;

/// Bytes that an algorithm may use beside its operands: what NVIDIA advises for Hopper.
pub const PRODUCT_WORKSPACE_BYTES: usize = 32 << 20;

/// What products must have in common to be served by the same algorithm, but for their number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProductShape {
    /// Of weight, x and, unless it is f32, out.
    pub element: Element,
    /// Rows of the weight, numbers of a row of out.
    pub rows: u32,
    /// Columns of the weight, numbers of a row of x.
    pub cols: u32,
    /// Numbers from one row of out to the next.
    pub out_stride: u32,
    /// Whether out is f32.
    pub out_is_f32: bool,
    /// Whether a bias is added: f32 if out is, else `element`.
    pub has_bias: bool,
}

/// `out[r][i] = sum over j of x[r][j] weight[i][j], + bias[i]`.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// The shape.
    pub shape: ProductShape,
    /// Rows of x and out.
    pub num_rows: u32,
    /// Address of `[rows, cols]`.
    pub weight: u64,
    /// Address of `[num_rows, cols]`.
    pub x: u64,
    /// Address of `[rows]`, or 0.
    pub bias: u64,
    /// Address of `num_rows` rows, `out_stride` apart.
    pub out: u64,
    /// Address of [`PRODUCT_WORKSPACE_BYTES`] bytes.
    pub workspace: u64,
}

/// A way to compute a product; only the library knows what the bits mean, and only the same version of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm(pub [u64; 8]);

/// A library of products on a device. An error that is not fatal refuses a product: it is computed without the library.
pub trait ProductLibrary: Send {
    /// Device, driver and version of the library: an algorithm is worth remembering under the same identity only.
    fn identity(&self) -> &str;
    /// Its name and version, for people.
    fn describe(&self) -> String;
    /// Algorithms for a product, the one that is thought the fastest first.
    fn candidates(&mut self, product: &Product) -> Result<Vec<Algorithm>, BackendError>;
    /// Whether an algorithm that was found for another number of rows serves this product.
    fn accepts(&mut self, product: &Product, algorithm: &Algorithm) -> Result<bool, BackendError>;
    /// Queues a product.
    fn multiply(&mut self, product: &Product, algorithm: &Algorithm) -> Result<(), BackendError>;
    /// Whether time can be measured now: not while launches are captured.
    fn can_measure(&self) -> Result<bool, BackendError>;
    /// Seconds that a product takes. Writes its out.
    fn seconds(&mut self, product: &Product, algorithm: &Algorithm) -> Result<f64, BackendError>;
}
