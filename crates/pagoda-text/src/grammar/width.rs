//! How many alternatives a grammar has at one place.
//!
//! The parser keeps the alternatives at a place of the text as a list and searches it through for each that it adds, once
//! for each way there, so that a step grows with the square of the list at least: 800 alternatives that 400 rules lead to
//! took 270 ms. It counts them only when they have been added, so they are counted here, before the first step.

use std::collections::HashSet;

use llguidance::earley::{CGrammar, CSymIdx};

/// The most alternatives that begin where one of the grammar's symbols begins; `None` if they are more than `limit`.
pub(super) fn width(grammar: &CGrammar, limit: usize) -> Option<usize> {
    let mut seen = HashSet::from([grammar.start()]);
    let mut open = vec![grammar.start()];
    let mut width = 0;
    while let Some(symbol) = open.pop() {
        width = width.max(num_alternatives(grammar, symbol, limit));
        if width > limit {
            return None;
        }
        for &rule in grammar.rules_of(symbol) {
            let (symbols, _, _) = grammar.rule_rhs(rule);
            open.extend(symbols.iter().filter(|symbol| seen.insert(**symbol)));
        }
    }
    Some(width)
}

/// The rules that may begin where `symbol` does, and what follows their parts that may be empty, each once more for every place
/// that leads there; counts to a little more than `limit`.
fn num_alternatives(grammar: &CGrammar, symbol: CSymIdx, limit: usize) -> usize {
    let mut seen = HashSet::from([symbol]);
    let mut open = vec![symbol];
    let mut num = 0;
    while let Some(symbol) = open.pop() {
        for &rule in grammar.rules_of(symbol) {
            for &first in grammar.rule_rhs(rule).0 {
                num += 1 + grammar.rules_of(first).len();
                if num > limit {
                    return num;
                }
                if seen.insert(first) {
                    open.push(first);
                }
                if !grammar.sym_data(first).is_nullable {
                    break;
                }
            }
        }
    }
    num
}
