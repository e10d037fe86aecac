//! A program that the node's file names: in a process group of its own, its words to our log, bounded, and
//! gone with its group when nobody waits for it any more.

use crate::ground::process::watchable;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group, pidfd_send_signal};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Lines of one program that go to the log; what is beyond is counted.
const LINES_MOST: usize = 500;
/// A line is cut here: one without an end must not fill our memory.
const LINE_BYTES_MOST: usize = 1000;
/// The last lines, for the message of a failure.
const LINES_KEPT: usize = 4;
/// What a program said last is waited for so long once it has ended: a child it left may hold the pipe.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// In the environment of every program that changes a data directory, with its path: by this those are found
/// of an arbiter that was killed.
pub const WORKS_ON: &str = "TENURE_WORKS_ON";

/// A command line of the node's file, cut into words as a shell does. No shell runs it, nothing is expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    program: String,
    arguments: Vec<String>,
}

/// What becomes of processes that a program leaves when it ends well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stragglers {
    /// They may go on: a callback may start something.
    Leave,
    /// They are ended: nobody but us works on the data directory now.
    End,
}

/// How a program is run.
#[derive(Debug)]
pub struct Run<'a> {
    /// For the log: `callback on_start`, `replica method pgbackrest`.
    pub what: &'a str,
    /// Added to our own environment.
    pub environment: Vec<(&'static str, OsString)>,
    /// It is ended after this.
    pub patience: Option<Duration>,
    /// See there.
    pub stragglers: Stragglers,
}

impl CommandLine {
    /// Cuts a text into words; an empty one, or one with an open quote, is refused in half a sentence.
    pub fn parse(text: &str) -> Result<CommandLine, &'static str> {
        let words = shlex::split(text).ok_or("a quote is not closed, or a backslash ends the text")?;
        let mut words = words.into_iter();
        let program = words.next().filter(|program| !program.is_empty()).ok_or("the command is empty")?;
        Ok(CommandLine { program, arguments: words.collect() })
    }

    /// What is run.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Program and arguments.
    pub fn words(&self) -> Vec<String> {
        std::iter::once(&self.program).chain(&self.arguments).cloned().collect()
    }

    /// The same with further arguments.
    pub fn and(&self, arguments: impl IntoIterator<Item = String>) -> CommandLine {
        let mut line = self.clone();
        line.arguments.extend(arguments);
        line
    }

    /// Runs it to its end. An error says how it ended and what it said last.
    pub async fn run(&self, run: Run<'_>) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(run.environment);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("start {}", self.program))?;
        let id = child.id().context("the program ended before it was seen")?;
        let pid = Pid::from_raw(i32::try_from(id)?).context("a process has no id")?;
        let mut group = Group { leader: Some(pid) };
        let pidfd = watchable(pid).context("watch the program")?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let mut said = Said::of(run.what);
        let ended = {
            let mut listening = std::pin::pin!(listen(out, err, &mut said));
            let ending = async {
                tokio::select! {
                    _ = pidfd.readable() => {}
                    // Both ends closed: it may still run, and says nothing more.
                    () = &mut listening => { let _ = pidfd.readable().await; return; }
                }
                let _ = tokio::time::timeout(LAST_WORDS_WITHIN, listening).await;
            };
            match run.patience {
                Some(patience) => tokio::time::timeout(patience, ending).await.is_ok(),
                None => {
                    ending.await;
                    true
                }
            }
        };
        said.close();
        if !ended {
            drop(group);
            bail!("ended by force after {} s{}", run.patience.unwrap_or_default().as_secs(), said.last());
        }
        // Not reaped yet, so the group's number is still its own.
        match run.stragglers {
            Stragglers::End => drop(group),
            Stragglers::Leave => group.leader = None,
        }
        let status: ExitStatus = child.wait().await.context("wait for the program")?;
        if !status.success() {
            bail!("{} ended with {status}{}", self.program, said.last());
        }
        Ok(())
    }
}

/// Kills the group when dropped, that is also when the task that waits for the program is cancelled.
struct Group {
    leader: Option<Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            // An empty group is gone already.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// What a program says, line by line.
struct Said<'a> {
    what: &'a str,
    unfinished: [Vec<u8>; 2],
    count: usize,
    last: VecDeque<String>,
}

impl<'a> Said<'a> {
    fn of(what: &'a str) -> Said<'a> {
        Said { what, unfinished: Default::default(), count: 0, last: VecDeque::new() }
    }

    fn hear(&mut self, stream: usize, bytes: &[u8]) {
        for byte in bytes {
            let full = self.unfinished[stream].len() >= LINE_BYTES_MOST;
            if matches!(byte, b'\n' | b'\r') || full {
                let line = std::mem::take(&mut self.unfinished[stream]);
                self.line(&line);
            }
            if !matches!(byte, b'\n' | b'\r') {
                self.unfinished[stream].push(*byte);
            }
        }
    }

    fn line(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        self.count += 1;
        if self.count <= LINES_MOST {
            tracing::info!("{}: {text}", self.what);
        }
        if self.last.len() == LINES_KEPT {
            self.last.pop_front();
        }
        self.last.push_back(text.to_owned());
    }

    fn close(&mut self) {
        for stream in 0..2 {
            let line = std::mem::take(&mut self.unfinished[stream]);
            self.line(&line);
        }
        if self.count > LINES_MOST {
            tracing::info!("{}: {} more lines are left out here", self.what, self.count - LINES_MOST);
        }
    }

    fn last(&self) -> String {
        let lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        if lines.is_empty() { String::new() } else { format!(": {}", lines.join("; ")) }
    }
}

/// Until both streams are closed.
async fn listen(out: Option<impl AsyncRead + Unpin>, err: Option<impl AsyncRead + Unpin>, said: &mut Said<'_>) {
    let (mut out, mut err) = (out, err);
    let (mut out_bytes, mut err_bytes) = ([0; 4096], [0; 4096]);
    while out.is_some() || err.is_some() {
        let (stream, read) = tokio::select! {
            read = read_some(&mut out, &mut out_bytes) => (0, read),
            read = read_some(&mut err, &mut err_bytes) => (1, read),
        };
        match (stream, read) {
            (0, 0) => out = None,
            (0, read) => said.hear(0, &out_bytes[..read]),
            (_, 0) => err = None,
            (_, read) => said.hear(1, &err_bytes[..read]),
        }
    }
}

/// 0 where the stream has ended or can't be read; never, where there is none any more.
async fn read_some(stream: &mut Option<impl AsyncRead + Unpin>, bytes: &mut [u8]) -> usize {
    match stream {
        Some(stream) => stream.read(bytes).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// Ends every program that an arbiter before us left working on this data directory, and waits until it is gone.
pub async fn end_leftovers(data_dir: &Path) -> Result<()> {
    let mut wanted = format!("{WORKS_ON}=").into_bytes();
    wanted.extend_from_slice(std::os::unix::ffi::OsStrExt::as_bytes(data_dir.as_os_str()));
    loop {
        let wanted = wanted.clone();
        let left = tokio::task::spawn_blocking(move || with_environment(&wanted)).await?;
        if left.is_empty() {
            return Ok(());
        }
        for (pid, process) in left {
            tracing::warn!("ending process {pid}: an earlier arbiter left it working on {}", data_dir.display());
            let _ = pidfd_send_signal(process.get_ref(), Signal::KILL);
            let gone = tokio::time::timeout(Duration::from_secs(10), process.readable()).await;
            let _ = gone.with_context(|| format!("process {pid} did not go away within 10 s"))??;
        }
    }
}

type Process = (i32, tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>);

fn with_environment(wanted: &[u8]) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter_map(Pid::from_raw);
    let has = |pid: Pid| {
        let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == wanted)
    };
    // The descriptor first, then the look again: a process id taken over by somebody else is not killed.
    ids.filter_map(|pid| {
        if !has(pid) {
            return None;
        }
        let process = watchable(pid).ok()?;
        has(pid).then_some((pid.as_raw_nonzero().get(), process))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn run(what: &str, patience: Option<Duration>, stragglers: Stragglers) -> Run<'_> {
        Run { what, environment: Vec::new(), patience, stragglers }
    }

    fn shell(script: &str) -> CommandLine {
        CommandLine { program: "sh".to_owned(), arguments: vec!["-c".to_owned(), script.to_owned()] }
    }

    #[test]
    fn a_command_line_is_cut_as_a_shell_cuts_it() {
        let line = CommandLine::parse("/opt/do it 'two words' \"a b\" c\\ d").unwrap();
        assert_eq!(
            (line.program.as_str(), line.arguments.as_slice()),
            ("/opt/do", ["it", "two words", "a b", "c d"].map(str::to_owned).as_slice())
        );
        for text in ["", "  ", "open 'quote"] {
            assert!(CommandLine::parse(text).is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn an_end_that_is_no_success_carries_the_last_words() {
        let failed = shell("echo one; echo two >&2; exit 3").run(run("test", None, Stragglers::End)).await.unwrap_err().to_string();
        assert!(failed.contains("exit status: 3") && failed.contains("one") && failed.contains("two"), "{failed}");
        shell("exit 0").run(run("test", None, Stragglers::End)).await.unwrap();
        assert!(CommandLine::parse("/no/such/program").unwrap().run(run("test", None, Stragglers::End)).await.is_err());
    }

    #[tokio::test]
    async fn a_straggler_ends_with_the_program_only_where_that_is_wanted() {
        let room = tempfile::tempdir().unwrap();
        for (stragglers, lives) in [(Stragglers::End, false), (Stragglers::Leave, true)] {
            let path = room.path().join(format!("{lives}"));
            // Its output is closed, so that nobody waits for it.
            let script = format!("(sleep 60 >/dev/null 2>&1 & echo $! >{})", path.display());
            shell(&script).run(run("test", None, stragglers)).await.unwrap();
            let pid = std::fs::read_to_string(&path).unwrap().trim().parse().map(Pid::from_raw).unwrap().unwrap();
            let running =
                || std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).is_ok_and(|stat| !stat.contains(") Z "));
            let deadline = Instant::now() + Duration::from_secs(10);
            while running() != lives && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(running(), lives, "{stragglers:?}");
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    #[tokio::test]
    async fn patience_ends_the_whole_group() {
        let began = Instant::now();
        let failed = shell("sleep 60 | sleep 60").run(run("test", Some(Duration::from_millis(200)), Stragglers::Leave)).await.unwrap_err();
        assert!(failed.to_string().contains("ended by force"), "{failed}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn what_an_earlier_arbiter_left_is_found_by_its_environment_and_ended() {
        let room = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").env(WORKS_ON, room.path()).spawn().unwrap();
        let mut other = Command::new("sleep").arg("60").env(WORKS_ON, room.path().join("other")).kill_on_drop(true).spawn().unwrap();
        // A spawn returns while the kernel is still about to put the new program's environment where it is read: it is empty until then.
        for id in [child.id().unwrap(), other.id().unwrap()] {
            while std::fs::read(format!("/proc/{id}/environ")).unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        // The child of this very process stays a zombie until it is waited for: its environment is gone by then.
        end_leftovers(room.path()).await.unwrap();
        assert!(!child.wait().await.unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
    }

    #[test]
    fn lines_are_cut_counted_and_the_last_kept() {
        let mut said = Said::of("test");
        said.hear(0, b"one\r\ntwo\n\nthr");
        said.hear(1, b"err\n");
        said.hear(0, b"ee\n");
        said.hear(0, &[b'x'; 2500]);
        said.close();
        assert_eq!(said.count, 4 + 3);
        assert_eq!(said.last.back().map(String::len), Some(500));
    }
}
