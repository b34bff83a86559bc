//! What ran and how it ended, summed over everything that runs tests: libtest's programs, the guests
//! of the virtual machines, the steps of a check.

use std::fmt;

/// Counts, and a line for each thing that failed or did not run.
#[derive(Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    notes: Vec<String>,
}

impl Tally {
    pub(crate) fn pass(&mut self) {
        self.passed += 1;
    }

    pub(crate) fn fail(&mut self, what: &str) {
        self.failed += 1;
        self.notes.push(format!("FAIL {what}"));
    }

    pub(crate) fn skip(&mut self, what: &str) {
        self.skipped += 1;
        self.notes.push(format!("SKIP {what}"));
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.notes.extend(other.notes);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed > 0
    }

    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The line that CI reads.
impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
            ..
        } = self;
        write!(out, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Reads what `cargo test -- --show-output` says.
#[derive(Default)]
pub(crate) struct Libtest {
    tally: Tally,
    /// The test program that was started and has not yet given its result.
    running: Option<String>,
    /// Tests that libtest counts as passed but which said that they did not run.
    not_run: usize,
    /// In the part that repeats every test which passed, with what it said.
    repeating: bool,
}

impl Libtest {
    /// Reads a line, and says whether it tells a person something new.
    pub(crate) fn line(&mut self, line: &str) -> bool {
        let line = console::strip_ansi_codes(line);
        let line = line.trim();
        if let Some(program) = started(line) {
            self.ended_without_result();
            self.running = Some(program.to_owned());
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.running = None;
            self.tally.passed += count(counts, "passed");
            self.tally.skipped += count(counts, "ignored");
        } else if let Some(test) = outcome(line, "FAILED") {
            self.tally.fail(test);
        } else if let Some(test) = outcome(line, "ignored") {
            self.tally.notes.push(format!("SKIP {test}"));
        } else if let Some(what) = line.strip_prefix("SKIP ") {
            self.not_run += 1;
            self.tally.skip(what);
            return true;
        }
        match line {
            "successes:" => self.repeating = true,
            "failures:" => self.repeating = false,
            other => self.repeating &= !other.starts_with("test result: "),
        }
        !self.repeating
    }

    /// The sum, after cargo ended with `success` or without.
    pub(crate) fn finish(mut self, stage: &str, success: bool) -> Tally {
        self.ended_without_result();
        if !success && !self.tally.has_failed() {
            self.tally.fail(&format!(
                "{stage}: cargo test ended with an error, see above"
            ));
        }
        self.tally.passed = self.tally.passed.saturating_sub(self.not_run);
        self.tally
    }

    fn ended_without_result(&mut self) {
        if let Some(program) = self.running.take() {
            self.tally
                .fail(&format!("{program}: ended without a test result"));
        }
    }
}

/// The program of `Running unittests src/lib.rs (target/…)` or `Doc-tests lb_common`.
fn started(line: &str) -> Option<&str> {
    line.strip_prefix("Running ")
        .or_else(|| line.starts_with("Doc-tests ").then_some(line))
}

/// The number before a word, in `ok. 3 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> usize {
    let words: Vec<&str> = counts
        .split([' ', ';'])
        .filter(|word| !word.is_empty())
        .collect();
    let found = words.windows(2).find(|pair| pair[1] == word);
    found.and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

/// The name of a test in `test NAME ... OUTCOME`.
fn outcome<'a>(line: &'a str, outcome: &str) -> Option<&'a str> {
    let (test, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    rest.starts_with(outcome).then_some(test)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(success: bool, output: &str) -> Tally {
        let mut libtest = Libtest::default();
        for line in output.lines() {
            libtest.line(line);
        }
        libtest.finish("unit", success)
    }

    const GOOD: &str = "
     Running unittests src/lib.rs (target/debug/deps/lb_common-1)
test addr::a ... ok
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
   Doc-tests lb_common
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";

    #[test]
    fn results_of_all_programs_are_summed() {
        let tally = read(true, GOOD);
        assert_eq!(tally.to_string(), "3 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_failed_test_is_counted_and_named() {
        let output = "
test a::b ... FAILED
test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        let tally = read(false, output);
        assert_eq!(tally.to_string(), "4 passed, 1 failed, 0 skipped");
        assert_eq!(tally.notes(), ["FAIL a::b"]);
    }

    #[test]
    fn a_test_that_says_it_did_not_run_is_skipped_and_not_passed() {
        let output = "
SKIP sctp: this kernel has none
test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let tally = read(true, output);
        assert_eq!(tally.to_string(), "3 passed, 0 failed, 1 skipped");
        assert_eq!(tally.notes(), ["SKIP sctp: this kernel has none"]);
    }

    #[test]
    fn what_libtest_repeats_is_not_shown_again() {
        let output = "test a ... ok\n\nsuccesses:\n---- b stdout ----\nSKIP b: none\nsuccesses:\n\
                      a\nfailures:\n---- c stdout ----\nwhy\ntest result: FAILED.";
        let mut libtest = Libtest::default();
        let shown: Vec<_> = output.lines().filter(|line| libtest.line(line)).collect();
        let expected = "test a ... ok\n\nSKIP b: none\nfailures:\n---- c stdout ----\nwhy\n\
                        test result: FAILED.";
        assert_eq!(shown.join("\n"), expected);
    }

    #[test]
    fn a_test_program_that_dies_is_a_failure() {
        let output = format!("{GOOD}\n     Running tests/a.rs (target/a)\ntest x ... ok\n");
        let tally = read(false, &output);
        assert_eq!(tally.to_string(), "3 passed, 1 failed, 1 skipped");
        assert!(tally.notes()[0].contains("tests/a.rs"));
    }

    #[test]
    fn a_stage_that_does_not_compile_is_a_failure() {
        assert_eq!(
            read(false, "error: …").to_string(),
            "0 passed, 1 failed, 0 skipped"
        );
    }
}
