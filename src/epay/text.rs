//! What text may travel through a gateway: HTML entities that it may add, characters that we never send.

/// The entities that PHP's `htmlspecialchars` writes, and what they stand for.
const ENTITIES: [(&str, char); 5] = [("&amp;", '&'), ("&quot;", '"'), ("&lt;", '<'), ("&gt;", '>'), ("&#039;", '\'')];

/// The entity at the start of `text`, if there is one, and what follows it.
fn leading_entity(text: &str) -> Option<(char, &str)> {
    ENTITIES.iter().find_map(|&(entity, meaning)| Some((meaning, text.strip_prefix(entity)?)))
}

/// Whether `value` has an `&` that is not the start of one of the five entities.
///
/// Such a value can be cut out of the signing string in more than one way, because fields are joined with `&`. The entities
/// do no harm: a cut inside one would leave a key that starts with, say, `amp;`, and such keys are refused.
pub(super) fn has_bare_ampersand(value: &str) -> bool {
    value.match_indices('&').any(|(at, _)| leading_entity(&value[at..]).is_none())
}

/// Undoes one round of HTML escaping, as some gateways do to `name` and `param` before they send them back.
pub(crate) fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('&') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some((meaning, after)) = leading_entity(rest) {
            plain.push(meaning);
            rest = after;
        } else {
            plain.push('&');
            rest = &rest[1..];
        }
    }
    plain.push_str(rest);
    plain
}

/// The first character of `text` that must not stand in a `name` or `param` that we send.
///
/// `&`, `=`, `+`, `%` and control characters give the signing string a second reading at the gateway or on its way back.
pub(crate) fn forbidden_char(text: &str) -> Option<char> {
    text.chars().find(|&c| matches!(c, '&' | '=' | '+' | '%') || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_five_entities_excuse_an_ampersand() {
        for (value, bare) in [
            ("plain", false),
            ("a&amp;b&quot;c&lt;d&gt;e&#039;f", false),
            ("&amp;amp;", false),
            ("a&b", true),
            ("&", true),
            ("&amp", true),
            ("&AMP;", true),
            ("&am&amp;p;", true),
            ("&#39;", true),
            ("&amp;&", true),
        ] {
            assert_eq!(has_bare_ampersand(value), bare, "{value:?}");
        }
    }

    #[test]
    fn unescapes_one_round() {
        assert_eq!(unescape("a&amp;amp;&lt;&#039;&x"), "a&amp;<'&x");
    }

    #[test]
    fn names_the_first_forbidden_character() {
        assert_eq!(forbidden_char("VIP白银 (1)"), None);
        for c in ['&', '=', '+', '%', '\n', '\u{7f}', '\u{85}'] {
            assert_eq!(forbidden_char(&format!("VIP{c}")), Some(c));
        }
    }
}
