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
    /// Most alternatives of a choice.
    pub max_choices: usize,
    /// Longest time that a caller waits for a compilation.
    pub compile_time: Duration,
    /// Compilations that run at the same time; more wait for their turn within `compile_time`.
    pub num_compilers: usize,
    /// Compiled grammars that are kept.
    pub max_cached: usize,
    /// States of the lexer of one sequence, each about 1.5 KiB.
    pub max_lexer_states: usize,
    /// Symbols of a grammar's rules. A step may look at each of them, at 20 per microsecond.
    pub max_grammar_size: usize,
    /// Alternatives at one place of a grammar, counted once for each place that leads to them.
    pub max_alternatives: usize,
    /// Alternatives more than the grammar's own that the parser keeps at one place, as it does where the text so far can be
    /// read in many ways. With 1,000 of `e: e e | "a"` a step took 290 ms.
    pub max_readings: usize,
    /// What the parser may add in one step.
    pub step_max_items: usize,
    /// What the lexer may spend on one step, where 1,000 are some 70 to 200 microseconds.
    pub step_lexer_fuel: u64,
    /// Memory of one sequence, which grows with what the sequence meets. Checked after each step, which adds a few megabytes
    /// at most.
    pub max_sequence_bytes: usize,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        Self {
            max_source_bytes: 512 << 10,
            max_regex_bytes: 16 << 10,
            max_choices: 4096,
            compile_time: Duration::from_secs(5),
            num_compilers: 2,
            max_cached: 32,
            max_lexer_states: 50_000,
            max_grammar_size: 100_000,
            max_alternatives: 1000,
            max_readings: 200,
            step_max_items: 50_000,
            step_lexer_fuel: 100_000,
            max_sequence_bytes: 64 << 20,
        }
    }
}

/// Bounds for what a JSON schema leaves open. Without them the value of a weak model never ends. A bound that the schema
/// states itself is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SchemaBounds {
    /// Tokens that the value has room for. The strings without `maxLength` share it.
    pub room_tokens: usize,
    /// The most that a string without `maxLength` gets, in characters.
    pub max_string_chars: usize,
    /// `maxItems` of an array without one; a quarter of it for each level of a schema within itself.
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
            room_tokens: 4096,
            max_string_chars: 8192,
            max_items: 64,
            max_extra_properties: 16,
            max_integer_digits: 15,
            max_fraction_digits: 6,
            max_depth: 4,
        }
    }
}

impl SchemaBounds {
    /// These bounds for a value that has room for `room_tokens` tokens. Rounded down to a power of two, so that answers of
    /// similar length share a compiled grammar.
    pub fn within(&self, room_tokens: usize) -> Self {
        let room_tokens = 1 << room_tokens.clamp(16, 1 << 20).ilog2();
        SchemaBounds {
            room_tokens,
            max_items: self.max_items.min((room_tokens / 64).max(4)),
            max_extra_properties: self.max_extra_properties.min((room_tokens / 64).max(2)),
            ..*self
        }
    }
}
