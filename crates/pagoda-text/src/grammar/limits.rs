//! The limits under which grammars are compiled and followed, and the bounds that schemas get by default.

use std::time::Duration;

/// What a [`GrammarCompiler`](super::GrammarCompiler) works under.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrammarOptions {
    /// The ids that end an answer, allowed wherever the grammar may end.
    pub eos_ids: Vec<u32>,
    /// Limits on hostile input.
    pub limits: GrammarLimits,
    /// Bounds for what a schema leaves open.
    pub bounds: SchemaBounds,
}

/// Limits on hostile grammars. Each is checked before the work that it caps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Largest schema or Lark grammar, in bytes of its text. Tool lists of 25,000 characters are real.
    pub max_source_bytes: usize,
    /// Largest regular expression, in bytes.
    pub max_regex_bytes: usize,
    /// Most alternatives of a choice or values of an `enum`.
    pub max_choices: usize,
    /// Deepest nesting of a schema.
    pub max_depth: usize,
    /// Most subschemas, after nested references have been laid out.
    pub max_schemas: usize,
    /// Longest time that a caller waits for a compilation.
    pub compile_time: Duration,
    /// Compilations that run at the same time; more wait for their turn within `compile_time`.
    pub num_compilers: usize,
    /// Compiled grammars that are kept.
    pub max_cached: usize,
    /// States of the lexer of one sequence, each about 1.5 KiB.
    pub max_lexer_states: usize,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        Self {
            max_source_bytes: 512 << 10,
            max_regex_bytes: 16 << 10,
            max_choices: 4096,
            max_depth: 64,
            max_schemas: 16 << 10,
            compile_time: Duration::from_secs(5),
            num_compilers: 2,
            max_cached: 64,
            max_lexer_states: 50_000,
        }
    }
}

/// Bounds for what a JSON schema leaves open. Without them the value of a weak model never ends: one of 50 forced calls of a
/// random-weight model ended within 512 tokens, with them 50 of 50. A bound that the schema states itself is never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SchemaBounds {
    /// `maxLength` of a string without one, in characters.
    pub max_string_chars: usize,
    /// `maxItems` of an array without one.
    pub max_items: usize,
    /// Properties of an object beyond those that its schema names.
    pub max_extra_properties: usize,
    /// Digits before the point of a number without `minimum` and `maximum`.
    pub max_integer_digits: u32,
    /// Digits behind the point of a number without `multipleOf`.
    pub max_fraction_digits: u32,
    /// Levels of a value about which the schema says nothing, and of a schema within itself.
    pub max_depth: usize,
}

impl Default for SchemaBounds {
    fn default() -> Self {
        Self {
            max_string_chars: 1024,
            max_items: 32,
            max_extra_properties: 16,
            max_integer_digits: 15,
            max_fraction_digits: 6,
            max_depth: 4,
        }
    }
}
