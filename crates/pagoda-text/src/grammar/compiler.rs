//! Sources to grammars, on threads of their own under a time limit; what has been compiled is kept.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::cache::{Cache, CacheKey};
use super::error::GrammarError;
use super::limits::{GrammarLimits, GrammarOptions, SchemaBounds};
use super::matcher::{Matcher, StepLimits};
use super::probe::probed;
use super::schema::bounded;
use super::source::GrammarSource;
use super::vocabulary::vocabulary;
use super::width::width;
use crate::Tokenizer;
use crate::guard::{guarded, guarded_with_stack};

/// Compilation recurses over schemas, rules and brackets, whose number is limited so that this suffices. Only pages that are
/// touched take memory.
const STACK_BYTES: usize = 256 << 20;
/// Most brackets and lines of a Lark grammar: each may be one level of recursion.
const MAX_LARK_LEVELS: usize = 50_000;

/// Bytes of a token in the vocabularies that bounds are made for; SmolLM2's have 6.5 on average.
const USUAL_TOKEN_BYTES: usize = 6;

/// Compiles grammars for one vocabulary. Shared between threads.
pub struct GrammarCompiler {
    workshop: Arc<Workshop>,
    bounds: SchemaBounds,
    mean_token_bytes: usize,
}

/// What the compiling threads share.
struct Workshop {
    factory: ParserFactory,
    limits: GrammarLimits,
    cache: Mutex<Cache>,
    num_at_work: Mutex<usize>,
    has_room: Condvar,
}

/// A compiling thread's place; given back when it is dropped, also by a thread that nobody waits for any more.
struct Place(Arc<Workshop>);

impl GrammarCompiler {
    /// Lays out the vocabulary of `tokenizer`: about 100 ms for 49,152 tokens.
    ///
    /// # Errors
    /// [`GrammarError::Panicked`] for a vocabulary that cannot be laid out.
    pub fn new(tokenizer: &Tokenizer, options: GrammarOptions) -> Result<Self, GrammarError> {
        let GrammarOptions { eos_ids, limits, bounds } = options;
        let factory = guarded_with_stack(STACK_BYTES, || {
            let mut factory = ParserFactory::new_simple(&vocabulary(tokenizer, &eos_ids)).ok()?;
            factory.quiet();
            *factory.limits_mut() = parser_limits(&limits);
            Some(factory)
        });
        let factory = factory.ok().flatten().ok_or(GrammarError::Panicked)?;
        let workshop = Workshop {
            factory,
            cache: Mutex::new(Cache::new(limits.max_cached)),
            limits,
            num_at_work: Mutex::new(0),
            has_room: Condvar::new(),
        };
        let num_ids = tokenizer.vocab_size() as u32;
        let num_bytes: usize = (0..num_ids).map(|id| tokenizer.token_bytes(id).len()).sum();
        let mean_token_bytes = num_bytes / (num_ids as usize).max(1);
        Ok(Self { workshop: Arc::new(workshop), bounds, mean_token_bytes: mean_token_bytes.max(1) })
    }

    /// The bounds of [`GrammarCompiler::compile`].
    pub fn bounds(&self) -> &SchemaBounds {
        &self.bounds
    }

    /// The bounds for a value that has room for `room_tokens` tokens of this vocabulary: less where its tokens are short.
    pub fn bounds_within(&self, room_tokens: usize) -> SchemaBounds {
        let room =
            room_tokens.saturating_mul(self.mean_token_bytes.min(USUAL_TOKEN_BYTES)) / USUAL_TOKEN_BYTES;
        self.bounds.within(room)
    }

    /// Compiles `source`, or finds it compiled. Blocks for at most [`GrammarLimits::compile_time`].
    ///
    /// # Errors
    /// Any [`GrammarError`].
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        self.compile_within(source, &self.bounds)
    }

    /// [`GrammarCompiler::compile`] with other bounds for schemas.
    ///
    /// # Errors
    /// Any [`GrammarError`].
    pub fn compile_within(
        &self,
        source: &GrammarSource,
        bounds: &SchemaBounds,
    ) -> Result<Grammar, GrammarError> {
        let workshop = &self.workshop;
        check_size(source, &workshop.limits)?;
        let key = CacheKey::new(source, *bounds);
        if let Some(grammar) = workshop.cache().get(&key) {
            return Ok(grammar);
        }
        let timed_out = || GrammarError::TimedOut { what: what(source), limit: workshop.limits.compile_time };
        let deadline = Instant::now() + workshop.limits.compile_time;
        let place = Place::take(workshop, deadline).ok_or(GrammarError::Busy)?;
        // Whoever waited for a place may find that another one compiled the same meanwhile.
        if let Some(grammar) = workshop.cache().get(&key) {
            return Ok(grammar);
        }
        let (sender, receiver) = channel();
        let (source, bounds) = (source.clone(), *bounds);
        let worker = thread::Builder::new().name("pagoda-grammar".into()).stack_size(STACK_BYTES);
        let spawned = worker.spawn(move || {
            let workshop = &place.0;
            let compiled =
                guarded(|| workshop.compile(&source, &bounds)).unwrap_or(Err(GrammarError::Panicked));
            if let Ok(grammar) = &compiled {
                workshop.cache().insert(key, grammar.clone());
            }
            // Nobody may be waiting any more.
            let _ = sender.send(compiled);
        });
        spawned.map_err(|_| GrammarError::Busy)?;
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(compiled) => compiled,
            Err(RecvTimeoutError::Timeout) => Err(timed_out()),
            Err(RecvTimeoutError::Disconnected) => Err(GrammarError::Panicked),
        }
    }
}

impl Workshop {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compile(&self, source: &GrammarSource, bounds: &SchemaBounds) -> Result<Grammar, GrammarError> {
        let top_level = top_level(source, bounds)?;
        let what = what(source);
        let probed = probed(top_level, self.factory.tok_env(), self.factory.limits());
        let probed = probed.map_err(|error| refused(what, &error))?;
        let parser = self.factory.create_parser_from_init_default(probed);
        let mut parser = parser.map_err(|error| refused(what, &error.to_string()))?;
        let width = width(parser.parser.grammar(), self.limits.max_alternatives);
        let width = width.ok_or(GrammarError::TooComplex { what })?;
        parser.start_without_prompt();
        // The first mask is every sequence's; it also shows a grammar that no token can begin.
        let begins = parser
            .check_stop()
            .and_then(|stops| if stops { Ok(()) } else { parser.compute_mask().map(drop) });
        begins.map_err(|error| refused(what, &error.to_string()))?;
        let limits = StepLimits {
            max_bytes: self.limits.max_sequence_bytes,
            max_row_items: width + self.limits.max_readings,
        };
        Ok(Grammar { parser: Arc::new(parser), limits })
    }
}

impl Place {
    fn take(workshop: &Arc<Workshop>, deadline: Instant) -> Option<Self> {
        let at_work = workshop.num_at_work.lock().unwrap_or_else(PoisonError::into_inner);
        let most = workshop.limits.num_compilers.max(1);
        let patience = deadline.saturating_duration_since(Instant::now());
        let waited =
            workshop.has_room.wait_timeout_while(at_work, patience, |num_at_work| *num_at_work >= most);
        let (mut num_at_work, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() && *num_at_work >= most {
            return None;
        }
        *num_at_work += 1;
        Some(Place(Arc::clone(workshop)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.num_at_work.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.has_room.notify_one();
    }
}

fn check_size(source: &GrammarSource, limits: &GrammarLimits) -> Result<(), GrammarError> {
    let (unit, actual, limit) = match source {
        GrammarSource::JsonObject => return Ok(()),
        GrammarSource::JsonSchema(schema) => ("bytes", schema.to_string().len(), limits.max_source_bytes),
        GrammarSource::Regex(regex) => ("bytes", regex.len(), limits.max_regex_bytes),
        GrammarSource::Choice(texts) if texts.len() > limits.max_choices => {
            ("alternatives", texts.len(), limits.max_choices)
        }
        GrammarSource::Choice(texts) => {
            ("bytes", texts.iter().map(String::len).sum(), limits.max_source_bytes)
        }
        GrammarSource::Lark(text) if text.len() > limits.max_source_bytes => {
            ("bytes", text.len(), limits.max_source_bytes)
        }
        GrammarSource::Lark(text) => {
            let num_levels = text.bytes().filter(|byte| b"([\n".contains(byte)).count();
            ("brackets and lines", num_levels, MAX_LARK_LEVELS)
        }
    };
    if actual > limit {
        return Err(GrammarError::TooLarge { what: what(source), unit, actual, limit });
    }
    Ok(())
}

fn what(source: &GrammarSource) -> &'static str {
    match source {
        GrammarSource::JsonObject | GrammarSource::JsonSchema(_) => "schema",
        GrammarSource::Regex(_) => "regex",
        GrammarSource::Choice(_) => "choice",
        GrammarSource::Lark(_) => "grammar",
    }
}

fn top_level(source: &GrammarSource, bounds: &SchemaBounds) -> Result<TopLevelGrammar, GrammarError> {
    let malformed = |reason| GrammarError::Malformed { what: what(source), reason };
    Ok(match source {
        GrammarSource::JsonObject => {
            TopLevelGrammar::from_json_schema(bounded(&json!({"type": "object"}), bounds)?)
        }
        GrammarSource::JsonSchema(schema) => TopLevelGrammar::from_json_schema(bounded(schema, bounds)?),
        GrammarSource::Regex(regex) if regex.is_empty() => return Err(malformed("it is empty")),
        GrammarSource::Regex(regex) => TopLevelGrammar::from_regex(regex),
        GrammarSource::Choice(texts) if texts.iter().any(String::is_empty) => {
            return Err(malformed("a text is empty"));
        }
        GrammarSource::Choice(texts) => {
            // A JSON string is a string of Lark. As a terminal they are one automaton, as a rule one item each per step.
            let texts: Vec<String> =
                texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: CHOICE\nCHOICE: {}", texts.join(" | ")))
        }
        GrammarSource::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
    })
}

/// What the library's refusal means; its text quotes the source and goes no further.
fn refused(what: &'static str, message: &str) -> GrammarError {
    let is_about = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if is_about(&["fuel", "too large", "too many", "limit", "too complex", "TooComplex", "exceeded"]) {
        GrammarError::TooComplex { what }
    } else if is_about(&["NoExtensionBias"]) {
        GrammarError::Malformed { what, reason: "no token of the vocabulary can begin it" }
    } else if is_about(&["nsatisfiable", "empty"]) {
        GrammarError::Malformed { what, reason: "it allows no text" }
    } else {
        GrammarError::Malformed { what, reason: "it is not well-formed, or uses what is not supported" }
    }
}

fn parser_limits(limits: &GrammarLimits) -> ParserLimits {
    ParserLimits {
        max_lexer_states: limits.max_lexer_states,
        max_grammar_size: limits.max_grammar_size,
        step_lexer_fuel: limits.step_lexer_fuel,
        max_items_in_row: limits.max_alternatives + limits.max_readings,
        step_max_items: limits.step_max_items,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// A compiled grammar. Cheap to clone.
#[derive(Clone)]
pub struct Grammar {
    parser: Arc<TokenParser>,
    limits: StepLimits,
}

impl Grammar {
    /// A matcher at the start of the text.
    pub fn matcher(&self) -> Matcher {
        Matcher::new(self.parser.deep_clone(), self.limits)
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}
