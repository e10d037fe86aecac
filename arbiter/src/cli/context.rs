//! What every command needs: which cluster, where its etcd is, how to ask a member, how to ask the operator.

use crate::cli::patronictl::Called;
use crate::ground::member_rest::Caller;
use crate::ground::secret::Secret;
use crate::ground::tls;
use anyhow::{Context as _, Result};
use cluster::citus::Groups;
use cluster::host::Address;
use cluster::name::{MemberName, Scope};
use cluster::view::ClusterView;
use dcs::key::Keys;
use dcs::{Dcs, Etcd};
use serde_json::{Map, Value};
use std::fmt;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A refusal for the operator: what happened, and what to do next.
#[derive(Debug)]
pub struct Refusal {
    /// One sentence.
    pub sentence: String,
    /// The next step, where there is one to name.
    pub hint: Option<String>,
    /// etcd does not answer: the members may.
    pub etcd_is_away: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Refusal {}

/// A refusal without a hint.
pub fn refuse(sentence: impl Into<String>) -> anyhow::Error {
    Refusal { sentence: sentence.into(), hint: None, etcd_is_away: false }.into()
}

/// A refusal that says what to do next.
pub fn refuse_with(sentence: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Refusal { sentence: sentence.into(), hint: Some(hint.into()), etcd_is_away: false }.into()
}

/// Text whose parts may come from etcd or from other members, for a terminal: a program that writes there must not speak to it. Lines and tabs
/// stay; other control characters, and those that turn the direction of writing, are shown by their numbers.
pub fn harmless(text: &str) -> String {
    let speaks = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().flat_map(|c| if speaks(c) { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Writes to standard output, without what a terminal would obey; a reader that went away (`| head`) is an error like any other, not a panic.
pub fn print(text: impl AsRef<str>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(harmless(text.as_ref()).as_bytes())?;
    if !text.as_ref().ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Now, as the field's tools print it: local time with five decimals.
pub fn timestamp() -> String {
    let text = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S%.6f").to_string();
    text[..text.len() - 1].to_owned()
}

/// Where the global options point.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// `--config-file`.
    pub file: Option<PathBuf>,
    /// `--dcs-url`.
    pub dcs_url: Option<String>,
    /// `--insecure`: certificates of members are not checked.
    pub insecure: bool,
    /// The tool's name, which says what words mean.
    pub called: Called,
}

/// The operator's tool, set up.
pub struct Tool {
    /// The scope of the configuration, where it names one.
    scope: Option<Scope>,
    namespace: String,
    /// The Citus group of the configuration.
    group: Option<u32>,
    settings: dcs::Settings,
    /// How the members' REST is asked.
    pub caller: Caller,
    /// The REST of the node whose file this is, and its name.
    pub rest: Option<String>,
    /// See `rest`.
    pub member: Option<String>,
    called: Called,
    /// How etcd's `/metrics` are asked, where etcd speaks TLS.
    pub etcd_tls: tls::Client,
    /// How members' certificates are looked at.
    pub member_tls: tls::Client,
    /// The certificates that the configuration itself names.
    pub own_certificates: Vec<PathBuf>,
    /// The superuser of a node's file: name and password.
    pub superuser: Option<(String, Option<Secret>)>,
}

/// One cluster, reached through its etcd.
pub struct Target {
    /// Its name.
    pub scope: Scope,
    /// The group of a Citus cluster that this is.
    pub group: Option<u32>,
    /// Its etcd.
    pub etcd: Arc<Etcd>,
}

impl Tool {
    /// Reads the configuration: a node's file or the tool's own; what the tool does not need is not looked at.
    pub fn load(source: &Source) -> Result<Tool> {
        let root = read(source.file.as_deref())?;
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut tool = Tool::from_tree(&root, source.dcs_url.as_deref(), source.insecure, environment)?;
        tool.called = source.called;
        Ok(tool)
    }

    fn from_tree(
        root: &Map<String, Value>,
        dcs_url: Option<&str>,
        insecure: bool,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Tool> {
        let variable = |name: &str| environment(&format!("TENURE_{name}")).or_else(|| environment(&format!("PATRONI_{name}")));
        let text = |section: &Value, key: &str| section.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        let url = dcs_url.map(str::to_owned).or_else(|| root.get("dcs_api").and_then(Value::as_str).map(str::to_owned));
        let scope = variable("SCOPE").or_else(|| root.get("scope").and_then(Value::as_str).map(str::to_owned));
        let scope = scope.map(|scope| Scope::new(&scope)).transpose()?;
        let mut namespace = variable("NAMESPACE").or_else(|| root.get("namespace").and_then(Value::as_str).map(str::to_owned));

        let empty = Value::Null;
        let section = root.get("etcd3").or_else(|| root.get("etcd")).unwrap_or(&empty);
        let mut etcd = |key: &str| {
            variable(&format!("ETCD3_{}", key.to_uppercase()))
                .or_else(|| variable(&format!("ETCD_{}", key.to_uppercase())))
                .or_else(|| text(section, key))
        };
        let endpoints = match &url {
            Some(url) => {
                let (endpoints, path) = parse_url(url)?;
                namespace = path.or(namespace);
                endpoints
            }
            None => endpoints(section, &mut etcd),
        };
        let pem = |path: Option<String>| path.map(|path| std::fs::read(&path).with_context(|| format!("read {path}"))).transpose();
        let etcd_tls = tls::Client {
            authority: etcd("cacert").map(PathBuf::from),
            identity: etcd("cert").map(|certificate| tls::Identity {
                certificate: certificate.into(),
                key: etcd("key").map(PathBuf::from),
                key_password: None,
            }),
            insecure: false,
        };
        let identity = match (pem(etcd("cert"))?, pem(etcd("key"))?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => None,
        };
        let settings = dcs::Settings {
            endpoints,
            user: etcd("username").map(|user| (user, etcd("password").unwrap_or_default())),
            ca_certificate: pem(etcd("cacert"))?,
            identity,
            // A person waits: long enough for a slow link, short enough to try the next endpoint.
            try_timeout: Duration::from_secs(3),
        };
        let credentials = |section: &str| {
            let section = root.get(section)?.get("authentication")?;
            Some((text(section, "username")?, Secret::new(text(section, "password")?)))
        };
        let from_environment =
            variable("RESTAPI_USERNAME").zip(variable("RESTAPI_PASSWORD")).map(|(user, password)| (user, Secret::new(password)));
        let group =
            root.get("citus").and_then(|citus| citus.get("group")).and_then(Value::as_u64).and_then(|group| u32::try_from(group).ok());
        let authentication = credentials("ctl").or(from_environment).or_else(|| credentials("restapi"));
        let superuser = root.get("postgresql").and_then(|section| section.get("authentication")?.get("superuser"));
        let superuser = superuser.and_then(|role| Some((text(role, "username")?, text(role, "password").map(Secret::new))));
        let mut tls = crate::config::load::ctl_of(root).tls;
        let own = [&etcd_tls, &tls].into_iter().filter_map(|tls| tls.identity.as_ref());
        let own_certificates: Vec<PathBuf> = own.map(|identity| identity.certificate.clone()).collect();
        tls.insecure |= insecure;
        Ok(Tool {
            scope,
            namespace: namespace.unwrap_or_else(|| "service".to_owned()),
            group,
            settings,
            superuser,
            rest: rest_of(root, variable("RESTAPI_CONNECT_ADDRESS")),
            member: root.get("name").and_then(Value::as_str).map(str::to_owned),
            called: Called::default(),
            etcd_tls,
            member_tls: tls.clone(),
            own_certificates,
            caller: Caller::new(authentication, Some(tls.load().context("set up TLS for the members' REST (section ctl)")?))
                .only_over_tls(tls.is_set()),
        })
    }

    /// Is this word the configured cluster's name?
    pub fn is_scope(&self, word: &str) -> bool {
        self.scope.as_ref().is_some_and(|scope| scope.as_str() == word)
    }

    /// The configured cluster's name.
    pub fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Where the keys of all clusters are.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// etcd as it is reached, whatever cluster it is asked about.
    pub fn store(&self) -> Result<Etcd> {
        let scope = self.scope.clone().map_or_else(|| Scope::new("any"), Ok)?;
        if self.settings.endpoints.is_empty() {
            return Err(no_etcd());
        }
        Ok(Etcd::new(Keys::new(&self.namespace, &scope), self.settings.clone()))
    }

    /// The Citus group of the configuration: a node's file has its own.
    pub fn group(&self) -> Option<u32> {
        self.group
    }

    /// The cluster of this name, or the configured one.
    pub fn target(&self, cluster: Option<&str>, group: Option<u32>) -> Result<Target> {
        let scope = match cluster {
            Some(name) => Scope::new(name)?,
            None => self
                .scope
                .clone()
                .ok_or_else(|| refuse_with("no cluster is named", "give its name, or a configuration file with `scope` (-c FILE)"))?,
        };
        if self.settings.endpoints.is_empty() {
            return Err(no_etcd());
        }
        let keys = Keys::new(&self.namespace, &scope);
        let group = group.or(self.group);
        let keys = match group {
            Some(group) => keys.group(group),
            None => keys,
        };
        Ok(Target { scope, group, etcd: Arc::new(Etcd::new(keys, self.settings.clone())) })
    }

    /// As [`Tool::target`], but all groups of a Citus cluster where none is named, also where the configuration is one group's.
    pub fn target_of_all(&self, cluster: Option<&str>, group: Option<u32>) -> Result<Target> {
        let mut target = self.target(cluster, group)?;
        if group.is_none() {
            target.etcd = Arc::new(target.etcd.seen_as(Keys::new(&self.namespace, &target.scope)));
            target.group = None;
        }
        Ok(target)
    }

    /// `[CLUSTER] [MEMBER...]`: the first word is the cluster if it is the configured one's name or if none
    /// is configured; as patronictl, always.
    pub fn cluster_and_members<'a>(&self, words: &'a [String]) -> (Option<&'a str>, &'a [String]) {
        match words.split_first() {
            Some((first, rest)) if self.called == Called::Patronictl || self.scope.is_none() || self.is_scope(first) => {
                (Some(first.as_str()), rest)
            }
            _ => (None, words),
        }
    }
}

impl Target {
    /// The groups of a Citus cluster; none where it is not one.
    pub async fn groups(&self) -> Result<Groups> {
        self.etcd.load_groups().await.map_err(unreachable_store)
    }

    /// Reads the cluster; a scope without any key is an error, as nobody means an empty cluster.
    pub async fn view(&self) -> Result<ClusterView> {
        let view = Box::pin(self.etcd.load_view()).await.map_err(unreachable_store)?;
        if view.members.is_empty() && view.initialize.is_none() && view.config.is_none() && view.leader.is_none() {
            return Err(refuse_with(
                format!("there is no cluster {} under {}", self.scope, self.etcd.keys().prefix()),
                "check the scope and the namespace, and that a node was started",
            ));
        }
        Ok(view)
    }
}

fn no_etcd() -> anyhow::Error {
    refuse_with("no etcd is configured", "give -d etcd3://HOST:2379, or a configuration file with an `etcd3` section (-c FILE)")
}

/// etcd's own error, for the operator.
pub fn unreachable_store(error: dcs::Error) -> anyhow::Error {
    let hint = "check that etcd runs and that -d or the `etcd3` section of the configuration names it";
    Refusal { sentence: error.to_string(), hint: Some(hint.to_owned()), etcd_is_away: matches!(error, dcs::Error::Unreachable(_)) }.into()
}

/// Where the REST of the node with this file is.
fn rest_of(root: &Map<String, Value>, from_environment: Option<String>) -> Option<String> {
    let section = root.get("restapi");
    let word = |key: &str| section?.get(key)?.as_str().map(str::to_owned);
    let given = from_environment.or_else(|| word("connect_address")).or_else(|| word("listen"))?;
    let mut address = Address::parse(&given, 8008).ok()?;
    if address.is_wildcard() {
        address.host = "127.0.0.1".to_owned();
    }
    let protocol = if word("certfile").is_some() { "https" } else { "http" };
    Some(format!("{protocol}://{address}/patroni"))
}

fn default_file() -> Option<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(home.join("patroni/patronictl.yaml"))
}

fn read(file: Option<&Path>) -> Result<Map<String, Value>> {
    let path = match file {
        Some(path) => path.to_owned(),
        None => match default_file().filter(|path| path.exists()) {
            Some(path) => path,
            None => return Ok(Map::new()),
        },
    };
    let mut root = Map::new();
    for file in files(&path)? {
        let text = std::fs::read_to_string(&file).map_err(|error| {
            refuse_with(
                format!("Provided config file {} not existing or no read rights: {error}", file.display()),
                "check the -c/--config-file option",
            )
        })?;
        match serde_saphyr::from_str::<Value>(&text).with_context(|| format!("understand {}", file.display()))? {
            Value::Object(tree) => root.extend(tree),
            Value::Null => {}
            _ => return Err(refuse(format!("{} is not a map of settings", file.display()))),
        }
    }
    Ok(root)
}

/// The file itself, or the `*.yml` and `*.yaml` of a directory by name.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
    let is_yaml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml");
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_yaml).collect();
    files.sort();
    Ok(files)
}

/// `etcd3://host:port,host:port/namespace`; the scheme may be left out, `https` means TLS.
fn parse_url(url: &str) -> Result<(Vec<String>, Option<String>)> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("etcd3", url));
    let scheme = match scheme {
        "etcd" | "etcd3" | "http" => "http",
        "https" | "etcds" => "https",
        other => {
            return Err(refuse_with(format!("\"{other}\" in {url} is no store that tenure knows"), "give etcd3://HOST:PORT/NAMESPACE"));
        }
    };
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let endpoints = hosts.split(',').map(str::trim).filter(|host| !host.is_empty()).map(|host| with_port(scheme, host)).collect();
    let path = path.trim_matches('/');
    Ok((endpoints, (!path.is_empty()).then(|| path.to_owned())))
}

fn with_port(scheme: &str, host: &str) -> String {
    if host.contains("://") {
        return host.trim_end_matches('/').to_owned();
    }
    // What is no address is refused where it is connected to, by what was given.
    Address::parse(host, 2379).map_or_else(|_| format!("{scheme}://{host}"), |address| format!("{scheme}://{address}"))
}

fn endpoints(section: &Value, etcd: &mut impl FnMut(&str) -> Option<String>) -> Vec<String> {
    let scheme = etcd("protocol").unwrap_or_else(|| "http".to_owned());
    if let Some(url) = etcd("url") {
        return vec![url.trim_end_matches('/').to_owned()];
    }
    let listed = match section.get("hosts").and_then(Value::as_array) {
        Some(hosts) => hosts.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>(),
        None => etcd("hosts")
            .map(|hosts| hosts.trim_matches(['[', ']']).split(',').map(|host| host.trim().trim_matches(['\'', '"']).to_owned()).collect())
            .unwrap_or_default(),
    };
    let hosts = if listed.is_empty() { etcd("host").into_iter().collect() } else { listed };
    hosts.iter().filter(|host| !host.is_empty()).map(|host| with_port(&scheme, host)).collect()
}

/// True where somebody can be asked.
pub fn interactive() -> bool {
    std::io::stdin().is_terminal()
}

/// Without a terminal nobody can answer: says which option stands for the answers.
pub fn must_be_interactive(what: &str) -> Result<()> {
    if interactive() {
        return Ok(());
    }
    Err(refuse_with(
        format!("{what} asks for confirmation, and standard input is no terminal"),
        "use --force to go ahead without questions",
    ))
}

/// Asks; an empty answer is the default.
pub fn ask(question: &str, default: &str) -> Result<String> {
    let mut out = std::io::stdout().lock();
    write!(out, "{} [{}]: ", harmless(question), harmless(default))?;
    out.flush()?;
    let mut answer = String::new();
    if std::io::stdin().read_line(&mut answer)? == 0 {
        return Err(refuse("Aborted!"));
    }
    let answer = answer.trim();
    Ok(if answer.is_empty() { default.to_owned() } else { answer.to_owned() })
}

/// Asks for yes or no; no is the default.
pub fn confirm(question: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    write!(out, "{} [y/N]: ", harmless(question))?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// The words of a role option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RoleFilter {
    Leader,
    #[value(alias = "master")]
    Primary,
    StandbyLeader,
    Replica,
    Standby,
    Any,
}

impl RoleFilter {
    /// Does this member have the role?
    pub fn takes(self, view: &ClusterView, name: &MemberName) -> bool {
        use crate::ground::present::Role;
        let role = crate::ground::present::role(view, name);
        match self {
            RoleFilter::Any => true,
            RoleFilter::Leader => role.leads(),
            RoleFilter::Primary => role == Role::Leader,
            RoleFilter::StandbyLeader => role == Role::StandbyLeader,
            RoleFilter::Replica | RoleFilter::Standby => !role.leads(),
        }
    }
}

/// The members named, all that have the role, or who the operator then names.
pub fn choose_members(
    view: &ClusterView,
    cluster: &str,
    named: &[String],
    role: Option<RoleFilter>,
    action: &str,
) -> Result<Vec<MemberName>> {
    if view.members.is_empty() {
        return Err(refuse(format!("{cluster} cluster doesn't have any members")));
    }
    let known = |word: &str| {
        let name = view.members.keys().find(|name| name.as_str() == word).cloned();
        name.ok_or_else(|| refuse_with(format!("{word} is not a member of cluster {cluster}"), "`tenure list` shows who is"))
    };
    let mut chosen = named.iter().map(|word| known(word)).collect::<Result<Vec<_>>>()?;
    if let Some(role) = role {
        if named.is_empty() {
            chosen = view.members.keys().cloned().collect();
        }
        chosen.retain(|name| role.takes(view, name));
        if chosen.is_empty() {
            return Err(refuse(format!("No {role:?} among provided members")));
        }
    } else if chosen.is_empty() && action != "reinitialize" {
        // As people know it: no member named means all of them. A new copy of the data is never made that way.
        chosen = view.members.keys().cloned().collect();
    } else if chosen.is_empty() {
        if !interactive() {
            return Err(refuse_with(format!("no member to {action} is named"), "name the members"));
        }
        let names = view.members.keys().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
        chosen = vec![known(&ask(&format!("Which member do you want to {action} [{names}]?"), "")?)?];
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_etcd_does_not_speak_to_a_terminal() {
        for (text, shown) in [
            ("a line\n\tand another", "a line\n\tand another"),
            ("\u{1b}]0;owned\u{7}\u{1b}[2Jx", "\\u{1b}]0;owned\\u{7}\\u{1b}[2Jx"),
            ("\u{9b}31m\rx\u{7f}", "\\u{9b}31m\\rx\\u{7f}"),
            ("gro\u{df} \u{202e}x", "gro\u{df} \\u{202e}x"),
        ] {
            assert_eq!(harmless(text), shown);
        }
    }

    fn tool(yaml: &str, url: Option<&str>, environment: &[(&str, &str)]) -> Tool {
        let Value::Object(root) = serde_saphyr::from_str(yaml).unwrap() else { panic!("no map") };
        Tool::from_tree(&root, url, false, |name| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
            .unwrap()
    }

    #[test]
    fn etcd_is_found_however_it_is_written() {
        for (yaml, url, expected) in [
            ("etcd3: {host: 'a:1'}", None, vec!["http://a:1"]),
            ("etcd3: {hosts: 'a:1, b'}", None, vec!["http://a:1", "http://b:2379"]),
            ("etcd: {hosts: [a, 'b:3'], protocol: https}", None, vec!["https://a:2379", "https://b:3"]),
            ("etcd3: {url: 'https://a:1/'}", None, vec!["https://a:1"]),
            ("dcs_api: 'etcd3://a:1,b/my'", None, vec!["http://a:1", "http://b:2379"]),
            ("etcd3: {host: 'a:1'}", Some("https://[::1]:4"), vec!["https://[::1]:4"]),
            ("x: 1", Some("h"), vec!["http://h:2379"]),
        ] {
            assert_eq!(tool(yaml, url, &[]).settings.endpoints, expected, "{yaml}");
        }
        assert_eq!(tool("dcs_api: 'etcd3://a:1,b/my'", None, &[]).namespace, "my");
        assert_eq!(tool("scope: x", None, &[("PATRONI_ETCD3_HOSTS", "'p:1','q:2'")]).settings.endpoints, ["http://p:1", "http://q:2"]);
    }

    #[test]
    fn a_whole_nodes_file_is_as_good_as_the_tools_own() {
        let mut tool = tool(
            "{scope: demo, namespace: /db/, name: n1, nonsense: 1, restapi: {listen: '0.0.0.0:9', authentication: {username: u, password: p}}, citus: {group: 2}}",
            None,
            &[],
        );
        assert_eq!((tool.rest.as_deref(), tool.member.as_deref()), (Some("http://127.0.0.1:9/patroni"), Some("n1")));
        assert_eq!(tool.scope.as_ref().map(Scope::as_str), Some("demo"));
        assert_eq!((tool.group, tool.caller.credentials()), (Some(2), Some(("u", "p"))));
        let words = ["demo", "n1"].map(str::to_owned);
        assert_eq!(tool.cluster_and_members(&words), (Some("demo"), &words[1..]));
        assert_eq!(tool.cluster_and_members(&words[1..]), (None, &words[1..]));
        tool.called = Called::Patronictl;
        assert_eq!(tool.cluster_and_members(&words[1..]), (Some("n1"), &words[2..]));
    }
}
