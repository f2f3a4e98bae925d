//! Tool calls as each model writes them: which form its chat template shows, the grammar of that form, and the parser that
//! finds calls in an answer.
//!
//! ```text
//! ChatTemplate ──ToolSupport::probe──► ToolFormat ──┬─► ToolSupport::prepare    messages and tools for the template
//!   (renders two known calls)          (plain data) ├─► ToolGrammar             calls that a model is made to write
//!                                                   └─► ToolCallParser          text of the answer -> calls and content
//! ```

mod call;
mod conversation;
mod derive;
mod format;
mod grammar;
mod json_call;
mod marker;
mod parser;
mod python_call;
mod support;
mod tagged_call;
mod tool;

pub use format::ToolFormat;
pub use grammar::{Otherwise, ToolGrammar, ToolGrammarError};
pub use parser::{Announce, ToolCallParser, ToolDelta};
pub use support::{ToolSupport, ToolsPlace};
pub use tool::{Tool, ToolSet};
