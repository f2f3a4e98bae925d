//! Tool calls in the text of an answer as it grows.
//!
//! The parser takes one character at a time and every decision depends on characters alone, so that any way of cutting
//! the text into deltas gives the same calls and the same content. What turns out to be no call becomes content, as it
//! was written.
//!
//! Text that may belong to a call's markup is held back; at the latest `finish` gives it.

mod tail;

use std::sync::Arc;

use super::call::{BodyStep, Call};
use super::format::{CallSyntax, NamedSyntax, ToolFormat};
use super::json_call::{JsonArguments, JsonCall, JsonKeys};
use super::marker::{Step, Until};
use super::python_call::PythonCall;
use super::tagged_call::TaggedCall;
use super::tool::ToolSet;
use tail::Tail;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolDelta {
    /// Text for the reader.
    Content(String),
    /// A call begins. Calls are numbered from 0.
    CallStart {
        /// Its number.
        index: usize,
        /// The function's name.
        name: String,
    },
    /// More of a call's arguments; put together they are a JSON object.
    Arguments {
        /// The call's number.
        index: usize,
        /// The next piece.
        fragment: String,
    },
}

/// When a call is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// As soon as its name is known. For text that follows a grammar.
    AtName,
    /// When it is whole and its arguments have been checked: text of a model that may err.
    WhenWhole,
}

/// The parser of one answer.
#[derive(Clone, Debug)]
pub struct ToolCallParser {
    format: Arc<ToolFormat>,
    tools: Arc<ToolSet>,
    announce: Announce,
    place: Place,
    /// White space behind the content so far: dropped if a call follows.
    space: String,
    /// The markup that may be about to come, or what has been read of the call.
    raw: String,
    call: Call,
    /// Bytes of the arguments that were given out; None before the call was announced.
    num_sent: Option<usize>,
    num_calls: usize,
    /// The text is calls and nothing else: what looks like the beginning of one is.
    has_only_calls: bool,
    ends_within_call: bool,
    ready: Vec<ToolDelta>,
}

#[derive(Clone, Debug)]
enum Place {
    /// Nothing but white space so far.
    Start,
    Content,
    /// Within what may be the markup that begins a call.
    Trigger {
        position: usize,
    },
    Body(Body),
    /// Behind a call, within what may be the markup that ends it or leads to the next.
    Tail(Tail),
}

#[derive(Clone, Debug)]
enum Body {
    Json(JsonCall),
    Named { name: Until, arguments: Option<JsonArguments> },
    Tagged(TaggedCall),
    Python(PythonCall),
}

impl ToolCallParser {
    /// A parser that has seen nothing.
    pub fn new(format: &Arc<ToolFormat>, tools: &Arc<ToolSet>, announce: Announce) -> Self {
        let format = match announce {
            Announce::AtName => Arc::new(format.exact()),
            Announce::WhenWhole => Arc::clone(format),
        };
        ToolCallParser {
            format,
            tools: Arc::clone(tools),
            announce,
            place: Place::Start,
            space: String::new(),
            raw: String::new(),
            call: Call::new(tools, false),
            num_sent: None,
            num_calls: 0,
            has_only_calls: false,
            ends_within_call: false,
            ready: Vec::new(),
        }
    }

    /// For text that a grammar holds to calls and nothing else.
    #[must_use]
    pub fn of_calls_only(self) -> Self {
        ToolCallParser { has_only_calls: true, ..self }
    }

    /// Takes the next text; what has become certain.
    pub fn push(&mut self, text: &str) -> Vec<ToolDelta> {
        for c in text.chars() {
            self.take(c);
        }
        self.send_arguments();
        std::mem::take(&mut self.ready)
    }

    /// Ends the text. `is_cut` says that the model was not done: what there is of a call is then given as it is.
    pub fn finish(&mut self, is_cut: bool) -> Vec<ToolDelta> {
        match std::mem::replace(&mut self.place, Place::Content) {
            Place::Start | Place::Content => {}
            Place::Trigger { .. } => self.give_up_at_end(),
            Place::Body(body) => self.finish_body(&body, is_cut),
            Place::Tail(tail) => {
                if tail.is_required {
                    self.complete();
                }
                // Half of an end marker is nobody's text.
                self.end_call();
            }
        }
        let space = std::mem::take(&mut self.space);
        if self.num_calls == 0 && !(self.announces_at_name() && self.has_only_calls) {
            self.content(&space);
        }
        std::mem::take(&mut self.ready)
    }

    /// Bytes of the text taken so far of which it is not certain yet what they are.
    pub fn num_bytes_held(&self) -> usize {
        let is_open = self.num_sent.is_none();
        self.space.len() + if is_open { self.raw.len() } else { 0 }
    }

    /// Calls announced so far.
    pub fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// Whether calls are announced before they are whole.
    pub fn announces_at_name(&self) -> bool {
        self.announce == Announce::AtName
    }

    /// Whether the text ended in the middle of the last call that was announced.
    pub fn ends_within_call(&self) -> bool {
        self.ends_within_call
    }

    fn take(&mut self, c: char) {
        // Taken out so that the steps below may borrow the rest; every step puts the next place in.
        match std::mem::replace(&mut self.place, Place::Content) {
            Place::Start if c.is_whitespace() => {
                self.place = Place::Start;
                self.space.push(c);
            }
            Place::Start => self.take_first(c),
            Place::Content => self.take_content(c),
            Place::Trigger { position } => self.take_trigger(position, c),
            Place::Body(body) => {
                self.raw.push(c);
                self.take_body(body, c);
            }
            Place::Tail(tail) => self.take_tail(tail, c),
        }
    }

    /// The first character that is no white space: formats without markup begin their calls here or never.
    fn take_first(&mut self, c: char) {
        let format = Arc::clone(&self.format);
        let begin = match format.begin.text().trim() {
            "" => '{',
            "[" => '[',
            _ => return self.take_content(c),
        };
        if c != begin {
            return self.take_content(c);
        }
        self.raw.push(c);
        self.begin_call(true);
        if format.begin.is_blank() {
            self.feed_body(c);
        }
    }

    fn take_content(&mut self, c: char) {
        let format = Arc::clone(&self.format);
        let mut position = 0;
        if c.is_whitespace() {
            self.space.push(c);
        } else if let Some(trigger) = &format.trigger
            && trigger.step(&mut position, c) != Step::Failed
        {
            self.raw.push(c);
            self.place = Place::Trigger { position };
        } else {
            let mut text = std::mem::take(&mut self.space);
            text.push(c);
            self.content(&text);
        }
    }

    fn take_trigger(&mut self, mut position: usize, c: char) {
        let format = Arc::clone(&self.format);
        let step = format.trigger.as_ref().map_or(Step::Failed, |trigger| trigger.step(&mut position, c));
        match step {
            Step::More => {
                self.raw.push(c);
                self.place = Place::Trigger { position };
            }
            Step::Done => {
                self.raw.push(c);
                self.begin_call(false);
            }
            Step::Failed => {
                // The first character was no markup; the others may begin some.
                let mut held = std::mem::take(&mut self.raw);
                held.push(c);
                let first = held.chars().next().expect("a trigger under way has taken a character");
                let mut text = std::mem::take(&mut self.space);
                text.push(first);
                self.content(&text);
                self.place = Place::Content;
                for c in held[first.len_utf8()..].chars() {
                    self.take(c);
                }
            }
        }
    }

    fn begin_call(&mut self, is_anchored: bool) {
        self.call = Call::new(&self.tools, is_anchored);
        self.num_sent = None;
        self.place = Place::Body(match &self.format.syntax {
            CallSyntax::Json { .. } => Body::Json(JsonCall::default()),
            CallSyntax::NamedJson { .. } => Body::Named { name: Until::default(), arguments: None },
            CallSyntax::Tagged(_) => Body::Tagged(TaggedCall::new()),
            CallSyntax::Pythonic => Body::Python(PythonCall::default()),
        });
    }

    fn feed_body(&mut self, c: char) {
        if let Place::Body(body) = std::mem::replace(&mut self.place, Place::Content) {
            self.take_body(body, c);
        }
    }

    /// `raw` ends with the character already.
    fn take_body(&mut self, mut body: Body, c: char) {
        let format = Arc::clone(&self.format);
        let call = &mut self.call;
        let step = match (&mut body, &format.syntax) {
            (Body::Json(json), CallSyntax::Json { name_key, arguments_key }) => {
                json.push(c, JsonKeys { name: name_key, arguments: arguments_key }, call)
            }
            (Body::Named { name, arguments }, CallSyntax::NamedJson(syntax)) => match arguments {
                Some(arguments) => arguments.push(c, call),
                None if name.push(&syntax.after_name, c) => {
                    *arguments = Some(JsonArguments::default());
                    take_name(&name.text, syntax, call)
                }
                None if name.text.len() > 512 => BodyStep::Failed,
                None => BodyStep::More,
            },
            (Body::Tagged(tagged), CallSyntax::Tagged(syntax)) => tagged.push(c, syntax, call),
            (Body::Python(python), _) => python.push(c, call),
            _ => BodyStep::Failed,
        };
        match step {
            BodyStep::More => self.place = Place::Body(body),
            BodyStep::Done => {
                let in_list = matches!(&body, Body::Json(json) if json.in_list);
                if self.complete() {
                    self.begin_tail(Tail { in_list, ..Tail::default() });
                }
            }
            BodyStep::DoneBefore(rest) => {
                // The tail takes these characters again.
                self.raw.truncate(self.raw.len() - rest.len());
                self.begin_tail(Tail { is_required: true, ..Tail::default() });
                for c in rest.chars() {
                    self.take(c);
                }
            }
            BodyStep::Failed => self.fail(c.encode_utf8(&mut [0; 4])),
        }
    }

    /// The call was whole at its last character: announces it; whether it was one.
    fn complete(&mut self) -> bool {
        if matches!(self.format.syntax, CallSyntax::Tagged(_)) {
            self.call.close_arguments();
        }
        if self.announce == Announce::WhenWhole && !self.call.is_valid() {
            self.fail("");
            return false;
        }
        self.announce_call();
        true
    }

    fn announce_call(&mut self) {
        if self.num_sent.is_none()
            && let Some(name) = self.call.name.clone()
        {
            // White space between content and call, or between calls, is markup.
            self.space.clear();
            self.ready.push(ToolDelta::CallStart { index: self.num_calls, name });
            self.num_calls += 1;
            self.num_sent = Some(0);
        }
        self.send_arguments();
    }

    /// Gives out the arguments that are there and not given out.
    fn send_arguments(&mut self) {
        if self.announce == Announce::AtName && self.num_sent.is_none() && self.call.name.is_some() {
            let is_in_call = matches!(self.place, Place::Body(_) | Place::Tail(_));
            if is_in_call && !self.raw.is_empty() {
                return self.announce_call();
            }
        }
        let Some(num_sent) = &mut self.num_sent else { return };
        if *num_sent < self.call.arguments.len() {
            let fragment = self.call.arguments[*num_sent..].to_owned();
            *num_sent = self.call.arguments.len();
            self.ready.push(ToolDelta::Arguments { index: self.num_calls - 1, fragment });
        }
    }

    /// The call is none. If it was announced it ends as far as it came, and `rest`, which could not be read, is content.
    fn fail(&mut self, rest: &str) {
        self.place = Place::Content;
        if self.announce == Announce::AtName && self.call.name.is_some() {
            self.announce_call();
            self.end_call();
            self.content(rest);
        } else {
            self.give_up();
        }
    }

    /// What was read of a call is content.
    fn give_up(&mut self) {
        let mut text = std::mem::take(&mut self.space);
        text.push_str(&std::mem::take(&mut self.raw));
        self.call = Call::new(&self.tools, false);
        self.num_sent = None;
        self.content(&text);
    }

    /// The call has been given out completely.
    fn end_call(&mut self) {
        self.raw.clear();
        self.call = Call::new(&self.tools, false);
        self.num_sent = None;
    }

    fn finish_body(&mut self, body: &Body, is_cut: bool) {
        let is_between = matches!(body, Body::Tagged(tagged) if tagged.is_between_arguments());
        let is_announced = self.announces_at_name() && self.call.name.is_some();
        if is_between && !is_cut && self.call.name.is_some() {
            if self.complete() {
                self.end_call();
            }
        } else if is_announced || (is_cut && self.call.name.is_some()) {
            self.announce_call();
            self.end_call();
            self.ends_within_call = true;
        } else {
            self.give_up_at_end();
        }
    }

    /// The text ended before it was certain that a call would come. Where a grammar led to it and only a call can have been
    /// meant, half its markup is nobody's text.
    fn give_up_at_end(&mut self) {
        let is_markup = self.announces_at_name() && (self.has_only_calls || self.num_calls > 0);
        if is_markup {
            self.space.clear();
            self.end_call();
        } else {
            self.give_up();
        }
    }

    fn content(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.ready.last_mut() {
            Some(ToolDelta::Content(content)) => content.push_str(text),
            _ => self.ready.push(ToolDelta::Content(text.to_owned())),
        }
    }
}

/// The name before arguments that stand alone, without the id behind it.
fn take_name(text: &str, syntax: &NamedSyntax, call: &mut Call) -> BodyStep {
    let id = syntax.id.as_ref().and_then(|(before_id, _)| text.split_once(before_id.as_str()));
    let name = id.map_or(text, |(name, _)| name);
    if call.set_name(name.trim()) { BodyStep::More } else { BodyStep::Failed }
}
