//! The refusals that the HTTP machinery makes by itself, before any route is asked: a bare status line and no body. Here they
//! get what every other error of the API has.

use crate::error::ApiError;
use crate::exchange::{REQUEST_ID, random_id};

/// What the machinery says when it cannot make sense of a request's head, as an answer with an id and an error body. `None`
/// for anything else.
pub(crate) fn in_our_words(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = std::str::from_utf8(bytes).ok()?.strip_suffix("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next()?;
    let status = status_line.strip_prefix("HTTP/1.1 ")?.split(' ').next()?;
    let is_bodiless = lines.any(|line| line.eq_ignore_ascii_case("content-length: 0"));
    if !is_bodiless || head.contains("\r\n\r\n") {
        return None;
    }
    let error = match status {
        "400" => ApiError::MalformedRequest("the request is not HTTP/1.1"),
        "414" => ApiError::UriTooLong,
        "431" => ApiError::HeadTooLarge,
        _ => return None,
    };
    let (id, body) = (random_id(), error.to_json());
    tracing::info!(request_id = id, status, "a request was refused before its head was complete");
    let answer = format!(
        "{status_line}\r\ncontent-type: application/json\r\n{REQUEST_ID}: {id}\r\nx-content-type-options: nosniff\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    Some(answer.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_refusal_is_replaced() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let ours = String::from_utf8(in_our_words(bare).unwrap()).unwrap();
        assert!(ours.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{ours}");
        assert!(ours.contains("\r\nx-request-id: "), "{ours}");
        let (head, body) = ours.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{ours}");
        assert!(body.contains(r#""code":"head_too_large""#), "{ours}");
        for other in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            b"HTTP/1.1 400 Bad Request\r\n",
            b"data: HTTP/1.1 400\r\n\r\n",
        ] {
            assert_eq!(in_our_words(other), None);
        }
    }
}
