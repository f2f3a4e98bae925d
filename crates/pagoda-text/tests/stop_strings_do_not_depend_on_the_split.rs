//! A stream with stop strings gives the text that cutting the whole text would give, whatever its split into deltas.

mod rng;

use pagoda_text::StopMatcher;
use rng::Rng;

/// The definition, on the whole text: the stop string that completes first, of those the longest, of those the first.
fn truncated(text: &str, stops: &[String], include_stop_str: bool) -> (String, Option<usize>) {
    let found = stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()).filter_map(|(index, stop)| {
        let start = text.find(stop.as_str())?;
        Some((start + stop.len(), start, index))
    });
    match found.min() {
        Some((end, start, index)) => {
            (text[..if include_stop_str { end } else { start }].to_owned(), Some(index))
        }
        None => (text.to_owned(), None),
    }
}

/// Few letters, so that stop strings overlap with themselves, each other and the text.
fn random_text(rng: &mut Rng, max_chars: usize) -> String {
    let letters: &[char] =
        if rng.below(2) == 0 { &['a', 'b'] } else { &['a', 'é', '世', '界', '👩', '\n'] };
    (0..rng.below(max_chars + 1)).map(|_| *rng.pick(letters)).collect()
}

/// `text` in pieces of one to four characters.
fn split<'a>(rng: &mut Rng, mut text: &'a str) -> Vec<&'a str> {
    let mut pieces = Vec::new();
    while !text.is_empty() {
        let num_chars = rng.below(5);
        let at = text.char_indices().nth(num_chars).map_or(text.len(), |(at, _)| at);
        let (piece, rest) = text.split_at(at);
        pieces.push(piece);
        text = rest;
    }
    pieces
}

/// The longest part at the end of `text` that a stop string may begin with.
fn longest_open_prefix(text: &str, stops: &[String]) -> usize {
    let starts = text.char_indices().map(|(start, _)| start);
    let open = starts.filter(|&start| stops.iter().any(|stop| stop.starts_with(&text[start..])));
    open.min().map_or(0, |start| text.len() - start)
}

#[test]
fn a_million_streams_end_where_the_whole_text_is_cut() {
    let mut rng = Rng(23);
    let mut num_matched = 0;
    for case in 0..1_000_000 {
        let stops: Vec<String> = (0..rng.below(5)).map(|_| random_text(&mut rng, 5)).collect();
        let text = random_text(&mut rng, 24);
        let include_stop_str = rng.below(2) == 0;
        let mut matcher = StopMatcher::new(stops.clone(), include_stop_str);
        let (mut streamed, mut seen) = (String::new(), String::new());
        for piece in split(&mut rng, &text) {
            let output = matcher.push(piece);
            seen += piece;
            streamed += &output.text;
            assert_eq!(output.matched, matcher.matched());
            if output.matched.is_none() {
                let held = seen.len() - streamed.len();
                assert_eq!(held, longest_open_prefix(&seen, &stops), "case {case}: {seen:?} with {stops:?}");
            }
        }
        streamed += &matcher.finish();
        let expected = truncated(&text, &stops, include_stop_str);
        assert_eq!((streamed, matcher.matched()), expected, "case {case}: {text:?} with {stops:?}");
        num_matched += usize::from(expected.1.is_some());
    }
    assert!((200_000..900_000).contains(&num_matched), "{num_matched} of the streams ended at a stop string");
}

#[test]
fn a_long_stop_string_costs_no_more_per_byte_than_a_short_one() {
    let cost = |stop_len: usize| {
        let mut matcher = StopMatcher::new(vec!["a".repeat(stop_len) + "b"], false);
        let delta = "a".repeat(16);
        let start = std::time::Instant::now();
        for _ in 0..20_000 {
            assert_eq!(matcher.push(&delta).matched, None);
        }
        start.elapsed()
    };
    let (short, long) = (cost(8), cost(8_000));
    println!("320 kB of deltas: {short:?} with a stop string of 9 bytes, {long:?} with one of 8,001");
    assert!(long < 200 * short + std::time::Duration::from_millis(200), "{short:?} against {long:?}");
}
