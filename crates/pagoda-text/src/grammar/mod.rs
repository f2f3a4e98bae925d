//! Grammars that a model's output must follow: JSON schemas, regexes, choices and Lark grammars as masks over token ids.
//!
//! ```text
//! GrammarSource ──GrammarCompiler──► Grammar ──matcher()──► Matcher     one per sequence
//!                 (cached, bounded)                          │ fill_mask(bits)   which ids may follow
//!                                                            │ advance(id)       one was chosen
//!                                                            ▼ is_complete()     the value has ended
//! ```
//!
//! * [`GrammarCompiler`] belongs to one [`Tokenizer`](crate::Tokenizer): masks read the same bytes per token as decoding.
//! * [`bounded`] rewrites a schema so that every value of it ends: strings, arrays, numbers and nesting get limits where
//!   the schema has none. Whitespace between tokens of JSON is at most one space behind a separator.
//! * [`Matcher`] is the state of one sequence, independent of every other, so that one that fails or grows too complex
//!   fails alone.
//!
//! # What it does not know
//!
//! The engine, HTTP, and the names that clients use for all this.
//!
//! # Hostile input
//!
//! Schemas and regexes come from the network. Their size, depth and number are capped before anything is compiled,
//! compilation runs on threads of its own under a time limit, a step has limits on its work, a sequence one on its memory, and
//! a panic ends at the boundary.
//! No error quotes them.

mod cache;
mod compiler;
mod error;
mod limits;
mod matcher;
mod probe;
mod schema;
mod source;
mod vocabulary;
mod width;

pub use compiler::{Grammar, GrammarCompiler};
pub use error::{GrammarError, MatchError, SchemaError};
pub use limits::{GrammarLimits, GrammarOptions, SchemaBounds};
pub use matcher::Matcher;
pub use schema::{Relaxed, bounded, relaxed};
pub use source::GrammarSource;
