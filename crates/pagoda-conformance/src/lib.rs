//! The case table that every backend is held to: shapes at which kernels go wrong, fresh random inputs, the f64 reference of
//! `pagoda-backend-cpu`, relative L2 error.
//!
//! Owns: the cases, how an op is set up, run and compared. Does not know: any backend but through `trait Backend` and the few
//! functions of a [`Subject`].
//!
//! Outputs are NaN before an op, rows behind the op's rows must be NaN after it, and unwritten KV slots are NaN, so that
//! whatever is forgotten, or read where nothing was written, shows.

mod cases;
mod compare;
mod random;
mod subject;

pub use cases::{Case, cases};
pub use subject::{SlotReader, Subject};
