//! What text may travel through a gateway: HTML entities that it may add, characters that we never send.

use crate::domain::settlement::Echo;

/// The length of the HTML entity at the start of `text`: `&`, 2 to 8 letters, `;`, or `&#`, digits, `;`.
fn leading_entity(text: &str) -> Option<usize> {
    let (name, _) = text.strip_prefix('&')?.split_once(';')?;
    let is_entity = match name.strip_prefix('#') {
        Some(digits) => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()),
        None => (2..=8).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphabetic()),
    };
    is_entity.then_some(name.len() + 2)
}

/// The character of an entity that gateways are known to write.
fn meaning(entity: &str) -> Option<char> {
    match entity {
        "&amp;" => Some('&'),
        "&quot;" => Some('"'),
        "&lt;" => Some('<'),
        "&gt;" => Some('>'),
        "&apos;" => Some('\''),
        _ => char::from_u32(entity.strip_prefix("&#")?.strip_suffix(';')?.parse().ok()?),
    }
}

/// Whether `value` has an `&` that is not the start of an HTML entity.
///
/// Such a value can be cut out of the signing string in more than one way, because fields are joined with `&`. Entities
/// do no harm: a cut inside one would leave a key with a `;` or a `#`, and such keys are refused.
pub(super) fn has_bare_ampersand(value: &str) -> bool {
    value.match_indices('&').any(|(at, _)| leading_entity(&value[at..]).is_none())
}

/// Undoes one round of HTML escaping, as some gateways do to `name` and `param` before they send them back.
fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('&') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let entity = &rest[..leading_entity(rest).unwrap_or(1)];
        match meaning(entity) {
            Some(character) => plain.push(character),
            None => plain.push_str(entity),
        }
        rest = &rest[entity.len()..];
    }
    plain.push_str(rest);
    plain
}

/// Undoes PHP's `addslashes`, as far as it changes what we may have sent: a backslash before a quote or a backslash.
fn without_slashes(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        let escaped = characters.next_if(|next| character == '\\' && matches!(next, '\'' | '"' | '\\'));
        plain.push(escaped.unwrap_or(character));
    }
    plain
}

/// A text of ours that a gateway sent back: as it was, with HTML entities, with slashes, or with both.
pub(crate) fn echo(received: String) -> Echo {
    if !received.contains(['&', '\\']) {
        return Echo::new(received, []);
    }
    let unescaped = unescape(&received);
    let plain = without_slashes(&unescaped);
    Echo::new(received, [unescaped, plain])
}

/// The first character of `text` that must not stand in a `name` or `param` that we send.
///
/// Some give the signing string a second reading, see [`is_ambiguous`]. Quotes, `<`, `>` and backslashes come back escaped, and break the signature at gateways that are merchants of another one. Gateways
/// cut blanks off the ends, and write `?` for a character outside the basic plane.
pub(crate) fn forbidden_char(text: &str) -> Option<char> {
    let is_outer_blank = |c: &char| c.is_whitespace();
    let outer_blank = text.chars().next().filter(is_outer_blank).or(text.chars().next_back().filter(is_outer_blank));
    let is_forbidden = |c: char| is_ambiguous(c) || matches!(c, '\'' | '"' | '<' | '>' | '\\') || c > '\u{ffff}';
    text.chars().find(|&c| is_forbidden(c)).or(outer_blank)
}

/// Whether the character gives a signing string a second reading, at the gateway or on its way back.
pub(crate) fn is_ambiguous(c: char) -> bool {
    matches!(c, '&' | '=' | '+' | '%') || c.is_control()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_entity_excuses_an_ampersand() {
        for (value, bare) in [
            ("plain", false),
            ("a&amp;b&quot;c&lt;d&gt;e&#039;f", false),
            ("&amp;amp;", false),
            ("a&b", true),
            ("&", true),
            ("&amp", true),
            ("&AMP;", false),
            ("&am&amp;p;", true),
            ("&#39;&#34;&apos;", false),
            ("&nosuchon;", false),
            ("&a;", true),
            ("&toolongname;", true),
            ("&#;", true),
            ("&#x27;", true),
            ("&amp;&", true),
        ] {
            assert_eq!(has_bare_ampersand(value), bare, "{value:?}");
        }
    }

    #[test]
    fn unescapes_one_round() {
        assert_eq!(unescape("a&amp;amp;&lt;&#039;&x"), "a&amp;<'&x");
        assert_eq!(unescape("&apos;&#34;&nbsp;&#99999999;"), "'\"&nbsp;&#99999999;");
    }

    #[test]
    fn a_text_is_known_again_however_a_gateway_escaped_it() {
        for (sent, received) in [
            ("plain", "plain"),
            ("it's", r"it\&#039;s"),
            ("it's", "it&#39;s"),
            ("it's", "it&apos;s"),
            ("it's", r"it\'s"),
            ("\"q\"", r"\&quot;q\&quot;"),
            (r"a\b", r"a\\b"),
            (r"a\b", r"a\b"),
            ("a<b", "a&lt;b"),
        ] {
            assert!(echo(received.to_owned()).may_be(sent), "{sent} {received}");
        }
        for (sent, received) in [
            ("a", "b"),
            ("a<b", "a&amp;lt;b"),
            ("it's", "its"),
            ("a", ""),
            ("a", r"\"),
            ("a", r"a\"),
            ("ab", r"a\b"),
            ("🙂", "?"),
            (r"a\b", "ab"),
        ] {
            assert!(!echo(received.to_owned()).may_be(sent), "{sent} {received}");
        }
    }

    #[test]
    fn names_the_first_forbidden_character() {
        assert_eq!(forbidden_char("VIP白银 (1)"), None);
        for c in ['&', '=', '+', '%', '\n', '\u{7f}', '\u{85}', '\'', '"', '<', '>', '\\', '🙂'] {
            assert_eq!(forbidden_char(&format!("VIP{c}!")), Some(c));
        }
        assert_eq!(forbidden_char(" VIP"), Some(' '));
        assert_eq!(forbidden_char("VIP\u{3000}"), Some('\u{3000}'));
        assert_eq!(forbidden_char("VIP 1"), None);
    }
}
