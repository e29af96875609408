//! A schema that is not the one that this program makes, object by object.

use crate::domain::language::{Language, Localized, text};

/// How much of a name is shown: a foreign one can be of any length.
const NAME_CHARS_SHOWN: usize = 100;

/// How an object of a database's schema is not as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deviation {
    /// This program makes no such object.
    Foreign,
    /// The object is not there.
    Missing,
    /// The object is defined in another way, or shares its content with another one.
    Changed,
}

/// An object of a database's schema that is not as this program makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SchemaDifference {
    /// How it differs.
    pub deviation: Deviation,
    /// `table`, `index`, `trigger` or `view`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The SQL that removes it, if that is all there is to do.
    pub removal: Option<String>,
}

impl Localized for SchemaDifference {
    fn text(&self, language: Language) -> String {
        let shown = |text: &str| text.chars().take(NAME_CHARS_SHOWN).collect::<String>();
        let (kind, name) = (shown(&self.kind), shown(&self.name));
        match self.deviation {
            Deviation::Foreign => text!(language, "store.schema_foreign", kind = kind, name = name),
            Deviation::Missing => text!(language, "store.schema_missing", kind = kind, name = name),
            Deviation::Changed => text!(language, "store.schema_changed", kind = kind, name = name),
        }
        .into_owned()
    }
}
