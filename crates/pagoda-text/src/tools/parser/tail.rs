//! What follows a call: the markup that ends it, or that leads to the next one.

use std::sync::Arc;

use super::{Body, Place, ToolCallParser};
use crate::tools::marker::{Marker, Step};

/// The markup behind a call, as far as it has come.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    /// How far each marker has come; None once it cannot be it any more.
    pub(super) between: Option<usize>,
    pub(super) end: Option<usize>,
    /// The call is one only if a marker follows.
    pub(super) is_required: bool,
    /// The model put its calls in a list of its own making.
    pub(super) in_list: bool,
    pub(super) held: String,
}

impl ToolCallParser {
    pub(super) fn begin_tail(&mut self, tail: Tail) {
        let has = |marker: &Marker| (!marker.is_blank()).then_some(0);
        let (between, end) = (has(&self.format.between), has(&self.format.end));
        // A marker that begins with the end marker leads to another trigger, which content looks for.
        let between =
            between.filter(|_| self.format.end.is_blank() || !self.format.end.begins(&self.format.between));
        self.place = Place::Tail(Tail { between, end, ..tail });
        if !self.can_go_on() {
            self.end_call();
            self.place = Place::Content;
        }
    }

    /// Whether any marker may follow the call.
    fn can_go_on(&self) -> bool {
        matches!(&self.place, Place::Tail(tail)
            if tail.in_list || tail.is_required || tail.between.is_some() || tail.end.is_some())
            || self.is_bare()
    }

    /// Calls without any markup: the next one may follow a semicolon.
    fn is_bare(&self) -> bool {
        self.format.begin.is_blank() && self.format.end.is_blank()
    }

    pub(super) fn take_tail(&mut self, mut tail: Tail, c: char) {
        let is_first = tail.held.trim().is_empty();
        tail.held.push(c);
        if is_first && self.take_list(&mut tail, c) {
            return;
        }
        let format = Arc::clone(&self.format);
        let between = step(&format.between, &mut tail.between, c);
        let end = step(&format.end, &mut tail.end, c);
        if end == Step::Done || between == Step::Done {
            if tail.is_required {
                self.raw.push_str(&tail.held);
                if !self.complete() {
                    return;
                }
            }
            self.end_call();
            if between == Step::Done {
                self.raw = tail.held;
                self.begin_call(false);
            }
            return;
        }
        if tail.between.is_some() || tail.end.is_some() || c.is_whitespace() {
            self.place = Place::Tail(tail);
            return;
        }
        // Markup that does not end as it should: the call stands where it was whole without it.
        if tail.is_required {
            self.raw.push_str(&tail.held);
            return self.fail(&tail.held);
        }
        self.end_call();
        self.space.clear();
        for c in tail.held.chars() {
            self.take(c);
        }
    }

    /// The list that a model put its calls in, or a semicolon between calls without markup; whether the character was
    /// part of it.
    fn take_list(&mut self, tail: &mut Tail, c: char) -> bool {
        match c {
            ']' if tail.in_list => {
                tail.held.clear();
                let tail = Tail { in_list: false, ..std::mem::take(tail) };
                self.begin_tail(tail);
            }
            ',' if tail.in_list => {
                self.end_call();
                self.raw.push_str(&tail.held);
                self.begin_call(false);
                if let Place::Body(Body::Json(json)) = &mut self.place {
                    json.in_list = true;
                }
            }
            ';' if self.is_bare() => {
                self.end_call();
                self.raw.push_str(&tail.held);
                self.begin_call(true);
            }
            _ => return false,
        }
        true
    }
}

/// Moves one marker of a tail.
fn step(marker: &Marker, position: &mut Option<usize>, c: char) -> Step {
    let Some(at) = position else { return Step::Failed };
    let step = marker.step(at, c);
    if step == Step::Failed {
        *position = None;
    }
    step
}
