//! The languages that there are texts in.

use crate::domain::named::named_enum;

named_enum! {
    /// A language that there are texts in.
    Language {
        /// Chinese.
        Chinese = "zh",
        /// English.
        English = "en",
    }
}

/// A value that people read in their language: an error, a finding. Its `Display`, if it has one, is short English for programmers.
pub(crate) trait Localized {
    /// The text for people.
    fn text(&self, language: Language) -> String;
}

/// A text of the catalogues in a language: `text!(language, "group.key", placeholder = value)`.
macro_rules! text {
    ($language:expr, $key:expr $(, $placeholder:ident = $value:expr)* $(,)?) => {
        ::rust_i18n::t!($key, locale = $language.name() $(, $placeholder = $value)*)
    };
}
pub(crate) use text;

impl Language {
    /// Makes this the language of all texts of this process: there is one for all services in it.
    pub(crate) fn activate(self) {
        rust_i18n::set_locale(self.name());
    }

    /// The language of a tag such as Telegram's `language_code` or one from `Accept-Language`: `zh-hans`, `en_GB`; `None` for
    /// languages that there are no texts in.
    pub fn of_tag(tag: &str) -> Option<Self> {
        let primary = tag.split(['-', '_']).next().unwrap_or_default();
        Self::ALL.iter().copied().find(|language| primary.eq_ignore_ascii_case(language.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_in_the_language_that_is_asked_for() {
        let order = |language: Language| text!(language, "cli.no_such_order", order = "ORDER1").into_owned();
        assert_ne!(order(Language::Chinese), order(Language::English));
        assert!(order(Language::Chinese).contains("ORDER1"));
    }

    #[test]
    fn a_tag_is_known_by_its_first_part() {
        for (tag, language) in [
            ("zh", Some(Language::Chinese)),
            ("zh-hans", Some(Language::Chinese)),
            ("EN_gb", Some(Language::English)),
            ("en", Some(Language::English)),
            ("eng", None),
            ("de", None),
            ("", None),
        ] {
            assert_eq!(Language::of_tag(tag), language, "{tag:?}");
        }
    }
}
