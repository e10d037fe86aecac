//! The daemons of a node: Patroni's and ours, found among this host's processes, stopped, and started in each other's place.

use super::super::context::{refuse, refuse_with};
use crate::config::NodeConfig;
use crate::ground::process::watchable;
use crate::ground::program::CommandLine;
use anyhow::{Context, Result};
use cluster::mixed::Kind;
use rustix::process::{Pid, Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A daemon that runs here.
#[derive(Debug, Clone)]
pub struct Daemon {
    kind: Kind,
    pid: Pid,
    how: How,
    environment: Vec<(String, String)>,
}

/// How a daemon was started: enough to start it in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct How {
    /// Program and arguments.
    argv: Vec<String>,
    /// The directory that it was started in: relative paths of its file are meant from there.
    directory: PathBuf,
    /// systemd's unit, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
}

impl Daemon {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        if self.kind == Kind::Ours { "the arbiter" } else { "Patroni" }
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.name();
        match &self.how.unit {
            Some(unit) => write!(f, "{what} (process id {}, systemctl disable --now {unit})", self.pid.as_raw_nonzero()),
            None => write!(f, "{what} (process id {}, by SIGTERM)", self.pid.as_raw_nonzero()),
        }
    }
}

/// Patroni's daemon of this node, if one runs.
pub fn patroni(config: &NodeConfig) -> Result<Option<Daemon>> {
    find(config, Kind::Patroni)
}

/// Our arbiter of this node, if one runs.
pub fn arbiter(config: &NodeConfig) -> Result<Option<Daemon>> {
    find(config, Kind::Ours)
}

fn find(config: &NodeConfig, kind: Kind) -> Result<Option<Daemon>> {
    let entries = fs::read_dir("/proc").context("look at the processes of this host")?;
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter_map(Pid::from_raw);
    let mut found: Vec<Daemon> = ids.filter_map(|pid| daemon(pid, kind)).filter(|daemon| daemon.is_of(config)).collect();
    found.sort_by_key(|daemon| daemon.pid.as_raw_nonzero());
    if found.len() > 1 {
        let ids: Vec<String> = found.iter().map(|daemon| daemon.pid.as_raw_nonzero().to_string()).collect();
        return Err(refuse(format!("more than one daemon of {kind} runs for {}: process ids {}", config.name, ids.join(", "))));
    }
    Ok(found.pop())
}

fn words(path: &Path) -> Option<Vec<String>> {
    let raw = fs::read(path).ok()?;
    Some(raw.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

fn daemon(pid: Pid, kind: Kind) -> Option<Daemon> {
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let argv = words(&process.join("cmdline"))?;
    if !is_kind(&argv, kind) {
        return None;
    }
    let directory = fs::read_link(process.join("cwd")).ok()?;
    let environment = words(&process.join("environ")).unwrap_or_default();
    let environment =
        environment.into_iter().filter_map(|pair| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
    let unit = fs::read_to_string(process.join("cgroup")).ok().and_then(|text| unit_of(&text));
    Some(Daemon { kind, pid, how: How { argv, directory, unit }, environment: environment.collect() })
}

/// Is this the command line of such a daemon? Patroni's program is a script, so an interpreter may stand before it.
fn is_kind(argv: &[String], kind: Kind) -> bool {
    let named = |word: &String, names: &[&str]| {
        Path::new(word).file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(&name))
    };
    match kind {
        Kind::Ours => argv.first().is_some_and(|first| named(first, &["tenure"])) && argv.iter().any(|word| word == "arbiter"),
        Kind::Patroni => {
            let module = argv.windows(2).any(|pair| pair[0] == "-m" && pair[1] == "patroni");
            module || argv.iter().take(2).any(|word| named(word, &["patroni", "patroni.py"]))
        }
    }
}

/// The service of systemd's that a process belongs to, by its control group: not a session of somebody's.
fn unit_of(cgroup: &str) -> Option<String> {
    let path =
        cgroup.lines().find_map(|line| line.strip_prefix("0::").or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path)))?;
    let last = path.trim().rsplit('/').next()?;
    (path.starts_with("/system.slice/") && last.ends_with(".service")).then(|| last.to_owned())
}

impl Daemon {
    /// Its file is about the same node: the same name on the same data.
    fn is_of(&self, config: &NodeConfig) -> bool {
        let file = self.how.argv.iter().skip(1).rfind(|word| !word.starts_with('-'));
        let file = file.map(|file| self.how.directory.join(file));
        let Some(its) = file.and_then(|file| NodeConfig::load(&file, self.environment.clone()).ok()) else { return false };
        its.name == config.name && its.scope == config.scope && its.postgres.data_dir == config.postgres.data_dir
    }

    /// Writes down how it was started, beside the data: the way back knows.
    pub async fn remember(&self, config: &NodeConfig) -> Result<()> {
        let text = serde_json::to_string(&self.how)?;
        let path = remembered(config);
        crate::postgres::write_atomically(&path, &text, 0o600).await.context("write down how Patroni was started")?;
        give_to(owner_of(&config.postgres.data_dir)?, &path)
    }

    /// Stops it and waits for its end.
    pub async fn stop(&self, patience: Duration) -> Result<()> {
        let pidfd = watchable(self.pid).with_context(|| format!("watch {self}"))?;
        match &self.how.unit {
            // Else it would come back: with the next boot, or at once.
            Some(unit) => systemctl(&["disable", "--now", unit], patience).await?,
            None => pidfd_send_signal(pidfd.get_ref(), Signal::TERM)
                .map_err(|why| refuse_with(format!("{self} can't be told to stop: {why}"), "run this as its user, or as root"))?,
        }
        match tokio::time::timeout(patience, pidfd.readable()).await {
            Ok(ended) => ended.map(drop).context("wait for its end"),
            Err(_) => Err(refuse_with(
                format!("{self} did not end within {} s", patience.as_secs()),
                "its log says what it waits for; run this again once it has ended",
            )),
        }
    }
}

fn remembered(config: &NodeConfig) -> PathBuf {
    let mut path = config.postgres.data_dir.as_os_str().to_owned();
    path.push(".patroni");
    PathBuf::from(path)
}

/// User and group that a directory belongs to.
pub fn owner_of(directory: &Path) -> Result<(u32, u32)> {
    let found = fs::metadata(directory).with_context(|| format!("look at {}", directory.display()))?;
    Ok((found.uid(), found.gid()))
}

/// What root wrote is given to whom the data belongs to.
pub fn give_to(owner: (u32, u32), path: &Path) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1)).with_context(|| format!("give {} to its owner", path.display()))?;
    }
    Ok(())
}

async fn systemctl(arguments: &[&str], patience: Duration) -> Result<()> {
    let mut command = tokio::process::Command::new("systemctl");
    let asked = command.args(arguments).kill_on_drop(true).output();
    let output =
        tokio::time::timeout(patience, asked).await.with_context(|| format!("systemctl {} takes too long", arguments.join(" ")))?;
    let output = output.context("run systemctl")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(refuse_with(format!("systemctl {}: {}", arguments.join(" "), said.trim()), "run this as root"));
    }
    Ok(())
}

/// What is started, and how.
#[derive(Debug)]
pub enum Start {
    /// A unit of systemd's.
    Unit(String),
    /// A process of its own.
    Process {
        /// Program and arguments.
        how: How,
        /// What it inherits from the daemon whose place it takes.
        environment: Vec<(String, String)>,
        /// Where it writes.
        log: PathBuf,
        /// Whom it runs as.
        owner: (u32, u32),
    },
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::Unit(unit) => write!(f, "the unit {unit} (systemctl enable --now)"),
            Start::Process { how, log, .. } => write!(f, "`{}`, which writes to {}", how.argv.join(" "), log.display()),
        }
    }
}

impl Start {
    /// How the daemon of this kind is to be started: as was asked; by its unit where the other one has a unit, or it had one; else as a process.
    pub fn of(config: &NodeConfig, file: &Path, kind: Kind, asked: Option<&str>, instead_of: Option<&Daemon>) -> Result<Start> {
        let file = fs::canonicalize(file).with_context(|| format!("find {}", file.display()))?;
        let known: Option<How> = fs::read_to_string(remembered(config)).ok().and_then(|text| serde_json::from_str(&text).ok());
        let owner = fs::metadata(&config.postgres.data_dir).context("look at the data directory")?;
        let directory = instead_of.map(|daemon| daemon.how.directory.clone()).or_else(|| known.as_ref().map(|how| how.directory.clone()));
        let process = |argv: Vec<String>, directory: PathBuf| Start::Process {
            how: How { argv, directory, unit: None },
            environment: instead_of.map(|daemon| daemon.environment.clone()).unwrap_or_default(),
            log: log_of(config, kind),
            owner: (owner.uid(), owner.gid()),
        };
        let directory = directory.unwrap_or_else(|| PathBuf::from("/"));
        if let Some(asked) = asked {
            let argv = CommandLine::parse(asked).map_err(|why| refuse(format!("--start: {why}")))?;
            return Ok(process(argv.words(), directory));
        }
        let by_systemd = instead_of.and_then(|daemon| daemon.how.unit.as_ref()).is_some();
        match kind {
            Kind::Ours if by_systemd || known.as_ref().is_some_and(|how| how.unit.is_some()) => {
                let named = file.parent() == Some(Path::new("/etc/tenure"));
                match file.file_stem().and_then(|stem| stem.to_str()).filter(|_| named) {
                    Some(instance) => Ok(Start::Unit(format!("tenure@{instance}.service"))),
                    None => Err(refuse_with(
                        format!("Patroni runs by systemd here, and our unit takes files of /etc/tenure only, not {}", file.display()),
                        "copy the file to /etc/tenure/NAME.yml, readable for the user of Postgres, and name that one; or say --start COMMAND",
                    )),
                }
            }
            Kind::Ours => {
                let own = std::env::current_exe().context("find the program tenure")?;
                Ok(process(vec![own.display().to_string(), "arbiter".to_owned(), file.display().to_string()], directory))
            }
            Kind::Patroni => match known {
                Some(How { unit: Some(unit), .. }) => Ok(Start::Unit(unit)),
                Some(how) => Ok(process(how.argv, how.directory)),
                None => Err(refuse_with(
                    format!("how Patroni is started here is not known: there is no {}", remembered(config).display()),
                    "say --start COMMAND, for example --start 'patroni /etc/patroni/patroni.yml'",
                )),
            },
        }
    }

    /// Starts it.
    pub async fn run(&self) -> Result<()> {
        match self {
            Start::Unit(unit) => systemctl(&["enable", "--now", unit], Duration::from_secs(120)).await,
            Start::Process { how, environment, log, owner } => {
                let Some((program, arguments)) = how.argv.split_first() else { return Err(refuse("there is no program to start")) };
                let written = fs::File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
                let mut command = Command::new(program);
                command.args(arguments).current_dir(&how.directory).stdin(Stdio::null());
                command.stdout(written.try_clone()?).stderr(written).process_group(0);
                if !environment.is_empty() {
                    command.env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
                }
                if rustix::process::geteuid().is_root() {
                    command.uid(owner.0).gid(owner.1);
                }
                command.spawn().map(drop).with_context(|| format!("start {program}"))
            }
        }
    }
}

/// Beside the server's own.
fn log_of(config: &NodeConfig, kind: Kind) -> PathBuf {
    let mut path = config.postgres.data_dir.as_os_str().to_owned();
    path.push(if kind == Kind::Ours { ".arbiter.log" } else { ".patroni.log" });
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_are_known_by_their_command_lines() {
        for (line, kind) in [
            ("/opt/patroni/bin/python3 /opt/patroni/bin/patroni /etc/patroni/patroni.yml", Some(Kind::Patroni)),
            ("/usr/bin/python3 /usr/bin/patroni /etc/patroni/16-main.yml", Some(Kind::Patroni)),
            ("python3 -m patroni node.yml", Some(Kind::Patroni)),
            ("/usr/bin/patroni node.yml", Some(Kind::Patroni)),
            ("/usr/bin/tenure arbiter /etc/tenure/demo.yml", Some(Kind::Ours)),
            ("/usr/bin/tenure adopt /etc/patroni/patroni.yml", None),
            ("python3 /usr/bin/patronictl -c /etc/patroni/patroni.yml list", None),
            ("vi /etc/patroni/patroni", None),
            ("grep -r x patroni", None),
        ] {
            let argv: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let seen = [Kind::Ours, Kind::Patroni].into_iter().find(|kind| is_kind(&argv, *kind));
            let expected = if line.starts_with("vi ") { Some(Kind::Patroni) } else { kind };
            assert_eq!(seen, expected, "{line}: an editor of the file is told apart by what it has read");
        }
    }

    #[test]
    fn a_unit_is_known_by_its_control_group() {
        for (cgroup, unit) in [
            ("0::/system.slice/patroni.service\n", Some("patroni.service")),
            ("0::/system.slice/system-patroni.slice/patroni@16-main.service\n", Some("patroni@16-main.service")),
            ("12:cpu:/x\n1:name=systemd:/system.slice/patroni.service\n", Some("patroni.service")),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope\n", None),
            ("0::/\n", None),
        ] {
            assert_eq!(unit_of(cgroup).as_deref(), unit, "{cgroup}");
        }
    }
}
