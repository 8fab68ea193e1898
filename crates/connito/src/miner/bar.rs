//! How a transfer goes, for a person: a bar on a terminal, else a line now and then. On standard error: what a
//! program reads stays clean.

use std::{
    io::IsTerminal as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client::{Event, Progress};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use tokio::time::Instant;

/// Time between two lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Whoever shows it here.
pub(super) fn shown() -> Arc<dyn Progress> {
    if std::io::stderr().is_terminal() { Arc::new(Bar::new()) } else { Arc::new(Lines::default()) }
}

struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::no_length();
        let form = "{bar:32.cyan/black} {bytes:>10} of {total_bytes}  {bytes_per_sec:>12}  {eta:>4} left  {msg}";
        if let Ok(form) = ProgressStyle::with_template(form) {
            bar.set_style(form.progress_chars("━╸─"));
        }
        Self(bar)
    }
}

impl Progress for Bar {
    fn on(&self, event: Event<'_>) {
        let bar = &self.0;
        match event {
            Event::From { offset, total } => {
                bar.set_length(total);
                bar.set_position(offset);
                // What was here before says nothing of the rate.
                bar.reset_eta();
                bar.set_message(if offset > 0 {
                    format!("resumed from {}", HumanBytes(offset))
                } else {
                    String::new()
                });
            }
            Event::At(bytes) => bar.set_position(bytes),
            Event::Sent => bar.set_message("all is sent, the gateway looks at it"),
            Event::Again { why, pause } => bar.println(again(why, pause)),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[derive(Default)]
struct Lines(Mutex<Option<Since>>);

/// Where the current try stands.
struct Since {
    offset: u64,
    total: u64,
    began: Instant,
    next: Instant,
}

impl Progress for Lines {
    fn on(&self, event: Event<'_>) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match event {
            Event::From { offset, total } => {
                match offset {
                    0 => eprintln!("{} to go", HumanBytes(total)),
                    _ => eprintln!("{} of {} are there", HumanBytes(offset), HumanBytes(total)),
                }
                *since = Some(Since { offset, total, began: now, next: now + BETWEEN_LINES });
            }
            Event::At(bytes) => {
                if let Some(since) = since.as_mut().filter(|since| now >= since.next) {
                    since.next = now + BETWEEN_LINES;
                    eprintln!("{}", line(since, bytes, now));
                }
            }
            Event::Sent => eprintln!("all is sent, the gateway looks at it"),
            Event::Again { why, pause } => eprintln!("{}", again(why, pause)),
        }
    }
}

fn line(since: &Since, bytes: u64, now: Instant) -> String {
    let seconds = (now - since.began).as_secs_f64().max(0.001);
    let rate = bytes.saturating_sub(since.offset) as f64 / seconds;
    format!("{} of {}, {}/s", HumanBytes(bytes), HumanBytes(since.total), HumanBytes(rate as u64))
}

fn again(why: &client::ClientError, pause: Duration) -> String {
    format!("{why}; trying again in {:.1} s", pause.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_tells_bytes_and_the_rate_of_what_moved() {
        let began = Instant::now();
        let since = Since { offset: 1 << 20, total: 8 << 20, began, next: began };
        let line = line(&since, 5 << 20, began + Duration::from_secs(2));
        assert_eq!(line, "5.00 MiB of 8.00 MiB, 2.00 MiB/s");
    }
}
