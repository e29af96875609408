//! How a starting service tells the command that started it what becomes of it: words through a pipe.
//!
//! The pipe is the service's standard output and standard error until it is ready, so that whatever else is said there, by
//! the loader or a panic, reaches the command too. Its end before a final word means that the service died.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::control::line;
use super::pidfd::is_readable;

/// How much of what is no word is kept, in bytes.
const NOISE_BYTES_MAX: usize = 4096;

/// One line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// It has begun; its pid.
    Begun(u32),
    /// It answers.
    Ready { pid: u32, listen: SocketAddr, replaced: Option<u32> },
    /// Another one is there, or was quicker.
    Running,
    /// It has failed: why, and the exit code.
    Failed { cause: String, exit: u8 },
}

impl Word {
    pub(super) fn say(&self, pipe: &mut impl Write) -> io::Result<()> {
        pipe.write_all(&line(self))
    }
}

/// The service's end.
pub(crate) struct Report {
    pipe: Option<File>,
}

impl Report {
    /// Nobody waits.
    pub(crate) fn to_nobody() -> Self {
        Self { pipe: None }
    }

    /// Whoever is at the other end of standard output waits.
    pub(crate) fn on_stdout() -> io::Result<Self> {
        let pipe = io::stdout().as_fd().try_clone_to_owned()?;
        let mut report = Self { pipe: Some(pipe.into()) };
        report.tell(&Word::Begun(std::process::id()))?;
        Ok(report)
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.pipe.is_some()
    }

    pub(crate) fn tell(&mut self, word: &Word) -> io::Result<()> {
        match &mut self.pipe {
            Some(pipe) => word.say(pipe),
            None => Ok(()),
        }
    }

    /// The last word. Standard output and error go nowhere from now on.
    pub(crate) fn finish(mut self, word: &Word) -> io::Result<()> {
        if !self.is_awaited() {
            return Ok(());
        }
        let told = self.tell(word);
        let nowhere = File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&nowhere)?;
        rustix::stdio::dup2_stderr(&nowhere)?;
        told
    }
}

/// What a command heard from the service that it started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A final word, after this noise.
    Word(Word, String),
    /// The service died, after this noise.
    Died(String),
    /// It did not come to a final word in time; its pid, where it got so far as to tell it.
    TimedOut(Option<u32>),
}

/// Waits for the service's final word.
pub(crate) fn listen(pipe: PipeReader, timeout: Duration) -> io::Result<Heard> {
    let deadline = Instant::now() + timeout;
    let pipe: OwnedFd = pipe.into();
    let mut reader = File::from(pipe.try_clone()?);
    let (mut received, mut noise, mut pid) = (Vec::new(), String::new(), None);
    let mut buffer = [0; 4096];
    loop {
        if !is_readable(&pipe, deadline.saturating_duration_since(Instant::now()))? {
            return Ok(Heard::TimedOut(pid));
        }
        let bytes = reader.read(&mut buffer)?;
        if bytes == 0 {
            noise += &String::from_utf8_lossy(&received);
            return Ok(Heard::Died(noise.trim().to_owned()));
        }
        received.extend_from_slice(&buffer[..bytes]);
        while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = received.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Word::Begun(begun)) => pid = Some(begun),
                Ok(word) => return Ok(Heard::Word(word, noise)),
                Err(_) => noise += &String::from_utf8_lossy(&line),
            }
        }
        // Whoever says that much says the same again and again.
        received.truncate(NOISE_BYTES_MAX);
        noise.truncate(noise.floor_char_boundary(NOISE_BYTES_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is heard when these pieces are said and the service ends, or goes on in silence.
    fn heard(pieces: &[&str], ends: bool) -> Heard {
        let (reader, mut writer) = io::pipe().unwrap();
        for piece in pieces {
            writer.write_all(piece.as_bytes()).unwrap();
        }
        if ends {
            drop(writer);
            listen(reader, Duration::from_secs(30)).unwrap()
        } else {
            listen(reader, Duration::ZERO).unwrap()
        }
    }

    #[test]
    fn the_final_word_counts_and_noise_is_kept_for_a_death() {
        let listen = "127.0.0.1:5002".parse().unwrap();
        let ready = Word::Ready { pid: 7, listen, replaced: None };
        let line = |word: &Word| serde_json::to_string(word).unwrap() + "\n";
        assert_eq!(
            heard(&["noise\n", &line(&Word::Begun(7)), &line(&ready)], true),
            Heard::Word(ready, "noise\n".into())
        );
        assert_eq!(
            heard(&[&line(&Word::Begun(7)), "thread panicked\n", "at x"], true),
            Heard::Died("thread panicked\nat x".into())
        );
        assert_eq!(heard(&[], true), Heard::Died(String::new()));
        let failed = Word::Failed { cause: "a\nb".into(), exit: 4 };
        assert_eq!(heard(&[&line(&failed)], true), Heard::Word(failed, String::new()));
    }

    #[test]
    fn silence_ends() {
        assert_eq!(heard(&[], false), Heard::TimedOut(None));
    }
}
