//! External commands: each is printed before it runs, and there are four ways to treat what it
//! says: pass it on, hide it behind one line of progress, read it line by line, or return it.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, IsTerminal, PipeReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use console::style;
use indicatif::{ProgressBar, ProgressStyle};

/// How often something without output of its own is looked at.
const TICK: Duration = Duration::from_secs(1);

/// How often a log that is no terminal is told that a long command still runs.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Longer than anything this repository runs; what is over it hangs.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// A command whose environment is the caller's, less what cargo left behind when it started xtask.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // They would win over the RUSTFLAGS of a build for the BPF target.
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env_remove("CARGO_BUILD_TARGET");
    command
}

/// Runs it with its own progress in sight; what it prints goes to standard error.
pub(crate) fn live(mut command: Command) -> Result<()> {
    say_command(&command);
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| cannot_start(&command))?;
    if !status.success() {
        bail!("{status}: {}", shown(&command));
    }
    Ok(())
}

/// Runs it behind one line of progress; its output is shown only if it fails.
pub(crate) fn quietly(what: &str, command: Command) -> Result<()> {
    say_command(&command);
    let name = shown(&command);
    let mut output = String::new();
    let mut progress = Progress::new(what);
    let status = stream(command, LIMIT, |event| {
        if let Event::Line(line) = event {
            progress.message(line);
            output.push_str(line);
            output.push('\n');
        }
        progress.tick();
    })?;
    progress.finish(status.success());
    if !status.success() {
        eprint!("{output}");
        bail!("{status}: {name}");
    }
    Ok(())
}

/// Runs a look-up and returns its standard output. Look-ups change nothing and are not printed.
pub(crate) fn text(mut command: Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(&command))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}\n{}", output.status, shown(&command), why.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {}", shown(&command)))
}

/// What a running command does: it says a line, or nothing for a while.
pub(crate) enum Event<'a> {
    Line(&'a str),
    Tick,
}

/// Runs it, hands over both its outputs line by line, and ends it when it takes longer than `limit`.
pub(crate) fn stream(
    mut command: Command,
    limit: Duration,
    mut on: impl FnMut(Event<'_>),
) -> Result<ExitStatus> {
    let name = shown(&command);
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| cannot_start(&command))?;
    // It holds the pipe's write end, which must be the child's alone for the reader to see the end.
    drop(command);

    let lines = lines_of(reader);
    let deadline = Instant::now() + limit;
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => on(Event::Line(&line)),
            Err(RecvTimeoutError::Disconnected) => return Ok(child.wait()?),
            Err(RecvTimeoutError::Timeout) => {
                on(Event::Tick);
                // A child of the child may keep the pipe open for ever.
                if let Some(status) = child.try_wait()? {
                    return Ok(status);
                }
            }
        }
        if Instant::now() > deadline {
            end(&mut child)?;
            bail!("ended after {} s without an end: {name}", limit.as_secs());
        }
    }
}

fn lines_of(reader: PipeReader) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if sender.send(line.trim_end_matches('\r').to_owned()).is_err() {
                break;
            }
        }
    });
    lines
}

/// Ends a child with all its descendants: cargo does not take its tests along when it is killed.
fn end(child: &mut Child) -> Result<()> {
    let root = child.id();
    let mut all = vec![root];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        all.extend(
            children
                .split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
        next += 1;
    }
    for pid in all {
        if let Some(pid) = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            // One that ended by itself meanwhile is what is wanted.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    child.wait()?;
    Ok(())
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let environment = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(quoted);
    environment.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start {}", command.get_program().to_string_lossy())
}

pub(crate) fn say_command(command: &Command) {
    eprintln!(
        "{}",
        style(format!("$ {}", shown(command))).for_stderr().dim()
    );
}

pub(crate) fn say_error(error: &anyhow::Error) {
    eprintln!("{} {error:#}", style("error:").for_stderr().red().bold());
}

pub(crate) fn say_title(title: &str) {
    eprintln!("\n{}", style(format!("== {title}")).for_stderr().bold());
}

/// `✓ fmt (0.4 s)`: one line for one finished thing.
pub(crate) fn say_done(what: &str, good: bool, took: Duration) {
    let mark = match good {
        true => style("✓").green(),
        false => style("✗").red(),
    };
    eprintln!("{} {what} ({:.1} s)", mark.for_stderr(), took.as_secs_f32());
}

/// One line of progress: drawn in place on a terminal, a line now and then in a log.
struct Progress {
    what: String,
    start: Instant,
    bar: ProgressBar,
    last_line: String,
    next_heartbeat: Duration,
}

impl Progress {
    fn new(what: &str) -> Self {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new_spinner(),
            false => ProgressBar::hidden(),
        };
        let template = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}");
        bar.set_style(template.expect("the template is a constant"));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self {
            what: what.to_owned(),
            start: Instant::now(),
            bar,
            last_line: String::new(),
            next_heartbeat: HEARTBEAT,
        }
    }

    fn message(&mut self, line: &str) {
        let line = console::strip_ansi_codes(line);
        line.trim().clone_into(&mut self.last_line);
        self.bar.set_message(self.last_line.clone());
    }

    fn tick(&mut self) {
        let elapsed = self.start.elapsed();
        if self.bar.is_hidden() && elapsed >= self.next_heartbeat {
            self.next_heartbeat = elapsed + HEARTBEAT;
            eprintln!(
                "  {}: {} s, {}",
                self.what,
                elapsed.as_secs(),
                self.last_line
            );
        }
    }

    fn finish(self, good: bool) {
        self.bar.finish_and_clear();
        say_done(&self.what, good, self.start.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        shell
    }

    #[test]
    fn a_shown_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("cargo");
        command.args(["build", "it's"]).env("RUSTFLAGS", "-Ca -Cb");
        assert_eq!(
            shown(&command),
            r"RUSTFLAGS='-Ca -Cb' cargo build 'it'\''s'"
        );
    }

    #[test]
    fn both_outputs_arrive_line_by_line_and_in_order() {
        let mut lines = Vec::new();
        let script = shell("echo one; echo two >&2; echo three; exit 3");
        let status = stream(script, LIMIT, |event| {
            if let Event::Line(line) = event {
                lines.push(line.to_owned());
            }
        });
        assert_eq!(lines, ["one", "two", "three"]);
        assert_eq!(status.unwrap().code(), Some(3));
    }

    #[test]
    fn a_command_over_its_limit_ends_with_its_children() {
        let mut grandchild = String::new();
        let script = shell("sleep 60 & echo $!; wait");
        let result = stream(script, Duration::ZERO, |event| {
            if let Event::Line(line) = event {
                line.clone_into(&mut grandchild);
            }
        });
        assert!(result.unwrap_err().to_string().contains("sleep 60"));
        // It is killed but may not have left yet.
        let deadline = Instant::now() + Duration::from_secs(5);
        while alive(&grandchild) {
            assert!(Instant::now() < deadline, "{grandchild} lives on");
            thread::yield_now();
        }
    }

    fn alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn a_command_that_leaves_a_child_behind_is_not_waited_for() {
        let start = Instant::now();
        let status = stream(shell("sleep 20 & exit 0"), LIMIT, |_| {});
        assert!(status.unwrap().success());
        assert!(start.elapsed() < Duration::from_secs(15));
    }
}
