//! Patterns of strings and keys: made to end, and checked where their place is known.

use llguidance::derivre::RegexBuilder;
use llguidance::regex_to_lark;

use super::super::error::SchemaError;
use super::place::Place;
use crate::guard::guarded;

/// A pattern that matches a limited length: open repetitions get a limit, open ends a short rest.
pub(super) fn bounded_pattern(pattern: &str, repeat: usize) -> String {
    let (inner, starts) = match pattern.strip_prefix('^') {
        Some(inner) => (inner, true),
        None => (pattern, false),
    };
    let ends = inner.ends_with('$') && !ends_escaped(inner);
    // Anchors that hold for one alternative only are left to the compiler, which knows them.
    if has_top_level_alternatives(inner) {
        return limited(pattern, repeat);
    }
    let inner = if ends { &inner[..inner.len() - 1] } else { inner };
    let rest = format!(".{{0,{}}}", repeat.min(32));
    let (before, after) = (if starts { "" } else { &*rest }, if ends { "" } else { &*rest });
    format!("^{before}({}){after}$", limited(inner, repeat))
}

fn ends_escaped(pattern: &str) -> bool {
    let num_escapes = pattern[..pattern.len() - 1].bytes().rev().take_while(|&byte| byte == b'\\').count();
    num_escapes % 2 == 1
}

fn has_top_level_alternatives(pattern: &str) -> bool {
    let (mut depth, mut in_class, mut is_escaped) = (0usize, false, false);
    pattern.bytes().any(|byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b']' => in_class = false,
            _ if in_class => {}
            b'[' => in_class = true,
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'|' => return depth == 0,
            _ => {}
        }
        false
    })
}

/// `*`, `+` and `{n,}` with an upper limit.
fn limited(pattern: &str, repeat: usize) -> String {
    let mut out = String::with_capacity(pattern.len());
    let (mut in_class, mut is_escaped) = (false, false);
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        let is_plain = is_escaped || in_class;
        match c {
            '*' if !is_plain => out.push_str(&format!("{{0,{repeat}}}")),
            '+' if !is_plain => out.push_str(&format!("{{1,{repeat}}}")),
            ',' if !is_plain && rest.as_str().starts_with('}') && is_repeat(&out) => {
                let least: usize = out.rsplit('{').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
                out.push_str(&format!(",{}", least.saturating_add(repeat)));
            }
            _ => out.push(c),
        }
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '[' => in_class = true,
            ']' => in_class = false,
            _ => {}
        }
    }
    out
}

/// Whether what was written so far ends in `{` and digits.
fn is_repeat(written: &str) -> bool {
    let digits = written.rsplit('{').next().unwrap_or_default();
    !digits.is_empty() && digits.len() < written.len() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether the compiler can read the pattern, asked here so that the error has a place.
pub(super) fn checked_pattern(pattern: &str, place: &Place) -> Result<(), SchemaError> {
    let is_good = guarded(|| RegexBuilder::new().mk_regex_for_serach(&regex_to_lark(pattern, "dw")).is_ok());
    if is_good == Ok(true) {
        return Ok(());
    }
    Err(place.wrong("is not a regular expression that can be followed (no look-around, no back-references)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_repetitions_and_open_ends_get_a_limit_and_nothing_else_changes() {
        for (pattern, expected) in [
            ("^[0-9]{5}$", "^([0-9]{5})$"),
            ("^a+b*$", "^(a{1,9}b{0,9})$"),
            ("a{2,}", "^.{0,9}(a{2,11}).{0,9}$"),
            ("^[*+]{1,}\\+\\$", "^([*+]{1,10}\\+\\$).{0,9}$"),
            ("^(a|b)$", "^((a|b))$"),
            ("^a+$|b", "^a{1,9}$|b"),
            ("{,}", "^.{0,9}({,}).{0,9}$"),
        ] {
            assert_eq!(bounded_pattern(pattern, 9), expected);
        }
    }
}
