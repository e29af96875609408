//! The fields of a request's body, taken one by one: whatever is wrong with one is told by its name.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::problem::Problem;
use crate::domain::language::{LocalizedText, localized};

/// The fields of one JSON object. A field of `null` is one that is not there.
#[derive(Debug)]
pub(super) struct Fields {
    values: BTreeMap<String, Value>,
}

impl Fields {
    /// Reads a body that may have these fields and no others.
    pub(super) fn parse(body: &[u8], known: &[&str]) -> Result<Self, Problem> {
        let object: Object = serde_json::from_slice(body)
            .map_err(|error| Problem::bad_request("invalid_body", localized!("api.invalid_body", cause = error)))?;
        if let Some(field) = object.repeated {
            // Two readers could take different ones.
            let detail = localized!("api.repeated_field", field = shortened(&field));
            return Err(Problem::bad_request("repeated_field", detail));
        }
        if let Some(field) = object.values.keys().find(|field| !known.contains(&field.as_str())) {
            let detail = localized!("api.unknown_field", field = shortened(field), known = known.join(", "));
            return Err(Problem::bad_request("unknown_field", detail));
        }
        Ok(Self { values: object.values })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|value| !value.is_null())
    }

    /// A whole number within a range.
    pub(super) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Problem> {
        let expected = || localized!("api.expected_integer", min = range.start(), max = range.end());
        self.take(name, expected, |value| value.as_i64().filter(|number| range.contains(number)))
    }

    /// A text that `read` makes something of; `expected` is what it has to be.
    pub(super) fn text<T>(
        &mut self,
        name: &str,
        expected: impl Fn() -> LocalizedText,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        self.take(name, expected, |value| value.as_str().and_then(read))
    }

    /// A text of which something else tells what is wrong with it.
    pub(super) fn checked_text(
        &mut self,
        name: &str,
        faults: impl FnOnce(&str) -> Vec<LocalizedText>,
    ) -> Result<Option<String>, Problem> {
        let text = self.text(name, || localized!("api.expected_text"), |text| Some(text.to_owned()))?;
        match text.as_deref().map(faults).unwrap_or_default().first() {
            Some(fault) => Err(invalid(localized!("api.faulty_field", field = name, fault = fault))),
            None => Ok(text),
        }
    }

    fn take<T>(
        &mut self,
        name: &str,
        expected: impl Fn() -> LocalizedText,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        match self.values.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(&value) {
                Some(value) => Ok(Some(value)),
                None => Err(invalid(localized!("api.invalid_field", field = name, expected = expected()))),
            },
        }
    }
}

fn invalid(detail: LocalizedText) -> Problem {
    Problem::bad_request("invalid_field", detail)
}

/// A field that has to be there.
pub(super) fn required<T>(name: &str, value: Option<T>) -> Result<T, Problem> {
    value.ok_or_else(|| Problem::bad_request("missing_field", localized!("api.missing_field", field = name)))
}

/// A name that a bot made up, short enough to be repeated.
fn shortened(name: &str) -> String {
    name.chars().take(64).collect()
}

/// An object, and the first name that stands in it twice.
struct Object {
    values: BTreeMap<String, Value>,
    repeated: Option<String>,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;

        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object { values: BTreeMap::new(), repeated: None };
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if object.values.insert(name.clone(), value).is_some() {
                        object.repeated.get_or_insert(name);
                    }
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<(Option<i64>, Option<String>), Problem> {
        let mut fields = Fields::parse(body.as_bytes(), &["credits", "reason"])?;
        let expected = || LocalizedText::verbatim("expected", "anything");
        Ok((
            fields.integer("credits", 1..=9)?,
            fields.text("reason", expected, |text| (text != "bad").then(|| text.into()))?,
        ))
    }

    #[test]
    fn what_is_right_is_taken() {
        for (body, expected) in [
            (r#"{"credits":9,"reason":"x"}"#, (Some(9), Some("x".to_owned()))),
            (r#" { "reason" : null } "#, (None, None)),
            ("{}", (None, None)),
        ] {
            assert_eq!(read(body).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, code, word) in [
            ("", "invalid_body", "EOF"),
            ("[]", "invalid_body", "object"),
            ("{} {}", "invalid_body", "trailing"),
            ("{\"credits\":1", "invalid_body", "EOF"),
            (r#"{"kredits":1}"#, "unknown_field", "kredits"),
            (r#"{"credits":1,"credits":1}"#, "repeated_field", "credits"),
            (r#"{"credits":"1"}"#, "invalid_field", "credits"),
            (r#"{"credits":1.0}"#, "invalid_field", "credits"),
            (r#"{"credits":10}"#, "invalid_field", "9"),
            (r#"{"credits":99999999999999999999}"#, "invalid_field", "credits"),
            (r#"{"reason":1}"#, "invalid_field", "reason"),
            (r#"{"reason":"bad"}"#, "invalid_field", "anything"),
        ] {
            let problem = read(body).unwrap_err();
            assert_eq!(problem.code(), code, "{body}");
            assert!(problem.detail().contains(word), "{body}: {}", problem.detail());
        }
    }
}
