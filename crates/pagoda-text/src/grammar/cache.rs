//! Compiled grammars by source, the ones used last.

use std::collections::HashMap;

use super::compiler::Grammar;
use super::limits::SchemaBounds;
use super::source::GrammarSource;

/// What a grammar was compiled from. The whole text: equal hashes are not equal grammars.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct CacheKey {
    kind: u8,
    text: String,
    /// Bounds change schemas only.
    bounds: Option<SchemaBounds>,
}

impl CacheKey {
    pub(super) fn new(source: &GrammarSource, bounds: SchemaBounds) -> Self {
        let (kind, text, bounds) = match source {
            GrammarSource::JsonObject => (0, String::new(), Some(bounds)),
            GrammarSource::JsonSchema(schema) => (1, schema.to_string(), Some(bounds)),
            GrammarSource::Regex(regex) => (2, regex.clone(), None),
            GrammarSource::Choice(texts) => (3, serde_json::Value::from(texts.as_slice()).to_string(), None),
            GrammarSource::Lark(text) => (4, text.clone(), None),
        };
        CacheKey { kind, text, bounds }
    }
}

/// At most `max_len` grammars; the one that was not used for longest makes room.
pub(super) struct Cache {
    max_len: usize,
    now: u64,
    grammars: HashMap<CacheKey, (u64, Grammar)>,
}

impl Cache {
    pub(super) fn new(max_len: usize) -> Self {
        Cache { max_len, now: 0, grammars: HashMap::new() }
    }

    pub(super) fn get(&mut self, key: &CacheKey) -> Option<Grammar> {
        self.now += 1;
        let (used, grammar) = self.grammars.get_mut(key)?;
        *used = self.now;
        Some(grammar.clone())
    }

    pub(super) fn insert(&mut self, key: CacheKey, grammar: Grammar) {
        if self.max_len == 0 {
            return;
        }
        if self.grammars.len() >= self.max_len && !self.grammars.contains_key(&key) {
            let oldest = self.grammars.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.grammars.remove(&key));
        }
        self.now += 1;
        self.grammars.insert(key, (self.now, grammar));
    }
}
