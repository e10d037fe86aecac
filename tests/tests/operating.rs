//! What an operator does by SQL and by the tool: configuration, requests to other members, queries, removal.

use stories::cluster::{Cluster, PATIENCE};
use stories::wait;

#[tokio::test]
async fn the_configuration_is_checked_before_it_is_stored() {
    let cluster = Cluster::of(1).start().await;
    let before = cluster.cli_ok(&["show-config"]).await;
    for (arguments, words) in [
        (&["edit-config", "-s", "tll=20", "--force"][..], "did you mean ttl?"),
        (&["edit-config", "-s", "ttl=1", "--force"], "ttl is 1: at least 3"),
        (&["edit-config", "-s", "postgresql.use_slots=perhaps", "--force"], "expected true or false"),
        (&["edit-config", "-s", "ttl", "--force"], "KEY=VALUE"),
        (&["edit-config", "--apply", "/nowhere.yml", "--force"], "/nowhere.yml"),
    ] {
        let output = cluster.cli(arguments).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(words), "{arguments:?}: {text}");
    }
    let node = cluster.leader().await;
    let refused = node.one(r#"SELECT tenure.set_config('{"lop_wait": 3}')"#).await.expect_err("a misspelt key");
    assert!(format!("{refused:#}").contains("did you mean loop_wait?"), "{refused:#}");
    assert_eq!(cluster.cli_ok(&["show-config"]).await, before, "something was stored");
    members_are_completed(&cluster);

    // Accepted, with what the running server would say.
    let output = cluster.cli_ok(&["edit-config", "-p", "work_mem=plenty", "-p", "wrok_mem=4MB", "-s", "loop_wait=9", "--force"]).await;
    for words in [
        "warning: postgresql.parameters.work_mem will be left out: the server would refuse it",
        "warning: postgresql.parameters.wrok_mem will be left out: the server would refuse it: it has no such parameter",
        "note: loop_wait + 2 * retry_timeout",
    ] {
        assert!(output.contains(words), "{words} in {output}");
    }
    let answer =
        node.one(r#"SELECT tenure.set_config('{"loop_wait": 2, "postgresql": {"parameters": {"work_mem": "5MB", "wrok_mem": null}}}')"#);
    assert_eq!(answer.await.expect("change"), "configuration changed");
    wait::until("the new work_mem", PATIENCE, async || match node.one("SHOW work_mem").await {
        Ok(now) if now == "5MB" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
}

/// The shells' own way to complete, asked for a member of this cluster.
fn members_are_completed(cluster: &Cluster) {
    let node = &cluster.nodes[0];
    let program = cluster.room.install(&stories::programs::tenure());
    let path = format!("{}:{}", program.parent().expect("a directory").display(), std::env::var("PATH").unwrap_or_default());
    for (shell, options, script) in [
        (
            "fish",
            &["--no-config", "-c"][..],
            "tenure completion fish | source; complete -C 'tenure explain n'; complete -C 'tenure dsn -m '",
        ),
        (
            "zsh",
            &["-f", "-c"],
            "compdef() { : }; compadd() { print -l -- $members }; source <(tenure completion zsh); _tenure_members; _tenure_members",
        ),
        (
            "bash",
            &["-c"],
            "source <(tenure completion bash); for line in 'tenure explain n' 'tenure dsn -m n'; do COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
             COMPREPLY=(); _tenure_and_members; printf '%s\\n' \"${COMPREPLY[@]}\"; done",
        ),
    ] {
        let mut command = cluster.room.command(shell, cluster.room.path());
        command.args(options).arg(script).env("PATH", &path).env("TENURE_CONFIG_FILE", node.config_file());
        let Ok(output) = command.output() else {
            println!("SKIPPED: no {shell} here");
            continue;
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let named = said.lines().filter(|line| line.split('\t').next() == Some(node.name())).count();
        assert_eq!(named, 2, "{shell}: {said} {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn sql_on_one_member_restarts_and_renews_another() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let started = standby.one("SELECT pg_postmaster_start_time()").await.expect("ask");
    let another_start = async |before: &str| {
        wait::until("another start of the standby", PATIENCE, async || match standby.one("SELECT pg_postmaster_start_time()").await {
            Ok(now) if now != before => Ok(now),
            seen => Err(format!("{seen:?}")),
        })
        .await
    };
    let nothing = leader.one(&format!("SELECT tenure.restart('{}', only_pending => true)", standby.name())).await.expect("ask");
    assert_eq!(nothing, format!("restart of {} was requested", standby.name()));
    standby.logged(&["its conditions are not met"], PATIENCE).await;
    assert_eq!(standby.one("SELECT pg_postmaster_start_time()").await.expect("ask"), started);

    leader.one(&format!("SELECT tenure.restart('{}')", standby.name())).await.expect("ask");
    let started = another_start(&started).await;
    cluster.healthy().await;
    // From a standby, too.
    standby.one(&format!("SELECT tenure.reload('{}')", leader.name())).await.expect("ask");
    leader.logged(&["reload asked for by SQL on", "reading"], PATIENCE).await;
    leader.one(&format!("SELECT tenure.reinit('{}')", standby.name())).await.expect("ask");
    standby.logged(&["the replica was made by basebackup"], PATIENCE).await;
    another_start(&started).await;
    let view = cluster.healthy().await;
    assert!(!format!("{view:?}").contains("tenure/request/"), "a request was left: {view:?}");

    for (sql, words) in [
        (format!("SELECT tenure.reinit('{}')", leader.name()), "is the leader"),
        ("SELECT tenure.restart('nobody')".to_owned(), "no member is called nobody"),
    ] {
        let refused = leader.one(&sql).await.expect_err("it can't be done");
        assert!(format!("{refused:#}").contains(words), "{refused:#}");
    }
    // Every function there is, by who may call it; the rest is the arbiter's.
    let may = async |role: &str| {
        let functions = "SELECT coalesce(string_agg(p.proname, ' ' ORDER BY p.proname), '') FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace";
        leader
            .one(&format!("{functions} WHERE n.nspname = 'tenure' AND has_function_privilege('{role}', p.oid, 'EXECUTE')"))
            .await
            .expect("ask")
    };
    assert_eq!(may("public").await, "");
    assert_eq!(may("pg_monitor").await, "config events history lease status timings wait_for_lsn");
    let acting = "config events failover history lease pause reinit reload replay_pause replay_resume replay_until restart resume status switchover timings wait_for_lsn";
    assert_eq!(may("tenure_operator").await, acting);
    let configuring = "config events failover history lease pause reinit reload replay_pause replay_resume replay_until restart resume set_config status switchover timings wait_for_lsn";
    assert_eq!(may("tenure_admin").await, configuring);
    // A role that may only look may not act.
    for action in ["restart('n1')", "reload('n1')", "reinit('n1')", "set_config('{}')"] {
        let refused = leader.query(&format!("SET ROLE pg_monitor; SELECT tenure.{action}")).await.expect_err("pg_monitor acts");
        assert!(format!("{refused:#}").contains("permission denied"), "{refused:#}");
    }
}

#[tokio::test]
async fn members_are_queried_and_explained_and_a_cluster_is_removed() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let asked = cluster.cli_ok(&["query", "-C", "SELECT pg_is_in_recovery() AS standby", "--format", "json"]).await;
    assert_eq!(asked.trim(), r#"[{"standby":"f"}]"#);
    let asked = cluster.cli_ok(&["query", "-r", "replica", "-C", "SELECT pg_is_in_recovery()"]).await;
    assert_eq!(asked.trim(), "pg_is_in_recovery\nt");
    let wrong = cluster.cli(&["query", "-m", standby.name(), "-C", "SELECT nonsense"]).await;
    assert!(wrong.status.code() == Some(1) && String::from_utf8_lossy(&wrong.stderr).contains("nonsense"), "{wrong:?}");

    let explained = cluster.cli_ok(&["explain", "-n", "1"]).await;
    for node in &cluster.nodes {
        assert!(explained.contains(&format!("{}:\n", node.name())), "{explained}");
    }
    assert!(explained.contains(&format!("{} leads in term", leader.name())), "{explained}");

    for node in &cluster.nodes {
        node.kill();
    }
    cluster.wait_until("the leases to run out", |view| view.members().is_empty()).await;
    let remove = async |answers: &str| {
        let first = &cluster.nodes[0];
        let mut command = tokio::process::Command::from(first.command(&cluster.room));
        command.arg("-c").arg(first.config_file()).args(["remove", stories::node::SCOPE]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("run tenure");
        tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().expect("it is piped"), answers.as_bytes()).await.expect("answer");
        tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("an end").expect("its output")
    };
    let kept = remove("story\nyes\n").await;
    assert!(kept.status.code() == Some(1) && String::from_utf8_lossy(&kept.stderr).contains("Yes I am aware"), "{kept:?}");
    let gone = remove("story\nYes I am aware\n").await;
    assert!(gone.status.success(), "{gone:?}");
    let keys = cluster.etcd.keys(&stories::view::prefix()).await.expect("look");
    assert!(keys.is_empty(), "{keys:?}");
}

/// What the commands print of a cluster, word for word. Ports, times, positions and identities differ from run to run.
#[tokio::test]
async fn what_the_commands_print() {
    let cluster = Cluster::of(2).planned().await;
    let (leader, standby) = (&cluster.nodes[0], &cluster.nodes[1]);
    cluster.start(leader);
    cluster.healthy_members(1).await;
    cluster.start(standby);
    cluster.healthy().await;
    wait::until("a standby without lag", PATIENCE, async || match cluster.cli_ok(&["list", "-f", "tsv"]).await {
        list if list.lines().filter(|line| line.ends_with("\t0")).count() == 1 => Ok(()),
        list => Err(list),
    })
    .await;
    let filters = vec![
        (format!(r"\b{}\b", leader.name()), "LEADER".to_owned()),
        (format!(r"\b{}\b", standby.name()), "STANDBY".to_owned()),
        (r"127\.0\.0\.1:\d+".to_owned(), "HOST".to_owned()),
        (r"\b\d{4}-\d\d-\d\d[T ][0-9:.]+(Z|[+-]\d\d:?\d\d)?".to_owned(), "TIME".to_owned()),
        (r"\b[0-9A-F]{1,8}/[0-9A-F]{6,8}\b".to_owned(), "LSN".to_owned()),
        (r"\b\d{17,20}\b".to_owned(), "SYSTEM".to_owned()),
        (r"port=\d+".to_owned(), "port=PORT".to_owned()),
        (r"\b1[5-8]\.\d+\b".to_owned(), "MAJOR.MINOR".to_owned()),
        (r"/tmp/[^ ]*".to_owned(), "PATH".to_owned()),
        (r"[ \t]+\n".to_owned(), "\n".to_owned()),
    ];
    let mut settings = insta::Settings::clone_current();
    for (pattern, words) in &filters {
        settings.add_filter(pattern, words.as_str());
    }
    settings.set_prepend_module_to_snapshot(false);
    let _bound = settings.bind_to_scope();
    let mut seen = String::new();
    for line in [
        "list",
        "list -f tsv",
        "list -f yaml",
        "topology",
        "history",
        "dsn",
        "dsn -r replica",
        "check",
        "show-config",
        "version",
        "pause --wait",
        "list",
        "pause",
        "resume --wait",
        "edit-config -s ttl=12 --force",
        "edit-config -s ttl=12 --force",
        "switchover --candidate nobody --force",
        "switchover --leader STANDBY --force",
        "failover --force",
        "reinit LEADER --force",
        "restart nobody --force",
        "flush switchover --force",
        "flush restart --force",
        "explain nobody",
    ] {
        let words: Vec<&str> = line
            .split_whitespace()
            .map(|word| match word {
                "LEADER" => leader.name(),
                "STANDBY" => standby.name(),
                other => other,
            })
            .collect();
        let output = cluster.cli(&words).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(|line| format!("    {line}\n")).collect::<String>();
        seen.push_str(&format!("$ tenure {line}\n    [{}]\n", output.status.code().expect("an exit code")));
        seen.push_str(&text(&output.stdout));
        seen.push_str(&text(&output.stderr));
    }
    insta::assert_snapshot!("what the commands print", seen);
}

/// What monitoring asks by SQL and REST.
#[tokio::test]
async fn monitoring_sees_the_cluster_by_views_histograms_and_notifications() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let row = leader.one("SELECT leader || ' ' || members || ' ' || streaming || ' ' || fence || ' ' || paused FROM tenure.health").await;
    assert_eq!(row.expect("ask"), format!("{} 2 1 open false", leader.name()));
    let renewals = "SELECT count FROM tenure.timings() WHERE timing = 'lease_renewal' AND at_most_seconds = 'Infinity'";
    wait::until("renewals to be counted", PATIENCE, async || match leader.one(renewals).await {
        Ok(count) if count != "0" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    let caused = leader.one("SELECT count(*) > 0 FROM tenure.events() WHERE kind = 'race' AND cause IS NOT NULL").await.expect("ask");
    assert_eq!(caused, "t", "no event has a cause");

    let (_session, mut heard) = leader.listen("tenure").await.expect("listen");
    cluster.cli_ok(&["switchover", "--candidate", standby.name(), "--force"]).await;
    let told = heard.recv().await.expect("nothing was heard of the switchover");
    assert_eq!(told, format!(r#"{{"event":"switchover","from":"{}","to":"{}"}}"#, leader.name(), standby.name()));
    cluster.healthy().await;
    let metric = async |node: &stories::node::Node, name: &str| -> String {
        let page = node.get("/metrics").await.expect("metrics").body;
        let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {page}"));
        line.rsplit(' ').next().expect("a value").to_owned()
    };
    assert_eq!(metric(leader, "tenure_switchover_handover_seconds_count").await, "1");
    assert_eq!(metric(standby, "tenure_promotion_seconds_count").await, "1");
    wait::until("a renewal by the new leader", PATIENCE, async || match metric(standby, "tenure_lease_renewal_seconds_count").await {
        count if count != "0" => Ok(()),
        count => Err(count),
    })
    .await;
    assert_eq!(metric(standby, "tenure_commits_cut_total").await, "0");
}
