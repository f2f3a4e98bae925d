//! Stop strings in a stream of text.
//!
//! The match that *completes* first ends the text: generation would have stopped there. Of several that complete at the
//! same byte the longest counts, of equal ones the first in the list. This rule can be decided as soon as the byte is
//! there, so it does not depend on how the text is cut into deltas.
//!
//! Each stop string is a Knuth-Morris-Pratt automaton; its state is how much of the string the text ends with. The text
//! held back is the longest such state, so nothing is sent that may turn out to belong to a stop string, and nothing is
//! held back that cannot.

/// What a push made of the text so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutput {
    /// Text that is safe to send.
    pub text: String,
    /// The index of the stop string that ended the text, once it has.
    pub matched: Option<usize>,
}

/// The matcher of one sequence.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    automata: Vec<Automaton>,
    include_stop_str: bool,
    /// Text not sent: as many bytes as the furthest automaton has matched.
    held: String,
    matched: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`. An empty string matches nothing. With `include_stop_str` the text ends with the stop string
    /// that ended it, otherwise before it.
    pub fn new(stops: Vec<String>, include_stop_str: bool) -> Self {
        let automata = stops.into_iter().map(Automaton::new).collect();
        Self { automata, include_stop_str, held: String::new(), matched: None }
    }

    /// Takes the next delta. After a match everything further is dropped.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.matched.is_some() {
            return StopOutput { text: String::new(), matched: self.matched };
        }
        for (offset, byte) in text.bytes().enumerate() {
            if let Some(index) = self.advance(byte) {
                self.held.push_str(&text[..=offset]);
                self.matched = Some(index);
                return self.cut(index);
            }
        }
        StopOutput { text: self.pass_on(text), matched: None }
    }

    /// Takes a delta in which the text must not end: a stop string that ends in it is text like any other, one that begins in
    /// it may end in a later delta.
    pub fn push_without_end(&mut self, text: &str) -> String {
        if self.matched.is_some() {
            return String::new();
        }
        for byte in text.bytes() {
            self.advance(byte);
            self.automata.iter_mut().for_each(Automaton::forget_match);
        }
        self.pass_on(text)
    }

    /// What is safe to send once `text`, which the automata have seen, has come.
    fn pass_on(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let num_held = self.automata.iter().map(|automaton| automaton.state).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - num_held);
        std::mem::replace(&mut self.held, rest)
    }

    /// Ends the text: gives what was held back.
    pub fn finish(&mut self) -> String {
        for automaton in &mut self.automata {
            automaton.state = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// The index of the stop string that has ended the text.
    pub fn matched(&self) -> Option<usize> {
        self.matched
    }

    /// Moves every automaton; the longest stop string that ends with `byte`, if one does.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        let mut longest: Option<usize> = None;
        for index in 0..self.automata.len() {
            if self.automata[index].advance(byte) {
                let is_longer = |other: usize| self.automata[index].len() > self.automata[other].len();
                if longest.is_none_or(is_longer) {
                    longest = Some(index);
                }
            }
        }
        longest
    }

    /// `held` ends with stop string `index`: what is sent of it.
    fn cut(&mut self, index: usize) -> StopOutput {
        let mut text = std::mem::take(&mut self.held);
        if !self.include_stop_str {
            text.truncate(text.len() - self.automata[index].len());
        }
        StopOutput { text, matched: Some(index) }
    }
}

/// One stop string.
#[derive(Debug, Clone)]
struct Automaton {
    pattern: Vec<u8>,
    /// `fallback[n]`: the longest proper prefix of the pattern that its first `n + 1` bytes end with.
    fallback: Vec<usize>,
    /// How many bytes of the pattern the text ends with.
    state: usize,
}

impl Automaton {
    fn new(pattern: String) -> Self {
        let pattern = pattern.into_bytes();
        let mut fallback = vec![0; pattern.len()];
        let mut state = 0;
        for end in 1..pattern.len() {
            while state > 0 && pattern[state] != pattern[end] {
                state = fallback[state - 1];
            }
            state += usize::from(pattern[state] == pattern[end]);
            fallback[end] = state;
        }
        Self { pattern, fallback, state: 0 }
    }

    fn len(&self) -> usize {
        self.pattern.len()
    }

    /// Takes one byte; whether the text now ends with the pattern.
    fn advance(&mut self, byte: u8) -> bool {
        if self.pattern.is_empty() {
            return false;
        }
        while self.state > 0 && self.pattern[self.state] != byte {
            self.state = self.fallback[self.state - 1];
        }
        self.state += usize::from(self.pattern[self.state] == byte);
        self.state == self.pattern.len()
    }

    /// Goes on behind a whole pattern as if it had been an ordinary text.
    fn forget_match(&mut self) {
        if self.state > 0 && self.state == self.pattern.len() {
            self.state = self.fallback[self.state - 1];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], include: bool, deltas: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect(), include);
        let mut texts: Vec<String> = deltas.iter().map(|delta| matcher.push(delta).text).collect();
        texts.push(matcher.finish());
        (texts, matcher.matched())
    }

    #[test]
    fn the_longest_prefix_of_a_stop_string_is_held_back() {
        let (texts, matched) = run(&["\n\nUser:"], false, &["Hi\n", "\n", "Us", "e", "d"]);
        assert_eq!(texts, ["Hi", "", "", "", "\n\nUsed", ""]);
        assert_eq!(matched, None);
    }

    #[test]
    fn the_match_that_completes_first_ends_the_text() {
        assert_eq!(
            run(&["abcd", "bc"], false, &["xab", "cd"]),
            (vec!["x".into(), "a".into(), "".into()], Some(1))
        );
        assert_eq!(run(&["c", "abc"], true, &["xabcd"]), (vec!["xabc".into(), "".into()], Some(1)));
    }

    #[test]
    fn a_text_that_ends_within_a_stop_string_is_given_whole() {
        assert_eq!(run(&["世界"], false, &["你好世"]), (vec!["你好".into(), "世".into()], None));
        assert_eq!(
            run(&["世界"], false, &["世世", "界"]),
            (vec!["世".into(), "".into(), "".into()], Some(0))
        );
    }

    #[test]
    fn a_stop_string_counts_only_if_it_ends_where_the_text_may() {
        let mut matcher = StopMatcher::new(vec!["abab".into(), "".into()], false);
        // Whole, and again from its middle: both pass, but for what may begin another one.
        assert_eq!(matcher.push_without_end("xabab"), "xab");
        assert_eq!(matcher.push_without_end("c"), "abc");
        // Begun before, ended after.
        assert_eq!(matcher.push_without_end("aba"), "");
        assert_eq!(matcher.push("b!"), StopOutput { text: "".into(), matched: Some(0) });
        assert_eq!(matcher.push_without_end("more"), "");
    }

    #[test]
    fn an_empty_stop_string_matches_nothing() {
        assert_eq!(run(&[""], false, &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], None));
        assert_eq!(run(&[], false, &["a"]), (vec!["a".into(), "".into()], None));
    }
}
