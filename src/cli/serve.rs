//! `serve`: the service in the foreground.

use std::time::Duration;

use super::start::parse_seconds;
use crate::process::serve::Options;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Started by `start`, which waits at the other end of standard output
    #[arg(long, hide = true)]
    daemon: bool,
    /// How long it may take until it answers
    #[arg(long, hide = true, requires = "daemon", value_parser = parse_seconds)]
    ready_within: Option<Duration>,
    /// Take over from the service that runs
    #[arg(long, hide = true, requires = "daemon")]
    take_over: bool,
}

impl From<Arguments> for Options {
    fn from(Arguments { daemon, ready_within, take_over }: Arguments) -> Self {
        Self { daemon, ready_within, take_over }
    }
}
