//! A piece of markup around tool calls, matched one character at a time. Models write white space with less care than the
//! rest: a marker is found with or without its own, and with some before it and between two tags.

/// What one more character makes of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The marker may still come.
    More,
    /// The character was the marker's last.
    Done,
    /// It is no such marker.
    Failed,
}

/// A marker as the template writes it, and without its white space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    text: String,
    skeleton: Vec<char>,
    /// For each character of the skeleton, whether white space may stand before it.
    may_be_spaced: Vec<bool>,
    /// White space is part of the skeleton.
    is_exact: bool,
}

impl Marker {
    pub(super) fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        let (mut skeleton, mut may_be_spaced): (Vec<char>, Vec<bool>) = (Vec::new(), Vec::new());
        let mut is_spaced = true;
        for c in text.chars() {
            if c.is_whitespace() {
                is_spaced = true;
                continue;
            }
            let is_between_tags = matches!(skeleton.last(), Some('>' | ']')) && matches!(c, '<' | '[' | ']');
            may_be_spaced.push(is_spaced || is_between_tags);
            skeleton.push(c);
            is_spaced = false;
        }
        Marker { text, skeleton, may_be_spaced, is_exact: false }
    }

    /// A marker that is found only as it is written, white space included.
    pub(super) fn exact(text: &str) -> Self {
        let skeleton: Vec<char> = text.chars().collect();
        Marker { text: text.to_owned(), may_be_spaced: vec![false; skeleton.len()], skeleton, is_exact: true }
    }

    /// Whether white space counts.
    pub(super) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// As the template writes it.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it has nothing but white space.
    pub(super) fn is_blank(&self) -> bool {
        self.skeleton.is_empty()
    }

    /// Whether this marker is what another one begins with.
    pub(super) fn begins(&self, other: &Marker) -> bool {
        other.skeleton.starts_with(&self.skeleton)
    }

    /// Takes the next character of a match that has come to `position`.
    pub(super) fn step(&self, position: &mut usize, c: char) -> Step {
        if c.is_whitespace() && !self.is_exact {
            let may_be_spaced = self.may_be_spaced.get(*position) == Some(&true);
            return if may_be_spaced { Step::More } else { Step::Failed };
        }
        match self.skeleton.get(*position) {
            Some(expected) if *expected == c => {
                *position += 1;
                if *position == self.skeleton.len() { Step::Done } else { Step::More }
            }
            _ => Step::Failed,
        }
    }
}

/// Collects text up to a marker.
#[derive(Clone, Debug, Default)]
pub(super) struct Until {
    pub(super) text: String,
    position: usize,
    /// Where in the text the match that is under way began.
    start: usize,
}

impl Until {
    /// Takes the next character; whether the marker is complete. The marker's own text is then cut off.
    pub(super) fn push(&mut self, marker: &Marker, c: char) -> bool {
        if self.position > 0 && marker.step(&mut self.position, c) == Step::Failed {
            self.position = 0;
        } else if self.position > 0 {
            self.text.push(c);
            return self.cut_if_complete(marker);
        }
        if (marker.is_exact || !c.is_whitespace()) && marker.step(&mut self.position, c) != Step::Failed {
            self.start = self.text.len();
        }
        self.text.push(c);
        self.cut_if_complete(marker)
    }

    fn cut_if_complete(&mut self, marker: &Marker) -> bool {
        let is_complete = self.position > 0 && self.position == marker.skeleton.len();
        if is_complete {
            self.text.truncate(self.start);
        }
        is_complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(marker: &str, text: &str) -> Option<(String, usize)> {
        let (marker, mut until) = (Marker::new(marker), Until::default());
        let end = text.char_indices().find_map(|(at, c)| until.push(&marker, c).then_some(at + 1));
        end.map(|end| (until.text, end))
    }

    #[test]
    fn an_exact_marker_is_found_as_it_is_written() {
        let (marker, mut until) = (Marker::exact("\n</a>"), Until::default());
        let text = "x</a>\n\n</a>";
        let end = text.char_indices().find_map(|(at, c)| until.push(&marker, c).then_some(at + 1));
        assert_eq!((until.text.as_str(), end), ("x</a>\n", Some(text.len())));
    }

    #[test]
    fn white_space_decides_only_within_tags() {
        assert_eq!(until("</a>\n<b>", "x</a><b>y"), Some(("x".into(), 8)));
        assert_eq!(until("</a><b>", "x\n</a>\n\n<b>"), Some(("x\n".into(), 11)));
        assert_eq!(until("</arg>", "x< /arg></arg>"), Some(("x< /arg>".into(), 14)));
        assert_eq!(until("</arg>", "a<<</arg>"), Some(("a<<".into(), 9)));
        assert_eq!(until("</arg>", "</ar</arg"), None);
    }
}
