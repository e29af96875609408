//! The configuration in force, which a reload may replace.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::Config;

/// Shared by all who serve requests: each look sees the whole of one configuration.
#[derive(Clone)]
pub(crate) struct Current(Arc<ArcSwap<Config>>);

impl Current {
    pub(crate) fn new(config: Config) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }

    /// What is in force now. Not to be kept across an await.
    pub(crate) fn load(&self) -> Guard<Arc<Config>> {
        self.0.load()
    }

    /// Puts another configuration in force, but for what was settled when the service started; the keys of that, where they
    /// are different.
    pub(crate) fn replace(&self, mut new: Config) -> Vec<&'static str> {
        let old = self.load();
        let mut waiting = Vec::new();
        keep(&mut waiting, "listen", &old.listen, &mut new.listen);
        keep(&mut waiting, "database.url", &old.database.url, &mut new.database.url);
        keep(&mut waiting, "log.console", &old.log.console, &mut new.log.console);
        keep(&mut waiting, "service.pid_file", &old.service.pid_file, &mut new.service.pid_file);
        // Where the local API listens was settled as well; its token can change, and it cannot come and go.
        match (&old.api, &mut new.api) {
            (Some(old), Some(new)) => keep(&mut waiting, "api.listen", &old.listen, &mut new.listen),
            (None, None) => {}
            (old, new) => {
                new.clone_from(old);
                waiting.push("api.listen");
            }
        }
        self.0.store(Arc::new(new));
        waiting
    }
}

fn keep<T: PartialEq + Clone>(waiting: &mut Vec<&'static str>, key: &'static str, old: &T, new: &mut T) {
    if new != old {
        new.clone_from(old);
        waiting.push(key);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_needs_a_restart_stays_and_is_named() {
        let config = |text: &str| Config::from_toml(text, Path::new("/x")).unwrap();
        let current = Current::new(config(""));
        let waiting = current.replace(config(
            "listen = \"127.0.0.1:1\"\n[database]\nurl = \"sqlite:y\"\n[log]\nconsole = false\nlevel = \"debug\"\n\
             [service]\npid_file = \"p\"\nstop_timeout_s = 7",
        ));
        assert_eq!(waiting, ["listen", "database.url", "log.console", "service.pid_file"]);
        let now = current.load();
        assert_eq!(now.listen.to_string(), "0.0.0.0:5002");
        assert_eq!(now.service.pid_file, Path::new("/x/data/webhookctl.pid"));
        assert_eq!((now.service.stop_timeout_s, now.log.level), (7, super::super::LogLevel::Debug));
        assert_eq!(current.replace(config("")), Vec::<&str>::new());
    }
}
