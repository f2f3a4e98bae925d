//! Formats of strings as patterns of bounded length: stricter than the RFCs, so that whatever reads the value takes it.

/// The pattern of a format, without anchors; `None` for one that is an annotation only.
pub(super) fn pattern(format: &str) -> Option<&'static str> {
    Some(match format {
        "date" => DATE,
        "time" => concat!(
            r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?",
            r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
        ),
        "date-time" => DATE_TIME,
        "duration" => r"P([0-9]{1,4}D(T[0-9]{1,4}(H|M|S))?|[0-9]{1,4}(Y|M|W)|T[0-9]{1,4}(H|M|S))",
        "email" | "idn-email" => {
            r"[a-z0-9]{1,20}([._+-][a-z0-9]{1,14}){0,2}@[a-z0-9]{1,24}(-[a-z0-9]{1,24})?(\.[a-z]{2,12}){1,3}"
        }
        "hostname" | "idn-hostname" => r"[a-z0-9]{1,24}(-[a-z0-9]{1,24})?(\.[a-z]{2,12}){1,3}",
        "ipv4" => {
            r"((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
        }
        "ipv6" => r"([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}",
        "uuid" => r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "uri" | "url" | "uri-reference" | "iri" | "iri-reference" => {
            r"[a-z][a-z0-9+.-]{1,15}://[a-zA-Z0-9._~-]{1,64}(:[0-9]{1,4})?(/[a-zA-Z0-9._~-]{0,64}){0,8}(\?[a-zA-Z0-9=&._~-]{0,128})?"
        }
        _ => return None,
    })
}

/// The days that every year has.
const DATE: &str = concat!(
    r"[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)",
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
);
const DATE_TIME: &str = concat!(
    r"[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)",
    r"|02-(0[1-9]|1[0-9]|2[0-8]))",
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
);
