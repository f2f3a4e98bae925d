//! From what a template makes of a known conversation to the format it writes calls in.
//!
//! Two calls are rendered whose names and arguments occur nowhere else. What stands before the first, between the two and
//! behind the second is the markup; what stands around names and values is the syntax. A format is only taken if it
//! explains every character, and if none of its markup holds a part of the probe.

use serde_json::{Value, json};

use super::format::{CallSyntax, Markup, NamedSyntax, TaggedSyntax, ToolFormat};
use super::marker::Marker;

pub(super) const NAMES: [&str; 2] = ["zqfirst_fn", "zwsecond_fn"];
/// Nothing in common, so that what differs between two calls is exactly the id.
pub(super) const IDS: [[&str; 2]; 2] =
    [["call_0a1b2c3d4e5f6a7b8c9d0e1f", "call_9z8y7x6w5v4u3t2s1r0q9p8o"], ["a1b2c3d4e", "z9y8x7w6v"]];
pub(super) const KEYS: [&str; 2] = ["zqalpha", "zwbeta"];
const TEXTS: [&str; 2] = ["zqone", "zwtwo"];
const NUMBERS: [&str; 2] = ["7171", "8282"];

/// The arguments of one of the probe's calls.
pub(super) fn arguments(index: usize) -> Value {
    let number: u32 = NUMBERS[index].parse().expect("the literals are numbers");
    json!({KEYS[0]: TEXTS[index], KEYS[1]: number})
}

/// What stands in `rendered` where `plain`, the same conversation without calls, has its text.
pub(super) fn block<'a>(rendered: &'a str, plain: &str) -> Option<&'a str> {
    let num_common = |a: &mut dyn Iterator<Item = (char, char)>| -> usize {
        a.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
    };
    let mut start = num_common(&mut rendered.chars().zip(plain.chars()));
    // Two tags may begin alike.
    for (open, close) in [('<', '>'), ('[', ']')] {
        if let Some(at) = rendered[..start].rfind(open).filter(|&at| !rendered[at..start].contains(close)) {
            start = at;
        }
    }
    let rest = &rendered[start..];
    let num_behind = num_common(&mut rest.chars().rev().zip(plain.chars().rev()));
    let mut end = rest.len() - num_behind;
    if let Some(at) = rest[end..].find('>').filter(|&at| !rest[end..end + at].contains('<')) {
        end += at + 1;
    }
    let block = rest.get(..end)?;
    block.contains(NAMES[0]).then_some(block)
}

/// The format of a block with two calls, or with one.
pub(super) fn format(block: &str) -> Option<ToolFormat> {
    let places = Places::find(block)?;
    let format = json(block).or_else(|| named(block, places)).or_else(|| tagged(block, places));
    let format = format.or_else(|| pythonic(block, places))?;
    is_plain(&format).then_some(format)
}

/// Where the names stand.
#[derive(Clone, Copy)]
struct Places {
    first: usize,
    second: Option<usize>,
}

impl Places {
    fn find(block: &str) -> Option<Self> {
        Some(Places { first: block.find(NAMES[0])?, second: block.find(NAMES[1]) })
    }
}

/// Whether the markup is markup: nothing of the probe in it, and its beginning can be told from text.
fn is_plain(format: &ToolFormat) -> bool {
    let parts = || NAMES.iter().chain(IDS.as_flattened()).chain(&KEYS).chain(&TEXTS).chain(&NUMBERS);
    let is_clean = |marker: &str| !parts().any(|part| marker.contains(part)) && !marker.contains(['{', '}']);
    let begin = format.begin.text();
    format.markers().all(is_clean) && (begin.is_empty() || begin.starts_with(['<', '[']))
}

/// Markup whose reasoning in front and white space around has been cut off.
fn markup(begin: &str, between: &str, end: &str) -> Markup {
    let begin = match begin.rfind("think").max(begin.rfind("THINK")) {
        Some(at) => begin[at..].split_once('>').map_or("", |(_, rest)| rest),
        None => begin,
    };
    Markup { begin: begin.trim_start().into(), between: between.into(), end: end.trim_end().into() }
}

/// The smallest JSON object around the name at `at`: its place and its value.
fn object_around(block: &str, at: usize) -> Option<(std::ops::Range<usize>, Value)> {
    let start = block[..at].rfind('{')?;
    object_at(block, start).filter(|(range, _)| range.end > at)
}

fn object_at(block: &str, start: usize) -> Option<(std::ops::Range<usize>, Value)> {
    let mut values = serde_json::Deserializer::from_str(&block[start..]).into_iter::<Value>();
    let value = values.next()?.ok().filter(Value::is_object)?;
    Some((start..start + values.byte_offset(), value))
}

fn json(block: &str) -> Option<ToolFormat> {
    let places = Places::find(block)?;
    let (first, value) = object_around(block, places.first)?;
    let key_of = |wanted: &Value| {
        value.as_object()?.iter().find(|(_, value)| *value == wanted).map(|(key, _)| key.clone())
    };
    let name_key = key_of(&NAMES[0].into())?;
    let arguments_key = key_of(&arguments(0))?;
    let (between, last) = match places.second.and_then(|at| object_around(block, at)) {
        Some((second, _)) => (block.get(first.end..second.start)?, second),
        None => ("", first.clone()),
    };
    let markup = markup(&block[..first.start], between, &block[last.end..]);
    Some(ToolFormat::new(markup, CallSyntax::Json { name_key, arguments_key }))
}

fn named(block: &str, places: Places) -> Option<ToolFormat> {
    let arguments_behind = |at: usize| {
        let start = at + block[at..].find('{')?;
        object_at(block, start).map(|(range, _)| range)
    };
    let first_end = places.first + NAMES[0].len();
    let first = arguments_behind(first_end)?;
    let gap = &block[first_end..first.start];
    let (between, end, other_gap) = match places.second {
        Some(at) => {
            let second_end = at + NAMES[1].len();
            let second = arguments_behind(second_end)?;
            let between = block.get(first.end..at)?;
            (between, &block[second.end..], &block[second_end..second.start])
        }
        None => ("", &block[first.end..], gap),
    };
    let syntax = named_syntax(gap, other_gap)?;
    let markup = markup(&block[..places.first], between, end);
    Some(ToolFormat::new(markup, CallSyntax::NamedJson(syntax)))
}

/// What stands between name and arguments; where it differs from call to call it holds an id.
fn named_syntax(gap: &str, other: &str) -> Option<NamedSyntax> {
    let num_before = gap.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    if num_before == gap.len() && gap.len() == other.len() {
        let syntax = NamedSyntax { id: None, after_name: Marker::new(gap) };
        return (!gap.trim().is_empty()).then_some(syntax);
    }
    let num_behind = gap.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count();
    let before = gap.get(..num_before)?;
    let (id, after) = (gap.get(num_before..gap.len() - num_behind)?, gap.get(gap.len() - num_behind..)?);
    let pattern = match id {
        id if IDS.as_flattened().contains(&id) => "[a-zA-Z0-9]{9}",
        id if id.bytes().all(|byte| byte.is_ascii_digit()) => "[0-9]",
        _ => return None,
    };
    let is_usable = !before.is_empty() && !after.trim().is_empty();
    is_usable
        .then(|| NamedSyntax { id: Some((before.into(), pattern.into())), after_name: Marker::new(after) })
}

fn tagged(block: &str, places: Places) -> Option<ToolFormat> {
    let mut at = places.first + NAMES[0].len();
    let mut gap_before = |text: &str| {
        let gap = &block[at..at + block[at..].find(text)?];
        at += gap.len() + text.len();
        Some(gap)
    };
    let before_first = gap_before(KEYS[0])?;
    let key_close = gap_before(TEXTS[0])?;
    let before_second = gap_before(KEYS[1])?;
    if gap_before(NUMBERS[0])? != key_close {
        return None;
    }
    let rest = &block[at..];
    let (between, end) = match places.second {
        Some(second) => {
            let last = block.find(NUMBERS[1])? + NUMBERS[1].len();
            (block.get(at..second)?, &block[last..])
        }
        None => ("", rest),
    };
    let key_open = common_suffix(before_first, before_second);
    let key_open = &key_open[key_open.find(['<', '['])?..];
    let value_close = whole_tags(common_prefix(before_second, end));
    if key_close.trim().is_empty() || value_close.trim().is_empty() {
        return None;
    }
    let syntax = TaggedSyntax {
        after_name: Marker::new(before_first.strip_suffix(key_open)?),
        key_open: Marker::new(key_open),
        key_close: Marker::new(key_close),
        value_close: Marker::new(value_close),
    };
    let between = if between.is_empty() { "" } else { between.strip_prefix(value_close)? };
    let markup = markup(&block[..places.first], between, end.strip_prefix(value_close)?);
    Some(ToolFormat::new(markup, CallSyntax::Tagged(syntax)))
}

fn common_prefix<'a>(a: &'a str, b: &str) -> &'a str {
    let len = a
        .char_indices()
        .zip(b.chars())
        .find(|((_, a), b)| a != b)
        .map_or(a.len().min(b.len()), |((at, _), _)| at);
    &a[..len]
}

fn common_suffix<'a>(a: &'a str, b: &str) -> &'a str {
    let len: usize =
        a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    &a[a.len() - len..]
}

/// `text` up to a tag that it only begins.
fn whole_tags(text: &str) -> &str {
    match text.rfind('<') {
        Some(at) if !text[at..].contains('>') => &text[..at],
        _ => text,
    }
}

fn pythonic(block: &str, places: Places) -> Option<ToolFormat> {
    let end_of_call = |at: usize, name: &str| {
        let rest = block[at..].strip_prefix(name)?.strip_prefix('(')?;
        rest.starts_with(KEYS[0]).then(|| rest.find(')').map(|close| at + name.len() + 1 + close + 1))?
    };
    let first_end = end_of_call(places.first, NAMES[0])?;
    let (between, last_end) = match places.second {
        Some(at) => (block.get(first_end..at)?, end_of_call(at, NAMES[1])?),
        None => (", ", first_end),
    };
    let markup = markup(&block[..places.first], between, &block[last_end..]);
    Some(ToolFormat::new(markup, CallSyntax::Pythonic))
}
