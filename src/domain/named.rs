//! Enums whose variants have one fixed name each, wherever they are written down.

/// Declares an enum that has one fixed name per variant in the database, in JSON and in logs.
macro_rules! named_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(unreachable_pub, reason = "some are this crate's own")]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        #[allow(unreachable_pub, reason = "some are this crate's own")]
        #[allow(dead_code, reason = "not every enum needs each of them")]
        impl $name {
            /// Every variant, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The one name that it has everywhere: database, JSON, logs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// Every name, for a person to choose from.
            pub fn known() -> String {
                Self::ALL.iter().map(|variant| variant.name()).collect::<Vec<_>>().join(", ")
            }

            /// The variant of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|variant| variant.name() == name)
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}
pub(crate) use named_enum;
