//! What this node's Postgres is set to, and why: one pure function of the node's file, the dynamic configuration, the cluster, and what the
//! server is to be. `configuration.rs` writes it.

use crate::config::NodeConfig;
use crate::config::ServerRole;
use crate::node::known::{Known, LeftOut};
use crate::node::paths::{etcd_password_file, wake_socket};
use crate::node::{citus, slots};
use crate::postgres::conf::{self, Contribution, Parameters, Recovery, parameters_of};
use crate::postgres::facts::ServerFacts;
use cluster::admission::{Admission, Section, admission, is_name};
use cluster::config::{DynamicConfig, SynchronousMode};
use cluster::mark::Identity;
use cluster::pending::{self, Pending};
use cluster::quorum::Setting;
use cluster::view::ClusterView;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The parameters of a section of a document, in small letters.
fn section_of(document: &DynamicConfig, section: &str) -> BTreeMap<String, String> {
    let section = document.postgresql().and_then(|map| map.get(section)).and_then(Value::as_object);
    section.map(parameters_of).unwrap_or_default()
}

/// The dynamic parameters in this section (`parameters`, or one of a role) that count here. What could be more than a value counts only
/// where this node's own file says the same: in `postgresql.parameters`, in the same section of the role, or in its `bootstrap.dcs`.
fn admitted(
    config: &NodeConfig,
    dynamic: &DynamicConfig,
    known: &Known,
    section: &str,
    local: &BTreeMap<String, String>,
    left_out: &mut LeftOut,
) -> BTreeMap<String, String> {
    let own = DynamicConfig(config.bootstrap.dcs.clone());
    let said = [config.postgres.parameters.clone(), local.clone(), section_of(&own, "parameters"), section_of(&own, section)];
    let judged = |name: &String, value: &String| {
        let said = || said.iter().any(|said| said.get(name) == Some(value));
        match admission(Section::Parameters, name, value, &known.catalogue) {
            Admission::Counts => None,
            Admission::OwnFile(_) if said() => None,
            other => Some(other.to_string()),
        }
    };
    let mut parameters = section_of(dynamic, section);
    parameters.retain(|name, value| match judged(name, value).or_else(|| refusal(known, name, value)) {
        None => true,
        Some(why) => {
            left_out.insert(format!("postgresql.{section}.{}", shown(name)), why);
            false
        }
    });
    parameters
}

/// From PostgreSQL 18 on it would take away the slots of members that are away, and a setting of the server can't spare some slots.
const IDLE_SLOTS: &str = "idle_replication_slot_timeout";

/// What the server said to exactly this before, or why it is not asked.
fn refusal(known: &Known, name: &str, value: &str) -> Option<String> {
    if name == IDLE_SLOTS && value.trim_start_matches('0').chars().next().is_some_and(|c| c.is_ascii_digit() || c == '.') {
        return Some("it would take the slots away of members that are down; member_slots_ttl says how long these are kept".to_owned());
    }
    let said = known.refused.get(&(name.to_owned(), value.to_owned()))?;
    Some(format!("the server would refuse it: {said}"))
}

/// A name that is none must not end the line that complains of it.
fn shown(name: &str) -> String {
    name.escape_default().to_string()
}

/// The file's own parameters but for those that the server would not take.
fn taken(known: &Known, section: &str, local: &BTreeMap<String, String>, left_out: &mut LeftOut) -> BTreeMap<String, String> {
    let mut parameters = local.clone();
    parameters.retain(|name, value| {
        let why = match is_name(name) {
            true => refusal(known, name, value),
            false => Some("that is no name of a PostgreSQL parameter".to_owned()),
        };
        if let Some(why) = &why {
            left_out.insert(format!("postgresql.{section}.{} of this node's file", shown(name)), why.clone());
        }
        why.is_none()
    });
    parameters
}

/// What is left out here, of every role's sections and of recovery's.
pub fn left_out(config: &NodeConfig, dynamic: &DynamicConfig, known: &Known) -> LeftOut {
    let postgres = &config.postgres;
    let mut left_out = crate::node::recovery::left_out(config, dynamic, known);
    let sections = std::iter::once(("parameters".to_owned(), &postgres.parameters))
        .chain(ServerRole::ALL.map(|role| (format!("parameters_{role}"), postgres.parameters_by_role.of(role))));
    for (section, local) in sections {
        admitted(config, dynamic, known, &section, local, &mut left_out);
        taken(known, &section, local, &mut left_out);
    }
    left_out
}

/// All that decides what a server is set to, besides what is known of the program.
#[derive(Debug, Clone, Copy)]
pub struct Basis<'a> {
    /// The node's file.
    pub config: &'a NodeConfig,
    /// The cluster.
    pub view: &'a ClusterView,
    /// A primary, or whom it follows.
    pub recovery: &'a Recovery,
    /// Whom its commits are to wait for, where the cluster says so; None where that is left to what the server was set to before.
    pub synchronous: Option<&'a Setting>,
    /// The node is about to leave its cluster.
    pub leaving: bool,
    /// The release of the data directory, where there is one.
    pub major: Option<u32>,
}

/// The dynamic configuration, or the one of the file while there is none in etcd.
pub fn dynamic(config: &NodeConfig, view: &ClusterView) -> DynamicConfig {
    view.config.as_ref().map_or_else(|| DynamicConfig(config.bootstrap.dcs.clone()), |entry| entry.value.clone())
}

/// In recovery, this node leads a standby cluster.
pub fn leads_standby_cluster(config: &NodeConfig, view: &ClusterView) -> bool {
    view.leader_if(&config.name).is_some() && view.is_standby_cluster()
}

/// The role whose sections count.
pub fn role(config: &NodeConfig, view: &ClusterView, recovery: &Recovery) -> ServerRole {
    match recovery {
        Recovery::None => ServerRole::Primary,
        Recovery::Standby { .. } if leads_standby_cluster(config, view) => ServerRole::StandbyLeader,
        Recovery::Standby { .. } => ServerRole::Replica,
    }
}

/// What the server is set to: same facts, same settings.
pub fn of(basis: &Basis<'_>, known: &Known) -> Parameters {
    let Basis { config, view, recovery, synchronous, leaving, major } = *basis;
    let dynamic = dynamic(config, view);
    let mut parameters = parameters(config, &dynamic, known, role(config, view, recovery));
    // Where the cluster does not manage synchronous standbys, the user's own setting stands.
    let managed = |setting: &&Setting| dynamic.synchronous_mode() != SynchronousMode::Off || setting.count > 0;
    if let Some(setting) = synchronous.filter(managed) {
        parameters.own.insert("synchronous_standby_names".to_owned(), setting.to_string());
    }
    if leaving {
        parameters.own.insert("tenure.member".to_owned(), member_leaving(config).to_string());
    }
    // The leader is primary, or is being promoted.
    let leads = *recovery == Recovery::None || view.leader_if(&config.name).is_some();
    parameters.take_in(citus::by_role(config, leads, &parameters));
    parameters.take_in(slots::settings(major, &dynamic));
    parameters.slots_database = slots::kept_by_server(major, &parameters).then(|| config.postgres.database.clone());
    parameters
}

/// The settings of this node's server in this role under this dynamic configuration, whichever member leads.
pub fn parameters(config: &NodeConfig, dynamic: &DynamicConfig, known: &Known, role: ServerRole) -> Parameters {
    let addresses = config.postgres.listen.addresses();
    let identity = conf::Identity { scope: config.scope.as_str(), listen_addresses: &addresses, port: config.postgres.listen.port };
    let postgres = &config.postgres;
    // Told where all of it is asked for: `left_out`.
    let told = &mut LeftOut::new();
    let mut parameters = Parameters::settle(
        &identity,
        &taken(known, "parameters", &postgres.parameters, told),
        &admitted(config, dynamic, known, "parameters", &postgres.parameters, told),
    );
    let of_role = postgres.parameters_by_role.of(role);
    let section = format!("parameters_{role}");
    parameters.overlay(admitted(config, dynamic, known, &section, of_role, told));
    parameters.overlay(taken(known, &section, of_role, told));
    parameters.take_in(tenure(config, dynamic));
    parameters.take_in(citus::settings(config, &parameters));
    parameters
}

/// The settings that the running server has otherwise than its next start would.
pub fn pending(config: &NodeConfig, dynamic: &DynamicConfig, known: &Known, facts: &ServerFacts) -> Pending {
    let mut pending = Pending::new();
    for setting in &facts.pending_restart {
        pending::note(&mut pending, &setting.name, &setting.value, setting.wanted.as_deref().unwrap_or(""));
    }
    // The command line is the same in every role.
    for (name, wanted) in &parameters(config, dynamic, known, ServerRole::Primary).argv {
        if let Some(running) = facts.on_command_line.get(name) {
            pending::note(&mut pending, name, running, wanted);
        }
    }
    pending
}

fn tenure(config: &NodeConfig, dynamic: &DynamicConfig) -> Contribution {
    let text = |path: &std::path::Path| path.display().to_string();
    let mut ours = Contribution::default();
    for (name, value) in [
        ("tenure.scope", config.scope.to_string()),
        ("tenure.namespace", config.namespace.clone()),
        ("tenure.name", config.name.to_string()),
    ] {
        ours.argv.insert(name, value);
    }
    // Without the primary a standby asks again every 5 s by default; a new primary should not wait that long for its standbys.
    ours.unless_given.insert("wal_retrieve_retry_interval", "1s".to_owned());
    let mut set = |name: &'static str, value: String| ours.own.insert(name, value);
    set("tenure.etcd_endpoints", config.etcd.endpoints.join(","));
    set("tenure.member", member(config).to_string());
    set("tenure.wake_socket", text(&wake_socket(config)));
    set("tenure.ttl", format!("{}s", dynamic.timing().ttl.as_secs()));
    if let Some(cacert) = &config.etcd.cacert {
        set("tenure.etcd_cacert", text(cacert));
    }
    if let Some((certificate, key)) = &config.etcd.client_certificate {
        set("tenure.etcd_cert", text(certificate));
        set("tenure.etcd_key", text(key));
    }
    if let Some(user) = &config.etcd.username {
        set("tenure.etcd_username", user.clone());
        set("tenure.etcd_password_file", text(&etcd_password_file(config)));
    }
    ours
}

/// Who this node is.
pub fn identity(config: &NodeConfig) -> Identity {
    Identity {
        scope: config.scope.to_string(),
        namespace: config.namespace.clone(),
        name: config.name.to_string(),
        group: config.citus.as_ref().map(|citus| citus.group),
    }
}

/// The addresses and tags that stand in this node's member key.
pub fn member(config: &NodeConfig) -> Value {
    let mut member = json!({
        "conn_url": format!("postgres://{}/{}", config.postgres.connect_address, config.postgres.database),
        "api_url": format!("{}/patroni", config.rest.url()),
        "version": dcs::SURFACE_VERSION,
        "state": "stopped",
        "role": "uninitialized",
    });
    if let Some(fields) = member.as_object_mut() {
        if !config.tags.is_empty() {
            fields.insert("tags".to_owned(), Value::Object(config.tags.clone()));
        }
        if let Some(proxy) = &config.postgres.proxy_address {
            fields.insert("proxy_url".to_owned(), json!(format!("postgres://{proxy}/{}", config.postgres.database)));
        }
    }
    member
}

/// As [`member`], on its way out: not to be a synchronous standby any more.
pub fn member_leaving(config: &NodeConfig) -> Value {
    let mut member = member(config);
    member["tags"]["nosync"] = json!(true);
    member["tags"]["sync_priority"] = json!(0);
    member
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::leader::{Leader, LeaseId, Term};
    use cluster::name::MemberName;
    use cluster::parameter::Catalogue;
    use cluster::versioned::Versioned;

    /// What a node's file says besides what each has to say, at the top and below `postgresql`.
    fn node(top: &str, below: &str) -> NodeConfig {
        let room = tempfile::tempdir().unwrap();
        let file = room.path().join("node.yml");
        std::fs::write(room.path().join("postgres"), "").unwrap();
        let text = format!(
            "scope: s\nname: n1\nrestapi: {{listen: 127.0.0.1:1, connect_address: 127.0.0.1:1}}\netcd3: {{host: 127.0.0.1:2}}\n{top}\n\
            postgresql: {{listen: 127.0.0.1:3, connect_address: 127.0.0.1:3, data_dir: /nowhere/data, bin_dir: {},\n\
            \x20 authentication: {{superuser: {{username: p}}, replication: {{username: r}}}}{below}}}\n",
            room.path().display()
        );
        std::fs::write(&file, text).unwrap();
        NodeConfig::load(&file, std::iter::empty()).unwrap()
    }

    fn view(leads: bool, dynamic: Value) -> ClusterView {
        let leader = Leader { name: MemberName::new("n1").unwrap(), lease: LeaseId(1), term: Term(7) };
        let value = DynamicConfig(dynamic.as_object().unwrap().clone());
        ClusterView { leader: leads.then_some(leader), config: Some(Versioned { value, revision: 1 }), ..ClusterView::default() }
    }

    /// One server, described by what decides.
    struct Case {
        config: NodeConfig,
        leads: bool,
        dynamic: Value,
        standby: bool,
        synchronous: Option<&'static str>,
        leaving: bool,
        major: Option<u32>,
    }

    impl Case {
        fn of(config: NodeConfig) -> Case {
            Case { config, leads: false, dynamic: json!({}), standby: false, synchronous: None, leaving: false, major: Some(17) }
        }

        fn settled(&self) -> Parameters {
            let standby = Recovery::Standby { primary_conninfo: None, primary_slot_name: None, extra: BTreeMap::new() };
            let recovery = if self.standby { standby } else { Recovery::None };
            let synchronous = self.synchronous.map(|text| Setting::read(text).unwrap());
            let view = view(self.leads, self.dynamic.clone());
            let basis = Basis {
                config: &self.config,
                view: &view,
                recovery: &recovery,
                synchronous: synchronous.as_ref(),
                leaving: self.leaving,
                major: self.major,
            };
            let known = Known::default();
            assert_eq!(of(&basis, &known), of(&basis, &known));
            of(&basis, &known)
        }

        #[track_caller]
        fn is(&self, name: &str, wanted: Option<&str>) {
            let Parameters { file, argv, own, .. } = self.settled();
            // What stands last counts: on the command line, then ours, then the rest of the file.
            let found = argv.get(name).or(own.get(name)).or(file.get(name));
            assert_eq!(found.map(String::as_str), wanted, "{name}");
        }
    }

    #[test]
    fn synchronous_standbys_are_the_clusters_only_where_it_manages_them() {
        const NAMES: &str = "synchronous_standby_names";
        let users_own = || node("", ", parameters: {synchronous_standby_names: theirs}");
        for (mode, given, wanted) in [
            ("off", None, "theirs"),
            ("off", Some(""), "theirs"),
            // What the server began with stands until the steps have taken it back.
            ("off", Some("FIRST 1 (n2)"), "given"),
            ("on", Some("FIRST 1 (n2)"), "given"),
            ("on", Some(""), "given"),
            ("on", None, "theirs"),
            ("quorum", Some("ANY 1 (n2,n3)"), "given"),
        ] {
            let case = Case { synchronous: given, dynamic: json!({"synchronous_mode": mode}), ..Case::of(users_own()) };
            let given = case.synchronous.map(|text| Setting::read(text).unwrap().to_string());
            case.is(NAMES, Some(if wanted == "theirs" { wanted.to_owned() } else { given.unwrap() }.as_str()));
        }
    }

    #[test]
    fn a_roles_section_counts_in_that_role_only() {
        let roles = || {
            node(
                "",
                ", parameters_primary: {work_mem: 9MB}, parameters_replica: {work_mem: 5MB}, parameters_standby_leader: {work_mem: 7MB}",
            )
        };
        for (standby, leads, dynamic, wanted) in [
            (false, true, json!({}), "9MB"),
            (true, false, json!({}), "5MB"),
            // About to be promoted, it is a standby still.
            (true, true, json!({}), "5MB"),
            (true, true, json!({"standby_cluster": {"host": "h"}}), "7MB"),
        ] {
            Case { standby, leads, dynamic, ..Case::of(roles()) }.is("work_mem", Some(wanted));
        }
    }

    #[test]
    fn a_coordinators_standby_reads_from_standbys_until_it_leads() {
        const READS: &str = "citus.use_secondary_nodes";
        let citus = |group: u32| node(&format!("citus: {{group: {group}, database: app}}"), "");
        for (group, standby, leads, wanted) in
            [(0, true, false, Some("always")), (0, true, true, Some("never")), (0, false, false, Some("never")), (1, true, false, None)]
        {
            let case = Case { standby, leads, ..Case::of(citus(group)) };
            case.is(READS, wanted);
            case.is("wal_level", Some("logical"));
            case.is("shared_preload_libraries", Some("citus,pg_tenure"));
            case.is("max_prepared_transactions", Some("200"));
        }
        let told = node("citus: {group: 0, database: app}", ", parameters: {citus.use_secondary_nodes: never}");
        let case = Case { standby: true, ..Case::of(told) };
        case.is(READS, Some("never"));
        case.is("tenure.sessions_read_only", None);
        Case::of(node("", "")).is("wal_level", Some("replica"));
    }

    #[test]
    fn logical_slots_ask_for_what_keeps_their_copies() {
        let slots = json!({"slots": {"s": {"type": "logical", "database": "app", "plugin": "pgoutput"}}});
        for (major, by_itself) in [(Some(16), false), (Some(17), true), (None, false)] {
            let case = Case { dynamic: slots.clone(), major, standby: true, ..Case::of(node("", "")) };
            case.is("hot_standby_feedback", Some("on"));
            case.is("sync_replication_slots", by_itself.then_some("on"));
            assert_eq!(case.settled().slots_database.is_some(), by_itself, "{major:?}");
        }
        let none = Case::of(node("", ""));
        none.is("hot_standby_feedback", None);
        assert_eq!(none.settled().slots_database, None);
        let users_own = Case::of(node("", ", parameters: {sync_replication_slots: 'yes'}"));
        assert!(users_own.settled().slots_database.is_some());
    }

    #[test]
    fn a_node_on_its_way_out_says_that_it_is_not_to_be_synchronous() {
        for leaving in [false, true] {
            let case = Case { leaving, ..Case::of(node("", "")) };
            let member = &case.settled().own["tenure.member"];
            assert_eq!(member.contains("nosync"), leaving, "{member}");
        }
    }

    #[test]
    fn what_runs_code_counts_only_where_the_nodes_own_file_says_the_same() {
        let config = node("bootstrap: {dcs: {postgresql: {parameters: {archive_command: own}}}}", "");
        let text = "archive_command\tsighup\tx\tSTRING\nrestore_command\tsighup\tx\tSTRING\nwork_mem\tuser\tx\tINTEGER\n";
        let known = Known { catalogue: Catalogue::described(text).into(), ..Known::default() };
        for (archive_command, counts) in [("own", true), ("foreign", false)] {
            let parameters = json!({"archive_command": archive_command, "restore_command": "foreign", "work_mem": "8MB"});
            let document = json!({"postgresql": {"parameters": parameters}});
            let dynamic = DynamicConfig(document.as_object().unwrap().clone());
            let settled = super::parameters(&config, &dynamic, &known, ServerRole::Primary).file;
            assert_eq!(settled.get("archive_command").map(String::as_str), counts.then_some("own"));
            assert!(!settled.contains_key("restore_command"));
            assert_eq!(settled.get("work_mem").map(String::as_str), Some("8MB"));
            assert_eq!(left_out(&config, &dynamic, &known).contains_key("postgresql.parameters.archive_command"), !counts);
        }
    }

    #[test]
    fn the_server_lets_no_slot_go_for_being_idle() {
        for (value, left_out) in [("0", false), ("0s", false), ("1d", true), ("90", true), ("0.5h", true), ("-1", false)] {
            assert_eq!(refusal(&Known::default(), "idle_replication_slot_timeout", value).is_some(), left_out, "{value}");
        }
    }
}
