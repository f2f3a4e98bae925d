//! The first step of a grammar's lexer, taken under a limit before the library takes it without one.
//!
//! The library limits what it spends on a step, but sets that limit only once the parser stands. While it builds the parser
//! it asks for each of the 256 bytes whether a lexeme may begin with it, and for lexemes with `&`, `~` or `multipleOf` that
//! is a search through their automaton: one that never ends, and takes memory all the while, for a `multipleOf` of 10^9.

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use toktrie::TokEnv;

/// Reads `grammar`, and takes its lexer's first step with no more than the fuel of `limits`.
///
/// # Errors
/// The library's own message, which quotes the grammar.
pub(super) fn probed(
    grammar: TopLevelGrammar,
    tok_env: &TokEnv,
    limits: &ParserLimits,
) -> Result<GrammarInit, String> {
    let init = GrammarInit::Serialized(grammar).to_internal(Some(tok_env.clone()), limits.clone());
    let (grammar, lexer_spec) = init.map_err(|error| error.to_string())?;
    let lexer = lexer_spec.to_regex_vec(&mut limits.clone());
    let mut lexer = lexer.map_err(|error| error.to_string())?;
    lexer.set_fuel(limits.initial_lexer_fuel);
    let start = lexer.initial_state(&lexer_spec.all_lexemes());
    for byte in 0..=u8::MAX {
        lexer.transition(start, byte);
        if lexer.has_error() {
            return Err("the lexer's first step is too complex".to_owned());
        }
    }
    Ok(GrammarInit::Internal(grammar, lexer_spec))
}
