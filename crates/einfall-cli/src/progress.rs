//! How far long work is, on standard error: a bar on a terminal, elsewhere a plain line every few seconds.
//!
//! In: the number of steps, a message where something begins, and a count of what is done. Out: text for people only;
//! nothing of it is meant for programs. Who measures times should know that each message costs some microseconds.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Least time between two plain lines.
const EVERY: Duration = Duration::from_secs(2);

/// Work of a known number of steps.
pub struct Progress {
    clock: RefCell<Clock>,
    shown: Shown,
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    Lines(RefCell<Lines>),
}

/// Plain lines, not too many of them.
struct Lines {
    out: Box<dyn Write>,
    every: Duration,
    last: Option<Instant>,
}

/// Steps and the time they took.
struct Clock {
    total: u64,
    done: u64,
    started: Instant,
    /// When the last step was done.
    advanced: Instant,
}

impl Progress {
    /// So many steps to come; shown nowhere where `quiet`.
    #[must_use]
    pub fn new(total: u64, quiet: bool) -> Self {
        if quiet {
            Self::shown(total, Shown::Nothing)
        } else if io::stderr().is_terminal() {
            Self::bar(total, ProgressDrawTarget::stderr())
        } else {
            Self::lines(total, Box::new(io::stderr()), EVERY)
        }
    }

    fn shown(total: u64, shown: Shown) -> Self {
        let now = Instant::now();
        Self { clock: RefCell::new(Clock { total, done: 0, started: now, advanced: now }), shown }
    }

    fn bar(total: u64, target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}{prefix} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self::shown(total, Shown::Bar(bar))
    }

    fn lines(total: u64, out: Box<dyn Write>, every: Duration) -> Self {
        Self::shown(total, Shown::Lines(RefCell::new(Lines { out, every, last: None })))
    }

    /// Lets the time that is left be judged by what is done from now on: preparations say nothing about it.
    pub fn start_clock(&self) {
        let now = Instant::now();
        let mut clock = self.clock.borrow_mut();
        (clock.started, clock.advanced) = (now, now);
    }

    /// Says what begins. Its number is that after those that are done, also where steps take turns: it never goes back.
    pub fn message(&self, text: &str) {
        let (now, clock) = (Instant::now(), self.clock.borrow());
        let left = clock.left(now).map_or_else(String::new, |left| format!(", {}", about(left)));
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_prefix(left);
                bar.set_message(text.to_owned());
            }
            Shown::Lines(lines) => {
                let mut lines = lines.borrow_mut();
                if lines.last.is_none_or(|last| now.duration_since(last) >= lines.every) {
                    lines.last = Some(now);
                    let number = (clock.done + 1).min(clock.total);
                    // Where nobody reads there is nobody to tell.
                    let _ = writeln!(lines.out, "{number} of {}: {text}{left}", clock.total);
                }
            }
        }
    }

    /// Counts steps as done.
    pub fn advance(&self, steps: u64) {
        if steps == 0 {
            return;
        }
        let mut clock = self.clock.borrow_mut();
        clock.done += steps;
        clock.advanced = Instant::now();
        if let Shown::Bar(bar) = &self.shown {
            bar.inc(steps);
        }
    }

    /// Takes the bar away; lines stay.
    pub fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

impl Clock {
    /// The time that the other steps take if they take as long as those that are done.
    fn left(&self, now: Instant) -> Option<Duration> {
        if self.done == 0 || self.done >= self.total {
            return None;
        }
        let each = self.advanced.duration_since(self.started).as_secs_f64() / self.done as f64;
        let others = each * (self.total - self.done) as f64;
        // What the next step has taken already is not to come, but it is not done either.
        let running = now.duration_since(self.advanced).as_secs_f64().min(each);
        Some(Duration::from_secs_f64((others - running).max(0.0)))
    }
}

/// A time that is a guess.
fn about(left: Duration) -> String {
    let seconds = left.as_secs_f64();
    if seconds < 99.5 {
        format!("about {:.0} s left", seconds.ceil().max(1.0))
    } else if seconds < 99.5 * 60.0 {
        format!("about {:.0} min left", seconds / 60.0)
    } else {
        format!("about {:.0} h left", seconds / 3600.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::*;

    /// Whatever is written, by whom or how.
    #[derive(Clone, Debug, Default)]
    struct Written(Arc<Mutex<String>>);

    impl Written {
        fn add(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        fn text(&self) -> String {
            self.0.lock().unwrap().clone()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.add(std::str::from_utf8(bytes).unwrap()).map(|()| bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl TermLike for Written {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.add(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.add(text)
        }

        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// 3 of 18 steps took 6 s.
    fn after_three(progress: &Progress) {
        progress.advance(3);
        let mut clock = progress.clock.borrow_mut();
        clock.started = clock.advanced - Duration::from_secs(6);
    }

    #[test]
    fn lines_say_where_and_how_long_but_not_too_often() {
        let written = Written::default();
        let progress = Progress::lines(18, Box::new(written.clone()), Duration::ZERO);
        progress.message("making the data");
        after_three(&progress);
        progress.message("shared k=30");
        progress.advance(15);
        progress.message("the end");
        let said = "1 of 18: making the data\n4 of 18: shared k=30, about 30 s left\n\
                    18 of 18: the end\n";
        assert_eq!(written.text(), said);

        let written = Written::default();
        let progress = Progress::lines(18, Box::new(written.clone()), Duration::from_secs(3600));
        progress.message("first");
        progress.message("too early");
        assert_eq!(written.text(), "1 of 18: first\n");
    }

    #[test]
    fn a_bar_says_how_long_it_takes() {
        let written = Written::default();
        let progress = Progress::bar(18, ProgressDrawTarget::term_like(Box::new(written.clone())));
        after_three(&progress);
        progress.message("shared k=30");
        progress.finish();
        assert!(written.text().contains("3/18 0s, about 30 s left shared k=30"), "{}", written.text());
    }

    #[test]
    fn what_is_left_shrinks_while_a_step_runs() {
        let now = Instant::now();
        let left = |done: u64, running: u64| {
            let clock = Clock { total: 10, done, started: now, advanced: now + Duration::from_secs(4 * done) };
            clock.left(clock.advanced + Duration::from_secs(running)).map(|left| left.as_secs())
        };
        assert_eq!([left(0, 9), left(10, 0)], [None, None]);
        assert_eq!([left(5, 0), left(5, 3), left(5, 99), left(9, 99)], [Some(20), Some(17), Some(16), Some(0)]);
    }

    #[test]
    fn times_that_are_left_are_round() {
        for (seconds, text) in [
            (0.0, "about 1 s left"),
            (39.2, "about 40 s left"),
            (150.0, "about 2 min left"),
            (7300.0, "about 2 h left"),
        ] {
            assert_eq!(about(Duration::from_secs_f64(seconds)), text);
        }
    }
}
