//! Waiting for a named condition with a deadline: the only place that sleeps, so that no test
//! guesses how long something takes and every time-out says what was seen last.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::bail;

/// Time enough for anything a loaded two-core machine does in a lab.
pub const PATIENCE: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(5);

/// Polls `look` until it finds what it looks for. `Err` is what it saw, for the time-out's message.
pub fn until<T, Seen: fmt::Display>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<T, Seen>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() >= deadline => {
                bail!("waited {within:?} for {what}; last seen: {seen}")
            }
            Err(_) => pause(),
        }
    }
}

/// Lets something go on for a while, to interrupt it at a point that nobody chose.
#[expect(clippy::disallowed_methods, reason = "no condition tells that point")]
pub fn let_run(time: Duration) {
    std::thread::sleep(time);
}

#[expect(clippy::disallowed_methods, reason = "the pause between two polls")]
fn pause() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_names_the_condition_and_what_was_seen_last() {
        let mut polls = 0;
        let error = until("three apples", Duration::from_millis(1), || {
            polls += 1;
            Err::<(), _>(format!("{polls} pears"))
        })
        .unwrap_err()
        .to_string();

        assert!(error.contains("three apples"), "{error}");
        assert!(error.ends_with(&format!("{polls} pears")), "{error}");
    }

    #[test]
    fn what_is_found_is_returned_at_once() {
        let found = until("a number", PATIENCE, || Ok::<_, &str>(7));

        assert_eq!(found.unwrap(), 7);
    }
}
