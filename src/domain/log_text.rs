//! The language of the log. The `log` crate's logger is the process's, so the language is, too; it stands here because whatever logs
//! uses it, also below `logging`, which sets it.

use std::sync::atomic::{AtomicU8, Ordering};

use super::language::Language;

/// The place in [`Language::ALL`].
static LANGUAGE: AtomicU8 = AtomicU8::new(Language::English as u8);

/// The language that records are in: the one that logging was started with, or that a reload has changed it to.
pub(crate) fn language() -> Language {
    Language::ALL[usize::from(LANGUAGE.load(Ordering::Relaxed))]
}

/// For `logging` alone.
pub(crate) fn set_language(language: Language) {
    LANGUAGE.store(language as u8, Ordering::Relaxed);
}

/// A text of the catalogues in the language of the log: `log_text!("log.key", placeholder = value)`.
macro_rules! log_text {
    ($($text:tt)*) => {
        $crate::domain::language::text!($crate::domain::log_text::language(), $($text)*)
    };
}
pub(crate) use log_text;
