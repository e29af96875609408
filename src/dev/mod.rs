//! For development and first steps, not for serving: a pretend gateway, and the seams for fuzzing and benches, which no release has.

#[cfg(feature = "benching")]
#[doc(hidden)]
pub mod benching;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod simulator;
