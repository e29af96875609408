//! Which of our languages a browser asks for.

use hyper::header::HeaderValue;

use crate::domain::language::Language;

/// How many languages of a header are looked at; people's lists are short.
const CHOICES_MAX: usize = 32;

/// The language that these `Accept-Language` headers like best among those that there are texts in; the first of equals.
/// `None` where they name none of them: `*` is no wish for one of two.
pub(super) fn preferred<'a>(headers: impl IntoIterator<Item = &'a HeaderValue>) -> Option<Language> {
    let choices = headers.into_iter().filter_map(|header| header.to_str().ok()).flat_map(|header| header.split(','));
    let mut best = None;
    for choice in choices.take(CHOICES_MAX) {
        let (tag, weight) = choice.split_once(';').map_or((choice, Some(MILLE)), |(tag, weight)| (tag, mille(weight)));
        let (Some(language), Some(weight)) = (Language::of_tag(tag.trim()), weight) else { continue };
        if weight > best.map_or(0, |(_, weight)| weight) {
            best = Some((language, weight));
        }
    }
    best.map(|(language, _)| language)
}

const MILLE: u16 = 1000;

/// The thousandths of a weight such as `q=0.75`; `None` for what is none.
fn mille(weight: &str) -> Option<u16> {
    let (name, value) = weight.split_once('=')?;
    let (whole, fraction) = value.trim().split_once('.').unwrap_or((value.trim(), ""));
    if !name.trim().eq_ignore_ascii_case("q") || fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let fraction: u16 = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "0" => Some(fraction),
        "1" if fraction == 0 => Some(MILLE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_that_is_liked_best_is_chosen() {
        use Language::{Chinese, English};
        for (headers, expected) in [
            (&["zh-CN,zh;q=0.9,en;q=0.8"][..], Some(Chinese)),
            (&["en-GB,en;q=0.9,zh-CN;q=0.8"], Some(English)),
            (&["de-DE, de;q=0.9, zh;q=0.7, en;q=0.5"], Some(Chinese)),
            (&["zh;q=0.2, en ; q=0.25"], Some(English)),
            (&["zh;Q=0.300,en;q=0.3"], Some(Chinese)),
            (&["zh;q=0,en;q=0.001"], Some(English)),
            (&["zh;q=0"], None),
            (&["en;q=0.5", "zh-Hant-TW"], Some(Chinese)),
            (&["de", "*;q=0.5"], None),
            (&["*"], None),
            (&[""], None),
            (&[], None),
            // What is no weight is no wish.
            (&["zh;q=2,en;q=0.1"], Some(English)),
            (&["zh;q=1.001"], None),
            (&["zh;q=-1"], None),
            (&["zh;q=+0.5"], None),
            (&["zh;q=0.5000"], None),
            (&["zh;q=.5"], None),
            (&["zh;q"], None),
            (&["zh;level=1"], None),
            (&[";;=,,;q=1,en;q=0."], None),
        ] {
            let headers: Vec<_> = headers.iter().map(|header| HeaderValue::from_static(header)).collect();
            assert_eq!(preferred(&headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_long_list_and_foreign_bytes_cost_nothing() {
        let long = HeaderValue::from_str(&format!("{}zh", "de,".repeat(CHOICES_MAX))).unwrap();
        assert_eq!(preferred([&long]), None);
        let foreign = HeaderValue::from_bytes(b"zh\xff").unwrap();
        assert_eq!(preferred([&foreign]), None);
    }
}
