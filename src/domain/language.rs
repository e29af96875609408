//! The languages that there are texts in.

use std::fmt;

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

impl<T: Localized + ?Sized> Localized for &T {
    fn text(&self, language: Language) -> String {
        (**self).text(language)
    }
}

/// A text of the catalogues in a language: `text!(language, "group.key", placeholder = value)`. A value that is [`Localized`] is
/// put into the same language.
macro_rules! text {
    ($language:expr, $key:expr $(, $placeholder:ident = $value:expr)* $(,)?) => {{
        #[allow(unused_imports, reason = "not every text has a placeholder")]
        use $crate::domain::language::PlainValue as _;
        let language: $crate::domain::language::Language = $language;
        ::rust_i18n::t!(
            $key,
            locale = language.name()
            $(, $placeholder = $crate::domain::language::Value(&($value)).shown(language))*
        )
    }};
}
pub(crate) use text;

/// A value for a placeholder. The inherent method comes before the one of [`PlainValue`], so a [`Localized`] value never shows its
/// `Display`, which is for programmers.
pub(crate) struct Value<T>(pub(crate) T);

impl<T: Localized + ?Sized> Value<&T> {
    pub(crate) fn shown(&self, language: Language) -> String {
        self.0.text(language)
    }
}

/// A value that reads the same in every language: a number, a path, a peer's words.
pub(crate) trait PlainValue {
    type Shown: fmt::Display;

    fn shown(&self, language: Language) -> Self::Shown;
}

impl<'a, T: fmt::Display + ?Sized> PlainValue for Value<&'a T> {
    type Shown = &'a T;

    fn shown(&self, _: Language) -> &'a T {
        self.0
    }
}

/// A text of the catalogues whose language is chosen later, by whoever shows it. Its `Display` is the key's last part and the
/// English text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalizedText {
    key: &'static str,
    /// In the order of [`Language::ALL`].
    texts: Vec<String>,
}

impl LocalizedText {
    /// The text of `key`, as `text_in` gives it in each language.
    pub(crate) fn new(key: &'static str, text_in: impl Fn(Language) -> String) -> Self {
        Self { key, texts: Language::ALL.iter().map(|&language| text_in(language)).collect() }
    }

    /// A peer's words, which read the same in every language.
    pub(crate) fn verbatim(code: &'static str, words: &str) -> Self {
        Self::new(code, |_| words.to_owned())
    }

    /// The texts of a value that is [`Localized`] itself, under a code of their own.
    pub(crate) fn of(code: &'static str, value: &impl Localized) -> Self {
        Self::new(code, |language| value.text(language))
    }
}

impl Localized for LocalizedText {
    fn text(&self, language: Language) -> String {
        self.texts[language as usize].clone()
    }
}

impl fmt::Display for LocalizedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.key.rsplit('.').next().unwrap_or_default();
        write!(f, "{code}: {}", self.texts[Language::English as usize])
    }
}

/// A [`LocalizedText`]: `localized!("group.key", placeholder = value)`.
macro_rules! localized {
    ($key:expr $(, $placeholder:ident = $value:expr)* $(,)?) => {
        $crate::domain::language::LocalizedText::new($key, |language| {
            $crate::domain::language::text!(language, $key $(, $placeholder = $value)*).into_owned()
        })
    };
}
pub(crate) use localized;

impl Language {
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

    struct Both;

    impl Localized for Both {
        fn text(&self, language: Language) -> String {
            format!("<{language}>")
        }
    }

    impl fmt::Display for Both {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("for programmers")
        }
    }

    #[test]
    fn a_localized_value_is_in_the_language_of_its_text() {
        for &language in Language::ALL {
            let told = text!(language, "cli.no_such_order", order = Both);
            assert!(told.contains(&format!("<{language}>")), "{told}");
            let borrowed = text!(language, "cli.no_such_order", order = &&Both);
            assert_eq!(told, borrowed);
            assert!(text!(language, "cli.no_such_order", order = 'x').contains('x'));
        }
    }

    #[test]
    fn the_language_of_a_text_can_be_chosen_later() {
        let later = localized!("cli.no_such_order", order = Both);
        for &language in Language::ALL {
            assert_eq!(later.text(language), text!(language, "cli.no_such_order", order = Both));
        }
        assert_eq!(later.to_string(), format!("no_such_order: {}", later.text(Language::English)));
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
