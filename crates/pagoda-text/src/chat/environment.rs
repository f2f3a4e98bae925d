//! The Jinja environment that chat templates are written for: the one that Python's `transformers` sets up.
//!
//! What differs from minijinja's own defaults, each because a published template depends on it: blocks are trimmed,
//! values print as in Python, lines may end in CR LF, and `{% generation %}` marks a scope without effect.
//!
//! Known differences that stay: `for` over `none` is an empty loop (Python fails); `tojson` takes the result of `map`
//! (Python fails); `a ~ b` writes floats of 1e16 and more or below 1e-4 without exponent; `"x"|safe + y` does not escape
//! `y`; `"..." % x` does not format.

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};

use super::{builtins, methods, python};

/// Deepest nesting of macro calls. Each takes about 2 KB of stack, and threads may have no more than 2 MB.
const MAX_RECURSION: usize = 200;

/// An environment without templates.
pub(crate) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("the default delimiters are distinct"));
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(|out, _state, value| python::write_str(value, out));
    env.set_unknown_method_callback(methods::call);
    env.set_recursion_limit(MAX_RECURSION);
    env.set_debug(false);
    builtins::add_to(&mut env);
    env
}

/// A template's text as minijinja is given it.
pub(crate) fn prepared(source: &str) -> String {
    without_generation_tags(&source.replace("\r\n", "\n").replace('\r', "\n"))
}

/// `source` with `{% generation %}` .. `{% endgeneration %}` turned into a plain scope, which is what they are when
/// nothing tracks them.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let (before, tag) = rest.split_at(start);
        let (tag, behind) = tag.split_at(len + 2);
        out.push_str(before);
        match tag[2..len].trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => out.push_str(tag),
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}
