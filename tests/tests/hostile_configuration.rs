//! A user who may write the dynamic configuration does not become the user that runs PostgreSQL: what it says is data.

use serde_json::{Value, json};
use std::path::Path;
use stories::cluster::{Cluster, PATIENCE};
use stories::node::Node;
use stories::view;
use stories::wait::{self, seconds};

/// Writes the whole key `config`, as somebody with access to etcd does it: no check of ours is in the way.
async fn write_config(cluster: &Cluster, change: impl FnOnce(&mut Value)) {
    let view = cluster.view().await.expect("look");
    let mut config: Value = serde_json::from_str(view.key("config").expect("a configuration")).expect("JSON");
    change(&mut config);
    cluster.etcd.put(&format!("{}config", view::prefix()), &config.to_string()).await.expect("write config");
}

/// Waits until this node's server has that value: what is written with it has been looked at, too.
async fn has(node: &Node, setting: &str, value: &str) {
    wait::until(&format!("{} to have {setting} = {value}", node.name()), PATIENCE, async || {
        let found = node.one(&format!("SELECT current_setting('{setting}')")).await.map_err(|error| format!("{error:#}"))?;
        if found == value { Ok(()) } else { Err(found) }
    })
    .await;
}

fn files(node: &Node) -> String {
    ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"]
        .iter()
        .map(|file| std::fs::read_to_string(node.data_dir().join(file)).unwrap_or_default())
        .collect()
}

#[tokio::test]
async fn whoever_writes_the_configuration_into_etcd_runs_no_code_and_reads_no_file() {
    let cluster = Cluster::of(2).ttl(5).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let there = cluster.room.path().join("attack");
    std::fs::create_dir(&there).expect("make a directory");
    let hostile = there.join("hostile.conf");
    std::fs::write(&hostile, "session_preload_libraries = 'nothing_like_it'\nwork_mem = '66MB'\n").expect("write");
    let text = |path: &Path| path.display().to_string();
    let include = text(&hostile);
    let attacks = json!({
        "include": include,
        "include_if_exists": include,
        "include_dir": text(&there),
        "Include_If_Exists": include,
        "hba_file": include,
        "ident_file": include,
        "external_pid_file": text(&there.join("pid")),
        "promote_trigger_file": include,
        "archive_command": format!("touch {}", text(&there.join("archived"))),
        "archive_mode": "on",
        "log_directory": text(&there),
        "logging_collector": "on",
        "log_filename": "../../x.log",
        "search_path": "attacker, pg_catalog",
        "ssl_passphrase_command": "touch /tmp/x",
        "session_preload_libraries": "attacker",
        "plperl.on_init": "system('touch x')",
        "tenure.etcd_endpoints": "http://127.0.0.1:9",
        "tenure.etcd_username": "x",
        "tenure.etcd_password_file": "../node.yml",
        "work_mem = '66MB'\ninclude_if_exists": include,
        "work_mem": "7MB",
        "timezone": "Asia/Tokyo",
    });
    write_config(&cluster, |config| {
        for section in ["parameters", "parameters_primary", "parameters_replica", "recovery_conf"] {
            config["postgresql"][section] = attacks.clone();
        }
        config["postgresql"]["recovery_conf"]["recovery_end_command"] = json!("touch x");
        config["slots"] = json!({"evil": {"type": "logical", "database": "postgres", "plugin": text(&there.join("evil"))}});
    })
    .await;
    for node in &cluster.nodes {
        has(node, "work_mem", "7MB").await;
        has(node, "TimeZone", "Asia/Tokyo").await;
        let files = files(node);
        for word in ["hostile.conf", "attack", "127.0.0.1:9", "node.yml", "touch", "\nlog_directory", "66MB", "x.log"] {
            assert!(!files.contains(word), "{word} in the files of {}:\n{files}", node.name());
        }
        assert_eq!(node.one("SELECT count(*) FROM pg_replication_slots WHERE plugin IS NOT NULL").await.expect("slots"), "0");
        assert_eq!(node.one("SELECT count(*) FROM pg_file_settings WHERE error LIKE '%recognized%'").await.expect("files"), "0");
    }
    // Nobody was led to another etcd, and everything still works.
    standby.logged(&["postgresql.parameters.include_if_exists", "left out"], seconds(30)).await;
    cluster.healthy().await;
    cluster.cli_ok(&["restart", "story", "--force"]).await;
    cluster.healthy().await;
    for node in &cluster.nodes {
        has(node, "work_mem", "7MB").await;
    }
}

#[tokio::test]
async fn what_the_server_would_not_take_is_left_out_and_said_and_the_rest_counts() {
    let cluster = Cluster::of(2).ttl(5).start().await;
    let leader = cluster.leader().await;
    // By REST, by SQL and by the command line. Also where it is the only change.
    let answer = leader.patch("/config", &json!({"postgresql": {"parameters": {"shared_bufers": "1GB"}}})).await.expect("PATCH");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.contains("postgresql.parameters.shared_bufers is left out"), "{answer:?}");
    leader.logged(&["postgresql.parameters.shared_bufers", "left out"], seconds(30)).await;
    let rule = "everybody root postgres";
    cluster.configure(&json!({"postgresql": {"parameters": {"work_mem": "7MB"}, "pg_ident": [rule]}})).await;
    let told = leader
        .one(r#"SELECT tenure.set_config('{"postgresql": {"parameters": {"maintenance_work_mem": "abc", "deadlock_timeout": "2s"}}}')"#)
        .await
        .expect("set_config");
    assert!(told.contains("maintenance_work_mem") && told.contains("refuse"), "{told}");
    let told = cluster
        .cli_ok(&["edit-config", "story", "--force", "-p", "TimeZone=Nowhere/Land", "-p", "hot_standby=maybe", "-p", "temp_buffers=9MB"])
        .await;
    assert!(told.contains("hot_standby"), "{told}");
    for node in &cluster.nodes {
        has(node, "work_mem", "7MB").await;
        has(node, "deadlock_timeout", "2s").await;
        has(node, "temp_buffers", "9MB").await;
        for name in ["shared_bufers", "maintenance_work_mem", "timezone"] {
            node.logged(&[&format!("postgresql.parameters.{name}"), "left out"], seconds(30)).await;
        }
        wait::until("the files without what was left out", PATIENCE, async || {
            let errors = node.query("SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL").await;
            let errors = errors.map_err(|error| format!("{error:#}"))?;
            if errors.is_empty() { Ok(()) } else { Err(format!("{errors:?}")) }
        })
        .await;
    }
    wait::until("check to say it", PATIENCE, async || {
        let told = String::from_utf8_lossy(&cluster.cli(&["check", "story"]).await.stdout).into_owned();
        let said = ["shared_bufers", "maintenance_work_mem", "timezone", "hot_standby", rule].iter().all(|name| told.contains(name));
        if said { Ok(()) } else { Err(told) }
    })
    .await;
    // Each would have kept the server from starting.
    cluster.cli_ok(&["restart", "story", "--force"]).await;
    cluster.healthy().await;
}

#[tokio::test]
async fn without_a_leader_the_configuration_is_still_written_and_taken_back() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    // Nobody leads any more, and nobody may: both servers run on.
    write_config(&cluster, |config| config["pause"] = json!(true)).await;
    for node in &cluster.nodes {
        node.freeze_lease_worker();
    }
    cluster.wait_until("no leader", |view| view.leader().is_none()).await;
    for value in ["8MB", "9MB"] {
        write_config(&cluster, |config| {
            config["postgresql"]["parameters"] = json!({"work_mem": value});
            config.as_object_mut().expect("a section").remove("pause");
        })
        .await;
        for node in &cluster.nodes {
            has(node, "work_mem", value).await;
        }
    }
    for node in &cluster.nodes {
        node.thaw_lease_worker();
    }
    cluster.healthy().await;
}

#[tokio::test]
async fn a_worker_that_cannot_read_a_file_keeps_the_connection_that_it_has_and_says_so() {
    let cluster = Cluster::of(1).ttl(3).start().await;
    let node = cluster.leader().await;
    wait::until("the worker to say so", PATIENCE, async || {
        // By hand, as no configuration of ours says that any more. The arbiter takes it out of the file, so it is done until it was seen.
        node.query("ALTER SYSTEM SET tenure.etcd_cacert = '/nowhere/ca.pem'").await.map_err(|error| format!("{error:#}"))?;
        node.query("SELECT pg_reload_conf()").await.map_err(|error| format!("{error:#}"))?;
        tokio::time::sleep(seconds(1)).await;
        let events = node.query("SELECT event FROM tenure.events()").await.map_err(|error| format!("{error:#}"))?;
        let said = events.iter().flatten().any(|event| event.contains("/nowhere/ca.pem") && event.contains("goes on"));
        if said { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    let worker = node.lease_worker();
    tokio::time::sleep(seconds(5)).await;
    assert_eq!(node.lease_worker(), worker, "the worker was started again");
    node.query("CREATE TABLE written(id int)").await.expect("the lease is renewed, so it may write");
    cluster.healthy().await;
}

#[tokio::test]
async fn an_operator_acts_on_the_cluster_and_an_admin_configures_it() {
    let cluster = Cluster::of(2).ttl(5).start().await;
    let leader = cluster.leader().await;
    leader
        .query("CREATE ROLE op LOGIN PASSWORD 'x' IN ROLE tenure_operator; CREATE ROLE adm LOGIN PASSWORD 'x' IN ROLE tenure_admin")
        .await
        .expect("make roles");
    let operator = stories::node::connect_as(leader.port(), "op", "x", seconds(5)).await.expect("a session");
    // The most harmful session of an operator: it may stop the service for a while, and no more.
    for (sql, allowed) in [
        (r#"SELECT tenure.set_config('{"postgresql": {"parameters": {"archive_command": "touch /tmp/x"}}}')"#, false),
        (r#"SELECT tenure.set_config('{"ttl": 5}')"#, false),
        ("SELECT tenure_internal.drain(true)", false),
        ("SELECT tenure_internal.extend_lease(9223372036854775807)", false),
        ("SELECT tenure_internal.promise(9223372036854775807)", false),
        ("SELECT tenure_internal.attach_arbiter()", false),
        ("SET tenure.fence_wait = 0", false),
        ("ALTER SYSTEM SET tenure.etcd_endpoints = 'http://127.0.0.1:9'", false),
        ("SELECT pg_read_file('postgresql.conf')", false),
        ("COPY (SELECT 1) TO PROGRAM 'touch /tmp/x'", false),
        ("SELECT pg_reload_conf()", false),
        ("SELECT setting FROM pg_settings WHERE name = 'tenure.etcd_password_file' AND setting <> ''", true),
        ("SELECT tenure.pause()", true),
        ("SELECT tenure.resume()", true),
        ("SELECT tenure.reload(NULL)", true),
    ] {
        let told = stories::node::rows(&operator, sql).await;
        match (allowed, &told) {
            (true, Ok(_)) => {}
            (false, Err(why)) if stories::node::sqlstate(why).as_deref() == Some("42501") => {}
            _ => panic!("{sql}: {told:?}"),
        }
    }
    // One request at a time waits for a member's arbiter.
    wait::until("the restart to be requested", PATIENCE, async || {
        stories::node::rows(&operator, "SELECT tenure.restart(NULL, true)").await.map_err(|error| format!("{error:#}"))
    })
    .await;
    let admin = stories::node::connect_as(leader.port(), "adm", "x", seconds(5)).await.expect("a session");
    let told = stories::node::rows(&admin, r#"SELECT tenure.set_config('{"postgresql": {"parameters": {"work_mem": "7MB"}}}')"#).await;
    assert!(format!("{told:?}").contains("configuration changed"), "{told:?}");
    for node in &cluster.nodes {
        has(node, "work_mem", "7MB").await;
    }
    cluster.healthy().await;
}

/// The names that a node's postgresql.conf sets.
fn names_in(node: &Node) -> std::collections::BTreeSet<String> {
    let text = std::fs::read_to_string(node.data_dir().join("postgresql.conf")).expect("read postgresql.conf");
    text.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.to_owned()).collect()
}

#[tokio::test]
async fn each_setting_of_the_server_counts_from_each_section_as_the_list_says() {
    let cluster = Cluster::of(2).ttl(5).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let major = leader.one("SELECT current_setting('server_version_num')::int / 10000").await.expect("a version");
    // Each with the value that it has: what counts changes nothing but the file, by which it is told.
    let settings = leader.query("SELECT name, coalesce(setting, '') FROM pg_settings ORDER BY lower(name)").await.expect("the settings");
    let all: serde_json::Map<String, Value> = settings.iter().map(|row| (row[0].clone(), json!(row[1]))).collect();
    let mut table: std::collections::BTreeMap<String, Vec<&str>> = settings.iter().map(|row| (row[0].to_lowercase(), Vec::new())).collect();
    let sections = [("parameters", standby), ("parameters_primary", leader), ("parameters_replica", standby), ("recovery_conf", standby)];
    for (round, (section, node)) in sections.into_iter().enumerate() {
        write_config(&cluster, |config| config["postgresql"] = json!({"use_slots": true, "parameters": {"work_mem": "5MB"}})).await;
        has(node, "work_mem", "5MB").await;
        let before = names_in(node);
        let mark = format!("{}MB", 6 + round);
        write_config(&cluster, |config| {
            config["postgresql"][section] = Value::Object(all.clone());
            config["postgresql"]["parameters"]["work_mem"] = json!(mark);
            for role in ["parameters_primary", "parameters_replica"] {
                if let Some(section) = config["postgresql"][role].as_object_mut() {
                    section.remove("work_mem");
                }
            }
        })
        .await;
        has(node, "work_mem", &mark).await;
        let after = names_in(node);
        for (name, words) in &mut table {
            words.push(match (before.contains(name), after.contains(name)) {
                (true, _) => "ours",
                (false, true) => "counts",
                (false, false) => "-",
            });
        }
    }
    cluster.healthy().await;
    let lines: Vec<String> = table.into_iter().map(|(name, words)| format!("{name} {}", words.join(" "))).collect();
    let found = format!("# parameters parameters_primary parameters_replica recovery_conf\n{}\n", lines.join("\n"));
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/dynamic-{major}.txt"));
    let expected = std::fs::read_to_string(&list).unwrap_or_default();
    if found != expected {
        let differing: Vec<&str> = found.lines().filter(|line| !expected.lines().any(|expected| expected == *line)).collect();
        let kept = std::env::temp_dir().join(format!("dynamic-{major}.txt"));
        std::fs::write(&kept, &found).expect("keep what was found");
        panic!("{} is otherwise ({} has all):\n{}", list.display(), kept.display(), differing.join("\n"));
    }
}
