//! One call as Python writes it, `f(a='x', b=[1, None])`. Literals of JSON are taken too.

use super::call::{BodyStep, Call, quoted};

/// The deepest nesting of a literal.
const MAX_DEPTH: usize = 64;

/// The call: collected up to its closing bracket, then read as a whole.
#[derive(Clone, Debug, Default)]
pub(super) struct PythonCall {
    /// What stands between the brackets.
    arguments: String,
    name: String,
    depth: usize,
    quote: Option<char>,
    is_escaped: bool,
}

impl PythonCall {
    pub(super) fn push(&mut self, c: char, call: &mut Call) -> BodyStep {
        if self.depth == 0 {
            return self.push_name(c, call);
        }
        match (self.quote, c) {
            _ if self.is_escaped => self.is_escaped = false,
            (Some(_), '\\') => self.is_escaped = true,
            (Some(quote), c) if c == quote => self.quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => self.quote = Some(c),
            (None, '(' | '[' | '{') => self.depth += 1,
            (None, ')' | ']' | '}') => self.depth -= 1,
            _ => {}
        }
        if self.depth == 0 {
            return match read(&self.arguments, call) {
                Some(()) => BodyStep::Done,
                None => BodyStep::Failed,
            };
        }
        self.arguments.push(c);
        BodyStep::More
    }

    fn push_name(&mut self, c: char, call: &mut Call) -> BodyStep {
        match c {
            '(' if call.set_name(&self.name) => {
                self.depth = 1;
                BodyStep::More
            }
            c if c.is_alphanumeric() || matches!(c, '_' | '.' | '-') => {
                self.name.push(c);
                if self.name.len() > 256 { BodyStep::Failed } else { BodyStep::More }
            }
            c if c.is_whitespace() && self.name.is_empty() => BodyStep::More,
            _ => BodyStep::Failed,
        }
    }
}

/// Reads `a='x', b=1`.
fn read(text: &str, call: &mut Call) -> Option<()> {
    let mut reader = Reader { rest: text.trim_start() };
    let mut keys: Vec<&str> = Vec::new();
    while !reader.rest.is_empty() {
        let end = reader.rest.find(|c: char| !(c.is_alphanumeric() || c == '_'))?;
        let (key, rest) = reader.rest.split_at(end);
        reader.rest = rest;
        if key.is_empty() || keys.contains(&key) || !reader.take('=') {
            return None;
        }
        keys.push(key);
        let value = reader.value(MAX_DEPTH)?;
        call.add_argument(key, &value);
        if !reader.take(',') && !reader.rest.is_empty() {
            return None;
        }
    }
    call.close_arguments();
    Some(())
}

/// Reads Python literals as JSON.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    /// Skips white space, then takes a character if it comes next; skips white space behind it.
    fn take(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<String> {
        let depth = depth.checked_sub(1)?;
        self.rest = self.rest.trim_start();
        match self.rest.chars().next()? {
            '\'' | '"' => self.string().map(|text| quoted(&text)),
            '[' => self.list('[', ']', depth),
            '(' => self.list('(', ')', depth),
            '{' => self.dict(depth),
            _ => self.word(),
        }
    }

    fn list(&mut self, open: char, close: char, depth: usize) -> Option<String> {
        self.take(open);
        let mut items = Vec::new();
        while !self.take(close) {
            items.push(self.value(depth)?);
            if !self.take(',') && !self.rest.starts_with(close) {
                return None;
            }
        }
        Some(format!("[{}]", items.join(", ")))
    }

    fn dict(&mut self, depth: usize) -> Option<String> {
        self.take('{');
        let mut items = Vec::new();
        while !self.take('}') {
            let key = self.string()?;
            if !self.take(':') {
                return None;
            }
            items.push(format!("{}: {}", quoted(&key), self.value(depth)?));
            if !self.take(',') && !self.rest.starts_with('}') {
                return None;
            }
        }
        Some(format!("{{{}}}", items.join(", ")))
    }

    fn word(&mut self) -> Option<String> {
        let end = self.rest.find(|c: char| c.is_whitespace() || matches!(c, ',' | ')' | ']' | '}' | ':'));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.trim_start();
        match word {
            "True" | "true" => Some("true".into()),
            "False" | "false" => Some("false".into()),
            "None" | "null" => Some("null".into()),
            number => serde_json::from_str::<serde_json::Number>(number).is_ok().then(|| number.to_owned()),
        }
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (mut text, mut chars) = (String::new(), self.rest[1..].chars());
        loop {
            match chars.next()? {
                c if c == quote => break,
                '\\' => unescape(&mut chars, &mut text)?,
                c => text.push(c),
            }
        }
        self.rest = chars.as_str().trim_start();
        Some(text)
    }
}

/// Reads what stands behind a backslash.
fn unescape(chars: &mut std::str::Chars<'_>, text: &mut String) -> Option<()> {
    let c = chars.next()?;
    let mut hex = |len: usize| -> Option<u32> {
        let code = u32::from_str_radix(chars.as_str().get(..len)?, 16).ok()?;
        *chars = chars.as_str()[len..].chars();
        Some(code)
    };
    match c {
        'n' => text.push('\n'),
        't' => text.push('\t'),
        'r' => text.push('\r'),
        'b' => text.push('\u{8}'),
        'f' => text.push('\u{c}'),
        '\n' => {}
        'x' => text.push(char::from_u32(hex(2)?)?),
        'U' => text.push(char::from_u32(hex(8)?)?),
        'u' => {
            let first = hex(4)?;
            let is_pair = (0xD800..0xDC00).contains(&first) && chars.as_str().starts_with("\\u");
            if !is_pair {
                text.push(char::from_u32(first).unwrap_or('\u{FFFD}'));
                return Some(());
            }
            let low = u32::from_str_radix(chars.as_str().get(2..6)?, 16).ok()?;
            *chars = chars.as_str()[6..].chars();
            let pair = 0x10000 + ((first - 0xD800) << 10) + (low.wrapping_sub(0xDC00) & 0x3FF);
            text.push(char::from_u32(pair).unwrap_or('\u{FFFD}'));
        }
        c @ ('\\' | '\'' | '"' | '/') => text.push(c),
        // Python keeps what it does not know.
        c => {
            text.push('\\');
            text.push(c);
        }
    }
    Some(())
}
