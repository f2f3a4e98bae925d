//! Reasoning and content in the text of an answer as it grows.
//!
//! Reasoning stands at the answer's start, or nowhere: tags further on are content. The white space around the tags belongs
//! to them. As with tool calls, every decision depends on characters alone, never on how the text is cut into deltas.

use super::ReasoningTags;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReasoningDelta {
    /// Part of the reasoning.
    Reasoning(String),
    /// Anything else.
    Content(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// White space, or what may be the opening tag.
    Start,
    /// Behind the opening tag: white space is dropped.
    Opened,
    Reasoning,
    /// Behind the closing tag: white space is dropped.
    Closed,
    Content,
}

/// The parser of one answer.
#[derive(Clone, Debug)]
pub struct ReasoningParser {
    tags: ReasoningTags,
    place: Place,
    /// White space that may belong to a tag.
    space: String,
    /// Behind it, what may be the beginning of a tag.
    tag: String,
    num_bytes_taken: usize,
    /// Bytes that belong to the reasoning and its tags.
    num_bytes_reasoning: usize,
    ready: Vec<ReasoningDelta>,
}

impl ReasoningParser {
    /// A parser that has seen nothing. `is_open` says that the prompt ended with the opening tag.
    pub fn new(tags: ReasoningTags, is_open: bool) -> Self {
        ReasoningParser {
            tags,
            place: if is_open { Place::Opened } else { Place::Start },
            space: String::new(),
            tag: String::new(),
            num_bytes_taken: 0,
            num_bytes_reasoning: 0,
            ready: Vec::new(),
        }
    }

    /// Takes the next text; what has become certain.
    pub fn push(&mut self, text: &str) -> Vec<ReasoningDelta> {
        for c in text.chars() {
            self.num_bytes_taken += c.len_utf8();
            self.take(c);
        }
        std::mem::take(&mut self.ready)
    }

    /// Ends the text; what was held back.
    pub fn finish(&mut self) -> Vec<ReasoningDelta> {
        match self.place {
            Place::Start => {
                let held = self.take_held();
                self.content(&held);
            }
            // White space at the end of reasoning that has no end belongs to nobody.
            Place::Opened | Place::Reasoning if !self.tag.is_empty() => {
                let held = self.take_held();
                self.reasoning(&held);
            }
            _ => {}
        }
        if self.is_reasoning() {
            self.num_bytes_reasoning = self.num_bytes_taken;
        }
        std::mem::take(&mut self.ready)
    }

    /// Whether the text so far ends within reasoning.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.place, Place::Opened | Place::Reasoning)
    }

    /// Bytes of the text so far that belong to the reasoning and its tags: they are its first ones.
    pub fn num_bytes_reasoning(&self) -> usize {
        if self.is_reasoning() { self.num_bytes_taken } else { self.num_bytes_reasoning }
    }

    /// Bytes of the text so far of which it is not certain yet what they are.
    pub fn num_bytes_held(&self) -> usize {
        self.space.len() + self.tag.len()
    }

    fn take(&mut self, c: char) {
        match self.place {
            Place::Content => self.content(c.encode_utf8(&mut [0; 4])),
            Place::Closed if c.is_whitespace() => {}
            Place::Closed => {
                self.place = Place::Content;
                self.content(c.encode_utf8(&mut [0; 4]));
            }
            Place::Start => self.take_start(c),
            Place::Opened | Place::Reasoning => self.take_reasoning(c),
        }
    }

    fn take_start(&mut self, c: char) {
        if self.tag.is_empty() && c.is_whitespace() {
            return self.space.push(c);
        }
        self.tag.push(c);
        if self.tag == self.tags.open {
            self.take_held();
            self.place = Place::Opened;
        } else if !self.tags.open.starts_with(&self.tag) {
            self.place = Place::Content;
            let held = self.take_held();
            self.content(&held);
        }
    }

    fn take_reasoning(&mut self, c: char) {
        if self.tag.is_empty() && c.is_whitespace() {
            return self.space.push(c);
        }
        self.tag.push(c);
        if self.tag == self.tags.close {
            self.take_held();
            self.place = Place::Closed;
            self.num_bytes_reasoning = self.num_bytes_taken;
        } else if !self.tags.close.starts_with(&self.tag) {
            // The first character is no part of a tag; the others may begin one.
            let tag = std::mem::take(&mut self.tag);
            let first_len = tag.chars().next().map_or(0, char::len_utf8);
            let mut text = std::mem::take(&mut self.space);
            if self.place == Place::Opened {
                text.clear();
            }
            text.push_str(&tag[..first_len]);
            self.place = Place::Reasoning;
            self.reasoning(&text);
            tag[first_len..].chars().for_each(|c| self.take_reasoning(c));
        }
    }

    fn take_held(&mut self) -> String {
        let mut held = std::mem::take(&mut self.space);
        held.push_str(&std::mem::take(&mut self.tag));
        held
    }

    fn reasoning(&mut self, text: &str) {
        match self.ready.last_mut() {
            _ if text.is_empty() => {}
            Some(ReasoningDelta::Reasoning(last)) => last.push_str(text),
            _ => self.ready.push(ReasoningDelta::Reasoning(text.to_owned())),
        }
    }

    fn content(&mut self, text: &str) {
        match self.ready.last_mut() {
            _ if text.is_empty() => {}
            Some(ReasoningDelta::Content(last)) => last.push_str(text),
            _ => self.ready.push(ReasoningDelta::Content(text.to_owned())),
        }
    }
}
