//! The inner loops, one op per file: straight lines over pointers, compiled once per instruction set.
//!
//! A kernel does one task of an op on one thread. The ops check shapes and cut themselves into tasks; kernels check
//! nothing. Each has a params struct whose fields say what the pointers must be valid for.

// Register tiles are arrays indexed by row and vector; iterators over them would hide which operand is which.
#![allow(clippy::needless_range_loop)]

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod linear;
mod linear_few_rows;
pub(crate) mod linear_int16;
pub(crate) mod logits;
pub(crate) mod norm;
pub(crate) mod rope;
mod unpack;
