//! Sources to grammars.

use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::error::GrammarError;
use super::limits::{GrammarLimits, GrammarOptions, SchemaBounds};
use super::matcher::Matcher;
use super::schema::bounded;
use super::source::GrammarSource;
use super::vocabulary::vocabulary;
use crate::Tokenizer;
use crate::guard::guarded_with_stack;

/// Compilation recurses over schemas and expressions; only pages that are touched take memory.
const STACK_BYTES: usize = 64 << 20;

/// Compiles grammars for one vocabulary. Shared between threads.
pub struct GrammarCompiler {
    factory: ParserFactory,
    options: GrammarOptions,
}

impl GrammarCompiler {
    /// Lays out the vocabulary of `tokenizer`: about 100 ms for 49,152 tokens.
    ///
    /// # Errors
    /// [`GrammarError::Panicked`] for a vocabulary that cannot be laid out.
    pub fn new(tokenizer: &Tokenizer, options: GrammarOptions) -> Result<Self, GrammarError> {
        let factory = guarded_with_stack(STACK_BYTES, || {
            let env = vocabulary(tokenizer, &options.eos_ids);
            let mut factory = ParserFactory::new_simple(&env).ok()?;
            factory.quiet();
            *factory.limits_mut() = parser_limits(&options.limits);
            Some(factory)
        });
        let factory = factory.ok().flatten().ok_or(GrammarError::Panicked)?;
        Ok(Self { factory, options })
    }

    /// The bounds that [`GrammarSource::JsonSchema`] gets.
    pub fn bounds(&self) -> &SchemaBounds {
        &self.options.bounds
    }

    /// Compiles `source`.
    ///
    /// # Errors
    /// Any [`GrammarError`].
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        let (what, top_level) = self.top_level(source)?;
        let malformed =
            GrammarError::Malformed { what, reason: "it is not well-formed or asks for too much" };
        let parser = guarded_with_stack(STACK_BYTES, || {
            let mut parser = self.factory.create_parser(top_level).ok()?;
            parser.start_without_prompt();
            parser.check_stop().ok()?;
            Some(parser)
        })
        .map_err(|_| GrammarError::Panicked)?
        .ok_or(malformed)?;
        Ok(Grammar { parser: Arc::new(parser) })
    }

    fn top_level(&self, source: &GrammarSource) -> Result<(&'static str, TopLevelGrammar), GrammarError> {
        let schema = |schema: &Value| {
            Ok(("schema", TopLevelGrammar::from_json_schema(bounded(schema, &self.options.bounds)?)))
        };
        match source {
            GrammarSource::JsonObject => schema(&json!({"type": "object"})),
            GrammarSource::JsonSchema(value) => schema(value),
            GrammarSource::Regex(regex) => Ok(("regex", TopLevelGrammar::from_regex(regex))),
            GrammarSource::Choice(texts) => {
                let options: Vec<String> =
                    texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                Ok(("choice", TopLevelGrammar::from_lark(format!("start: {}", options.join(" | ")))))
            }
            GrammarSource::Lark(text) => Ok(("grammar", TopLevelGrammar::from_lark(text.clone()))),
        }
    }
}

fn parser_limits(limits: &GrammarLimits) -> ParserLimits {
    ParserLimits {
        max_lexer_states: limits.max_lexer_states,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// A compiled grammar. Cheap to clone.
#[derive(Clone)]
pub struct Grammar {
    parser: Arc<TokenParser>,
}

impl Grammar {
    /// A matcher at the start of the text.
    pub fn matcher(&self) -> Matcher {
        Matcher::new(self.parser.deep_clone())
    }
}
