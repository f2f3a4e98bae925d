//! What a model thinks before it answers, between tags of its own: which tags, and where they are in an answer.

mod parser;
mod tags;

pub use parser::{ReasoningDelta, ReasoningParser};
pub use tags::ReasoningTags;
