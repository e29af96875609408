//! webhookctl
#![allow(missing_docs, dead_code)]
mod clock; mod epay; mod money; mod named; mod order; mod secret; mod settlement; mod config; mod logging; mod store;
rust_i18n::i18n!("src/locales");
