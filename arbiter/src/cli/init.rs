//! `tenure init`: writes a node's file, by questions or by flags, or one more like another node's.

use super::context::{ask, print, refuse, refuse_with};
use super::validate;
use anyhow::{Context, Result};
use cluster::name::{MemberName, Scope};
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Write the configuration file of a node, with generated passwords; asks for what no option says.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to write; one that is there is not touched.
    pub file: PathBuf,
    /// The file of another node of the cluster, as this command wrote it: everything but name and address is taken from it.
    #[arg(long, value_name = "FILE")]
    pub like: Option<PathBuf>,
    /// The cluster.
    #[arg(long)]
    pub scope: Option<String>,
    /// This member; the host's name where nothing is said.
    #[arg(long)]
    pub name: Option<String>,
    /// The address by which other members and clients reach this host.
    #[arg(long)]
    pub address: Option<String>,
    /// Where etcd is: HOST:PORT[,HOST:PORT].
    #[arg(long)]
    pub etcd: Option<String>,
    /// The data directory.
    #[arg(long, value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// The directory of PostgreSQL's programs.
    #[arg(long, value_name = "DIRECTORY")]
    pub bin_dir: Option<PathBuf>,
    /// PostgreSQL's port.
    #[arg(long, default_value_t = 5432)]
    pub port: u16,
    /// The port of the REST interface.
    #[arg(long, default_value_t = 8008)]
    pub rest_port: u16,
    /// The user that the arbiter and PostgreSQL will run as; `postgres` where root writes the file.
    #[arg(long)]
    pub owner: Option<String>,
}

/// These lines are each node's own: `--like` replaces their values and nothing else.
const OWN: &str = "# this node's own";

/// Whom the file and the data belong to.
struct Owner {
    name: String,
    uid: u32,
    gid: u32,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    if args.file.symlink_metadata().is_ok() {
        return Err(refuse_with(format!("{} is there already", args.file.display()), "name another file, or move that one away"));
    }
    let asks = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let owner = owner(args.owner.as_deref())?;
    let text = match &args.like {
        Some(other) => another(args, other, asks)?,
        None => first(args, &owner, asks)?,
    };
    write(&args.file, &text, &owner)?;
    if let Err(why) = validate::run(&validate::Args { file: args.file.clone() }).and_then(|()| check_paths(&args.file, &owner)) {
        // What does not pass is not left.
        std::fs::remove_file(&args.file).with_context(|| format!("remove {}", args.file.display()))?;
        return Err(why);
    }
    let file = args.file.display();
    print(format!("\n{file} is written, readable by {} only, as it has passwords. Next:", owner.name))?;
    print(format!("  tenure arbiter {file}    as the user {}, or by its service", owner.name))?;
    print(format!("  on each further host, with a copy of {file}:"))?;
    print("  tenure init FILE --like COPY --name NAME --address ADDRESS")
}

/// The value that was given, or is answered, or is the default.
fn value(given: Option<&str>, question: &str, default: Option<String>, option: &str, asks: bool) -> Result<String> {
    let found = match (given, default) {
        (Some(given), _) => given.to_owned(),
        (None, default) if asks => ask(question, default.as_deref().unwrap_or(""))?,
        (None, Some(default)) => default,
        (None, None) => String::new(),
    };
    let found = found.trim().to_owned();
    if found.is_empty() {
        return Err(refuse_with(format!("{question}: nothing is said"), format!("give {option}")));
    }
    // It becomes a word in double quotes on one line.
    if found.chars().any(|letter| letter.is_control() || matches!(letter, '"' | '\\')) {
        return Err(refuse(format!("{question}: \"{}\" has a character that a file's value can't have", found.escape_default())));
    }
    Ok(found)
}

fn name(args: &Args, asks: bool) -> Result<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().split('.').next().filter(|host| MemberName::new(host).is_ok()).map(str::to_owned);
    let name = value(args.name.as_deref(), "name of this member", host, "--name", asks)?;
    MemberName::new(&name).map_err(|why| refuse(why.to_string()))?;
    Ok(name)
}

/// The address from which this host would speak to etcd; nothing is sent for that.
fn address(args: &Args, etcd: &str, asks: bool) -> Result<String> {
    let towards = etcd.split(',').next().unwrap_or_default().trim().rsplit("//").next().unwrap_or_default().to_owned();
    let local = || {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect(towards).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    };
    let address = value(args.address.as_deref(), "address of this host, as others reach it", local(), "--address", asks)?;
    if matches!(address.as_str(), "0.0.0.0" | "::" | "*") || address.contains([' ', ',', '/']) {
        return Err(refuse_with(
            format!("{address} is no address that others could connect to"),
            "give one address or name, without a port",
        ));
    }
    Ok(address)
}

/// As one writes it before a port.
fn host(address: &str) -> String {
    if address.contains(':') && !address.starts_with('[') { format!("[{address}]") } else { address.to_owned() }
}

/// The newest PostgreSQL of Debian's place, or the one on the PATH.
fn programs() -> Option<PathBuf> {
    let majors = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let major = majors.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let debian = major.map(|major| (major, PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))));
    let newest = debian.filter(|(_, path)| path.join("postgres").is_file()).max().map(|(_, path)| path);
    newest.or_else(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).find(|directory| directory.join("postgres").is_file())
    })
}

/// The major of `/usr/lib/postgresql/15/bin`, to name the data directory as Debian would.
fn major(programs: &str) -> Option<u32> {
    programs.strip_prefix("/usr/lib/postgresql/")?.split('/').next()?.parse().ok()
}

fn owner(named: Option<&str>) -> Result<Owner> {
    let passwd = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let uid = rustix::process::geteuid();
    let users = || {
        passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, ..] = fields[..] else { return None };
            Some(Owner { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        })
    };
    let wanted = match named {
        None if uid.is_root() => Some("postgres"),
        named => named,
    };
    let Some(wanted) = wanted else {
        let own = Owner { name: format!("user {}", uid.as_raw()), uid: uid.as_raw(), gid: rustix::process::getegid().as_raw() };
        return Ok(users().find(|user| user.uid == own.uid).unwrap_or(own));
    };
    let found = users().find(|user| user.name == wanted);
    let found = found.ok_or_else(|| refuse_with(format!("there is no user {wanted} here"), "install PostgreSQL, or give --owner"))?;
    if found.uid == 0 || (!uid.is_root() && found.uid != uid.as_raw()) {
        let why = if found.uid == 0 { "PostgreSQL never runs as root" } else { "only root can write a file for somebody else" };
        return Err(refuse(format!("the file can't be for the user {wanted}: {why}")));
    }
    Ok(found)
}

/// A password of 32 letters and digits, from the kernel.
fn password() -> Result<String> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = std::fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    let mut password = String::new();
    while password.len() < 32 {
        let mut byte = [0];
        random.read_exact(&mut byte).context("read /dev/urandom")?;
        // 248 is the last multiple of 62: no letter is likelier than another.
        if byte[0] < 248 {
            password.push(char::from(LETTERS[usize::from(byte[0] % 62)]));
        }
    }
    Ok(password)
}

/// The first node's file.
fn first(args: &Args, owner: &Owner, asks: bool) -> Result<String> {
    let scope = value(args.scope.as_deref(), "name of the cluster", Some("main".to_owned()), "--scope", asks)?;
    Scope::new(&scope).map_err(|why| refuse(why.to_string()))?;
    let name = name(args, asks)?;
    let etcd = value(args.etcd.as_deref(), "etcd, as HOST:PORT[,HOST:PORT]", None, "--etcd", asks)?;
    let address = host(&address(args, &etcd, asks)?);
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let found = programs().map(|path| path.display().to_string());
    let bin_dir = value(path(&args.bin_dir).as_deref(), "directory of PostgreSQL's programs", found, "--bin-dir", asks)?;
    let data_dir = major(&bin_dir).map(|major| format!("/var/lib/postgresql/{major}/{scope}"));
    let data_dir = value(path(&args.data_dir).as_deref(), "data directory", data_dir, "--data-dir", asks)?;
    if !Path::new(&data_dir).is_absolute() {
        return Err(refuse_with(format!("the data directory {data_dir} is no absolute path"), "begin it with a /"));
    }
    // The superuser of the same name as the user of the operating system comes in by the socket, as Debian has it.
    let peer = if owner.name == "postgres" { "\n    - local all postgres peer" } else { "" };
    let (port, rest_port) = (args.port, args.rest_port);
    let [superuser, replication, rewind, rest] = [password()?, password()?, password()?, password()?];
    Ok(format!(
        r#"# A node of the cluster {scope}, written by `tenure init`. What can stand here: docs/compatibility.md and docs/settings.md.
# The passwords are the cluster's: every node has the same (`tenure init --like` takes them over).
scope: "{scope}"
name: "{name}" {OWN}

restapi:
  listen: "{address}:{rest_port}" {OWN}
  connect_address: "{address}:{rest_port}" {OWN}
  authentication: # for what changes something; to look, nobody is asked
    username: tenure
    password: {rest}

etcd3:
  hosts: "{etcd}"

bootstrap: # read once, when the cluster is founded
  dcs: # the dynamic configuration from then on: `tenure edit-config`
    ttl: 10 # seconds without a leader at most, once a node is gone
    maximum_lag_on_failover: 1048576
    # synchronous_mode: true # no acknowledged write is lost with a node
    postgresql:
      use_slots: true
      use_pg_rewind: true
  initdb:
    - encoding: UTF8
    - data-checksums

postgresql:
  listen: "{address}:{port}" {OWN}
  connect_address: "{address}:{port}" {OWN}
  data_dir: "{data_dir}"
  bin_dir: "{bin_dir}"
  use_unix_socket: true # the arbiter's own session
  authentication:
    superuser:
      username: postgres
      password: {superuser}
    replication:
      username: replicator
      password: {replication}
    rewind:
      username: rewinder
      password: {rewind}
  pg_hba: # samenet: every network that this host is in; name wider ones here{peer}
    - local all all scram-sha-256
    - host all all samenet scram-sha-256
    - host replication replicator samenet scram-sha-256

tags: {{}}
"#
    ))
}

/// One more node's file, after another's.
fn another(args: &Args, other: &Path, asks: bool) -> Result<String> {
    let given = [
        ("--scope", args.scope.is_some()),
        ("--etcd", args.etcd.is_some()),
        ("--data-dir", args.data_dir.is_some()),
        ("--bin-dir", args.bin_dir.is_some()),
    ];
    if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
        return Err(refuse(format!("{option} is taken from {}: change it in the new file where it is another there", other.display())));
    }
    let before = std::fs::read_to_string(other).with_context(|| format!("read {}", other.display()))?;
    let name = name(args, asks)?;
    let etcd = before.lines().find_map(|line| line.trim().strip_prefix("hosts:")).unwrap_or_default().trim().trim_matches('"');
    let address = host(&address(args, etcd, asks)?);
    replaced(&before, &name, &address).ok_or_else(|| {
        refuse_with(
            format!("{} does not have the lines that end with \"{OWN}\": `tenure init` did not write it", other.display()),
            "copy it by hand, and change name, listen and connect_address",
        )
    })
}

/// The text with another name and address; None where its own lines are not all there. Ports stay.
fn replaced(text: &str, name: &str, address: &str) -> Option<String> {
    let mut found = 0;
    let mut line_of = |line: &str| -> Option<String> {
        let Some(own) = line.strip_suffix(OWN) else { return Some(line.to_owned()) };
        found += 1;
        let (key, value) = own.split_once(':')?;
        let value = value.trim().trim_matches('"');
        let value = if key == "name" { name.to_owned() } else { format!("{address}:{}", value.rsplit_once(':')?.1) };
        Some(format!("{key}: \"{value}\" {OWN}"))
    };
    let lines = text.lines().map(&mut line_of).collect::<Option<Vec<String>>>()?;
    (found == 5).then(|| lines.join("\n") + "\n")
}

/// For the owner alone: where root writes it, its group may read it, and only root changes it.
fn write(path: &Path, text: &str, owner: &Owner) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    let written = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        if root {
            chown(path, Some(0), Some(owner.gid))?;
            file.set_permissions(std::fs::Permissions::from_mode(0o640))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    written().with_context(|| format!("write {}", path.display()))
}

/// What the file's syntax does not tell: may the owner make the data, is the library there, does etcd answer?
fn check_paths(file: &Path, owner: &Owner) -> Result<()> {
    let config = crate::config::NodeConfig::load(file, std::iter::empty()).map_err(|errors| refuse(errors.to_string()))?;
    let data = &config.postgres.data_dir;
    if data.join("PG_VERSION").is_file() {
        print(format!("note: {} has data already: this node will take it as it is", data.display()))?;
    } else if std::fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(refuse_with(format!("{} is not empty, and no PostgreSQL data", data.display()), "name another data directory"));
    } else {
        let place = data.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
        let seen = std::fs::metadata(place).with_context(|| format!("look at {}", place.display()))?;
        let bits = if seen.uid() == owner.uid {
            0o300
        } else if seen.gid() == owner.gid {
            0o030
        } else {
            0o003
        };
        if owner.uid != 0 && (seen.mode() & bits != bits || !seen.is_dir()) {
            let make = format!("install -d -o {} -m 700 {}", owner.name, data.display());
            return Err(refuse_with(format!("{} may not make {}: {} is not theirs", owner.name, data.display(), place.display()), make));
        }
    }
    let library = config.postgres.bin_dir.with_file_name("lib").join("pg_tenure.so");
    if library.parent().is_some_and(Path::is_dir) && !library.is_file() {
        print(format!("note: {} is missing: install the extension pg_tenure for this PostgreSQL", library.display()))?;
    }
    let addresses = config.postgres.listen.hosts.iter().map(|host| (host.as_str(), config.postgres.listen.port, "postgresql.listen"));
    for (host, port, key) in addresses.chain([(config.rest.listen.host.as_str(), config.rest.listen.port, "restapi.listen")]) {
        if TcpListener::bind((host, port)).is_err_and(|why| why.kind() == ErrorKind::AddrInUse) {
            print(format!("note: {key}: something listens on port {port} already; end it, or give this node another port"))?;
        }
    }
    let answers = |endpoint: &String| {
        let address = endpoint.rsplit("//").next().unwrap_or_default().to_socket_addrs();
        address.is_ok_and(|mut found| found.any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()))
    };
    if !config.etcd.endpoints.iter().any(answers) {
        print(format!("note: etcd does not answer from here now: {}", config.etcd.endpoints.join(", ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(room: &Path) -> Args {
        let bin = room.join("bin");
        std::fs::create_dir(&bin).unwrap();
        for program in ["postgres", "pg_controldata", "initdb", "pg_basebackup", "pg_rewind"] {
            std::fs::write(bin.join(program), "").unwrap();
            std::fs::set_permissions(bin.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Args {
            file: room.join("n1.yml"),
            like: None,
            scope: Some("demo".to_owned()),
            name: Some("n1".to_owned()),
            address: Some("127.0.0.1".to_owned()),
            etcd: Some("127.0.0.1:1".to_owned()),
            data_dir: Some(room.join("data")),
            bin_dir: Some(bin),
            port: 5432,
            rest_port: 8008,
            owner: Some(own_name()),
        }
    }

    /// Of the user who runs the test; root's files are for somebody else.
    fn own_name() -> String {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let wanted = if uid == 0 { 65534 } else { uid };
        let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(wanted.to_string().as_str())).expect("a user");
        line.split(':').next().unwrap().to_owned()
    }

    #[test]
    fn what_it_writes_is_valid_closed_and_never_overwritten_and_the_next_node_is_like_it() {
        let room = tempfile::tempdir().unwrap();
        let mut args = arguments(room.path());
        std::fs::create_dir(args.data_dir.as_ref().unwrap()).unwrap();
        chown(args.data_dir.as_ref().unwrap(), Some(owner(args.owner.as_deref()).unwrap().uid), None).unwrap();
        run(&args).unwrap();
        let config = crate::config::NodeConfig::load(&args.file, std::iter::empty()).unwrap();
        assert_eq!(config.not_served, Vec::<String>::new());
        let passwords = &config.postgres.authentication;
        let revealed = passwords.superuser.password.as_ref().unwrap().reveal().to_owned();
        assert_eq!((revealed.len(), config.name.as_str()), (32, "n1"));
        assert_ne!(revealed, passwords.replication.password.as_ref().unwrap().reveal());
        assert!(!config.rest.is_open_to_everybody());
        let mode = std::fs::metadata(&args.file).unwrap().mode() & 0o777;
        assert!([0o600, 0o640].contains(&mode), "{mode:o}");
        assert!(run(&args).unwrap_err().to_string().contains("is there already"));

        args.like = Some(args.file.clone());
        args.file = room.path().join("n2.yml");
        (args.name, args.address) = (Some("n2".to_owned()), Some("::1".to_owned()));
        assert!(run(&args).unwrap_err().to_string().contains("--scope is taken from"));
        (args.scope, args.etcd, args.data_dir, args.bin_dir) = (None, None, None, None);
        run(&args).unwrap();
        let second = crate::config::NodeConfig::load(&args.file, std::iter::empty()).unwrap();
        assert_eq!((second.name.as_str(), second.postgres.connect_address.to_string().as_str()), ("n2", "[::1]:5432"));
        assert_eq!(second.postgres.authentication, config.postgres.authentication);
        assert_eq!(second.rest.authentication, config.rest.authentication);
        assert_eq!(second.scope, config.scope);
    }

    #[test]
    fn what_would_not_start_a_node_is_refused_and_leaves_no_file() {
        let room = tempfile::tempdir().unwrap();
        let good = arguments(room.path());
        let full = room.path().join("full");
        std::fs::create_dir(&full).unwrap();
        std::fs::write(full.join("letters"), "").unwrap();
        let with = |change: &dyn Fn(&mut Args)| {
            let mut args = Args { bin_dir: good.bin_dir.clone(), data_dir: good.data_dir.clone(), ..arguments_of(&good) };
            change(&mut args);
            let why = format!("{:#}", run(&args).unwrap_err());
            assert!(!args.file.exists(), "{why}");
            why
        };
        for (why, words) in [
            (with(&|args| args.data_dir = Some(full.clone())), "is not empty"),
            (with(&|args| args.data_dir = Some(PathBuf::from("here"))), "no absolute path"),
            (with(&|args| args.data_dir = Some(PathBuf::from("/proc/1/nowhere"))), "may not make"),
            (with(&|args| args.bin_dir = Some(room.path().join("nowhere"))), "there is no program"),
            (with(&|args| args.scope = Some("a b".to_owned())), "scope"),
            (with(&|args| args.name = Some("a/b".to_owned())), "name"),
            (with(&|args| args.address = Some("0.0.0.0".to_owned())), "no address that others"),
            (with(&|args| args.etcd = Some("a\"b".to_owned())), "has a character"),
            (with(&|args| args.like = Some(full.join("letters"))), "--scope is taken from"),
        ] {
            assert!(why.contains(words), "{words}: {why}");
        }
    }

    fn arguments_of(args: &Args) -> Args {
        Args {
            file: args.file.clone(),
            like: None,
            scope: args.scope.clone(),
            name: args.name.clone(),
            address: args.address.clone(),
            etcd: args.etcd.clone(),
            data_dir: None,
            bin_dir: None,
            port: args.port,
            rest_port: args.rest_port,
            owner: args.owner.clone(),
        }
    }

    #[test]
    fn only_a_nodes_own_lines_change() {
        let text = format!("name: \"n1\" {OWN}\nscope: s\n  listen: \"10.0.0.1:8008\" {OWN}\n  connect_address: \"10.0.0.1:8008\" {OWN}\n");
        assert_eq!(replaced(&text, "n2", "10.0.0.2"), None, "two are missing");
        let text = format!("{text}  listen: \"[::1]:5433\" {OWN}\n  connect_address: \"10.0.0.1:5433\" {OWN}\n# 10.0.0.1 stays\n");
        let after = replaced(&text, "n2", "10.0.0.2").unwrap();
        assert_eq!(after, text.replace("n1", "n2").replace("10.0.0.1:", "10.0.0.2:").replace("[::1]", "10.0.0.2"));
    }
}
