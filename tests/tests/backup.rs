//! Replicas and clusters out of a backup, with the tools that people have. docs/backup.md shows these configurations.

use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Output;
use stories::cluster::{Cluster, PATIENCE};
use stories::node::{Node, PASSWORD};
use stories::wait::{self, seconds};

/// A repository in the room of the cluster that is backed up, and a configuration file for each node.
struct PgBackRest {
    program: PathBuf,
    directory: PathBuf,
}

impl PgBackRest {
    fn of(cluster: &Cluster) -> Option<PgBackRest> {
        let program = stories::backup::tool("pgbackrest")?;
        Some(PgBackRest { program, directory: cluster.room.directory("pgbackrest") })
    }

    /// As in docs/backup.md; the stanza is the scope.
    fn configure(&self, cluster: &Cluster, node: &Node) -> String {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let text = format!(
            "[global]\nrepo1-path={}\nlog-path={}\nlock-path={}\nspool-path={}\nlog-level-file=off\nlog-level-console=info\n\
             start-fast=y\ncompress-type=lz4\n\n[story]\npg1-path={}\npg1-port={}\npg1-socket-path={}\npg1-user=postgres\n",
            at("repo"),
            at("log"),
            node.dir().join("lock").display(),
            node.dir().join("spool").display(),
            node.data_dir().display(),
            node.port(),
            node.dir().display()
        );
        let file = node.dir().join("pgbackrest.conf");
        cluster.room.file(&file, &text);
        format!("{} --config={} --stanza=story", self.program.display(), file.display())
    }

    async fn run(&self, cluster: &Cluster, node: &Node, arguments: &[&str]) {
        let config = format!("--config={}", node.dir().join("pgbackrest.conf").display());
        let output = run(cluster, &self.program, node, &[&[config.as_str(), "--stanza=story"], arguments].concat()).await;
        assert!(output.status.success(), "pgbackrest {arguments:?}: {output:?}");
    }
}

async fn run(cluster: &Cluster, program: &Path, node: &Node, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::from(cluster.room.command(program, node.dir()));
    command.args(arguments).kill_on_drop(true);
    tokio::time::timeout(seconds(120), command.output()).await.expect("the tool ends").expect("start the tool")
}

/// Every node archives into the repository and reads from it; replicas are made from it.
fn with_pgbackrest(cluster: &Cluster, tool: &PgBackRest) {
    for node in &cluster.nodes {
        let line = tool.configure(cluster, node);
        cluster.reconfigure(node, |config| {
            config["postgresql"]["parameters"]["archive_mode"] = json!("on");
            config["postgresql"]["parameters"]["archive_command"] = json!(format!("{line} archive-push %p"));
            config["postgresql"]["recovery_conf"] = json!({"restore_command": format!("{line} archive-get %f \"%p\"")});
            config["postgresql"]["create_replica_methods"] = json!(["pgbackrest", "basebackup"]);
            config["postgresql"]["pgbackrest"] =
                json!({"command": format!("{line} --delta restore"), "keep_data": true, "no_params": true, "no_leader": true});
        });
    }
}

#[tokio::test]
async fn pgbackrest_makes_a_replica_and_a_new_cluster_at_a_named_point() {
    let cluster = Cluster::of(2).planned().await;
    let Some(tool) = PgBackRest::of(&cluster) else { return };
    with_pgbackrest(&cluster, &tool);
    let (first, second) = (cluster.node("n1"), cluster.node("n2"));
    cluster.start(first);
    cluster.healthy_members(1).await;
    tool.run(&cluster, first, &["stanza-create"]).await;
    first.query("CREATE TABLE t AS SELECT generate_series(1, 10) AS n").await.expect("write");
    tool.run(&cluster, first, &["--type=full", "backup"]).await;
    first.query("INSERT INTO t SELECT generate_series(11, 20)").await.expect("write after the backup");

    cluster.start(second);
    cluster.healthy().await;
    second
        .logged(
            &["replica method pgbackrest: ", "restore command end: completed successfully", "the replica was made by pgbackrest"],
            seconds(5),
        )
        .await;
    wait::until("the rows on the replica", PATIENCE, async || {
        let count = second.one("SELECT count(*) FROM t").await?;
        anyhow::ensure!(count == "20", "{count} rows");
        Ok(())
    })
    .await;

    // The password of the new cluster's configuration is not the one in the backup.
    first.query("ALTER ROLE replicator PASSWORD 'of the old cluster'").await.expect("another password");
    first.query("SELECT pg_create_restore_point('wanted')").await.expect("name the point");
    first.query("INSERT INTO t SELECT generate_series(21, 30)").await.expect("write after the point");
    first.query("SELECT pg_switch_wal()").await.expect("end the segment");
    wait::until("WAL in the archive", PATIENCE, async || {
        let waiting = first.one("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'").await?;
        anyhow::ensure!(waiting == "0", "{waiting} segments wait");
        Ok(())
    })
    .await;
    for node in [second, first] {
        node.stop();
        node.ended(PATIENCE).await;
    }
    recovered_to_the_point(&tool).await;
}

async fn recovered_to_the_point(tool: &PgBackRest) {
    let cluster = Cluster::of(2).planned().await;
    with_pgbackrest(&cluster, tool);
    for node in &cluster.nodes {
        let line = tool.configure(&cluster, node);
        cluster.reconfigure(node, |config| {
            config["bootstrap"]["method"] = json!("pgbackrest");
            config["bootstrap"]["pgbackrest"] = json!({
                "command": format!("{line} restore"),
                "no_params": true,
                "recovery_conf": {
                    "restore_command": format!("{line} archive-get %f \"%p\""),
                    "recovery_target_name": "wanted",
                    "recovery_target_action": "promote",
                    "recovery_target_timeline": "latest",
                },
            });
            config["postgresql"]["create_replica_methods"] = json!(["basebackup"]);
            config["postgresql"].as_object_mut().expect("a section").remove("pgbackrest");
        });
        cluster.start(node);
    }
    let view = cluster.healthy().await;
    assert_eq!(view.leader_timeline(), Some(2), "recovery ended on a timeline of its own: {view}");
    for node in &cluster.nodes {
        wait::until("the rows of the named point", PATIENCE, async || {
            let count = node.one("SELECT count(*) FROM t").await?;
            anyhow::ensure!(count == "20", "{count} rows");
            Ok(())
        })
        .await;
    }
    let leader = cluster.leader().await;
    leader.logged(&["bootstrap method pgbackrest", "waiting for the end of recovery", "recovery ended after"], seconds(5)).await;
    let founders = cluster.nodes.iter().filter(|node| node.log().contains("bootstrap method pgbackrest begins")).count();
    assert_eq!(founders, 1, "one node founds, the other makes a copy");
    leader.query("INSERT INTO t VALUES (100)").await.expect("the new cluster takes writes");
}

#[tokio::test]
async fn a_founding_that_fails_leaves_no_claim_and_its_data_aside() {
    let cluster = Cluster::of(1).planned().await;
    let node = cluster.node("n1");
    let bin = stories::programs::postgres_bin();
    // A backup that lacks what the target asks for: recovery ends before it.
    let makes = format!("sh -c '{}/initdb -D \"$0\" -U postgres -A trust >/dev/null && echo made it'", bin.display());
    cluster.reconfigure(node, |config| {
        config["bootstrap"]["method"] = json!("own");
        config["bootstrap"]["own"] = json!({
            "command": format!("{makes} {}", node.data_dir().display()),
            "no_params": true,
            "recovery_conf": {"restore_command": "false", "recovery_target_name": "never"},
        });
    });
    cluster.start(node);
    let status = node.ended(PATIENCE).await;
    assert!(!status.success(), "{status}");
    node.logged(
        &["bootstrap method own: made it", "Postgres ended before the end of recovery", "this arbiter ends", "data.failed"],
        seconds(5),
    )
    .await;
    let mut failed = node.data_dir().into_os_string();
    failed.push(".failed");
    assert!(Path::new(&failed).join("PG_VERSION").exists(), "what it left is there to be looked at");
    assert!(!node.data_dir().exists());
    let view = cluster.view().await.expect("look");
    assert_eq!(view.key("initialize"), None, "another node may try: {view}");

    cluster.reconfigure(node, |config| config["bootstrap"]["own"]["recovery_conf"] = serde_json::Value::Null);
    cluster.start(node);
    cluster.healthy().await;
    assert_eq!(node.one("SELECT pg_is_in_recovery()").await.expect("ask with this configuration's password"), "f");
}

#[tokio::test]
async fn barman_makes_a_replica() {
    let cluster = Cluster::of(2).planned().await;
    let Some(program) = stories::backup::tool("barman") else { return };
    let (first, second) = (cluster.node("n1"), cluster.node("n2"));
    let home = cluster.room.directory("barman");
    let _ = cluster.room.directory("barman/conf.d");
    let (at, server) = (home.display(), first.dir().display());
    let config = home.join("barman.conf");
    let text = format!(
        "[barman]\nbarman_user = postgres\nbarman_home = {at}\nbarman_lock_directory = {at}\nconfiguration_files_directory = {at}/conf.d\n\
         log_file = {at}/barman.log\n\n[story]\ndescription = the story's cluster\nconninfo = host={server} port={0} user=postgres dbname=postgres\n\
         streaming_conninfo = host={server} port={0} user=postgres\nbackup_method = postgres\nstreaming_archiver = on\nslot_name = barman\n\
         create_slot = auto\npath_prefix = {1}\n",
        first.port(),
        stories::programs::postgres_bin().display()
    );
    cluster.room.file(&config, &text);
    let line = format!("{} -c {}", program.display(), config.display());
    for node in &cluster.nodes {
        cluster.reconfigure(node, |config| {
            config["postgresql"]["pg_hba"].as_array_mut().expect("a list").push(json!("local replication all trust"));
            config["postgresql"]["create_replica_methods"] = json!(["barman", "basebackup"]);
            config["postgresql"]["barman"] =
                json!({"command": format!("{line} recover story latest {}", node.data_dir().display()), "no_params": true});
        });
    }
    cluster.start(first);
    cluster.healthy_members(1).await;
    first.query("CREATE TABLE t AS SELECT generate_series(1, 10) AS n").await.expect("write");
    let config = config.display().to_string();
    for arguments in [
        &["receive-wal", "--create-slot", "story"][..],
        &["cron"],
        &["switch-wal", "--force", "--archive", "--archive-timeout", "60", "story"],
        &["backup", "--wait", "--wait-timeout", "60", "story"],
    ] {
        let output = run(&cluster, &program, first, &[&["-c", config.as_str()], arguments].concat()).await;
        assert!(output.status.success() || arguments[0] == "receive-wal", "barman {arguments:?}: {output:?}");
        if arguments[0] == "cron" {
            // It begins to receive in the background; a segment that is closed before that never comes.
            wait::until("barman to receive", PATIENCE, async || {
                let count = first.one("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'barman_receive_wal'").await?;
                anyhow::ensure!(count == "1", "{count} receivers");
                Ok(())
            })
            .await;
        }
    }
    first.query("INSERT INTO t SELECT generate_series(11, 20)").await.expect("write after the backup");
    cluster.start(second);
    cluster.healthy().await;
    second.logged(&["replica method barman: ", "the replica was made by barman"], seconds(5)).await;
    wait::until("the rows on the replica", PATIENCE, async || {
        let count = second.one("SELECT count(*) FROM t").await?;
        anyhow::ensure!(count == "20", "{count} rows");
        Ok(())
    })
    .await;
}

/// Archives by `cp` into a directory that never takes a file twice, and restores from a plain copy; held while `hold` is there.
fn with_plain_backup(cluster: &Cluster) -> PathBuf {
    let directory = cluster.room.directory("plain");
    let at = |name: &str| directory.join(name).display().to_string();
    let script = directory.join("restore.sh");
    let text = format!(
        "for word; do case $word in --datadir=*) data=${{word#*=}};; esac; done\n\
         echo \"to $TENURE_TARGET_SETTING $TENURE_TARGET\"\nmkdir -p \"$data\"\ncp -a {}/. \"$data\"\nwhile test -e {}; do sleep 0.1; done\n",
        at("base"),
        at("hold")
    );
    cluster.room.file(&script, &text);
    cluster.room.directory("plain/archive");
    for node in &cluster.nodes {
        cluster.reconfigure(node, |config| {
            let archive = at("archive");
            config["postgresql"]["parameters"]["archive_mode"] = json!("on");
            config["postgresql"]["parameters"]["archive_command"] = json!(format!("test ! -e {archive}/%f && cp %p {archive}/%f"));
            config["postgresql"]["recovery_conf"] = json!({"restore_command": format!("cp {archive}/%f %p")});
            config["postgresql"]["create_replica_methods"] = json!(["basebackup", "plain"]);
            config["postgresql"]["plain"] = json!({"command": format!("sh {}", script.display()), "no_leader": true});
        });
    }
    directory
}

/// Every file of the archive with its content.
fn archived(directory: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(directory.join("archive")).expect("read the archive");
    entries.map(|entry| entry.expect("an entry").path()).map(|path| (path.clone(), std::fs::read(&path).expect("read it"))).collect()
}

async fn counts(node: &Node, rows: &str) {
    wait::until("the rows", PATIENCE, async || {
        let count = node.one("SELECT count(*) FROM t").await?;
        anyhow::ensure!(count == rows, "{count} rows");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_cluster_goes_back_in_place_to_a_time_and_nothing_of_before_is_overwritten() {
    let cluster = Cluster::of(2).planned().await;
    let directory = with_plain_backup(&cluster);
    let (first, second) = (cluster.node("n1"), cluster.node("n2"));
    cluster.start(first);
    cluster.healthy_members(1).await;
    first.query("CREATE TABLE t AS SELECT generate_series(1, 10) AS n").await.expect("write");
    let base = directory.join("base").display().to_string();
    let source = format!("host=127.0.0.1 port={} user=replicator password={}", first.port(), PASSWORD);
    let arguments = ["-D", &base, "-X", "fetch", "-c", "fast", "-d", &source];
    let taken = run(&cluster, &stories::programs::postgres_bin().join("pg_basebackup"), first, &arguments).await;
    assert!(taken.status.success(), "{taken:?}");
    cluster.start(second);
    cluster.healthy().await;
    first.query("INSERT INTO t SELECT generate_series(11, 20)").await.expect("what is to stay");
    let then =
        first.one("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')").await.expect("the time");
    first.query("DELETE FROM t WHERE n <= 15").await.expect("a mistake");
    counts(second, "5").await;

    // Held in the middle, its arbiter killed: the next one goes on, until it is called off.
    let hold = directory.join("hold");
    cluster.room.file(&hold, "");
    let body = json!({"time": then});
    let asked = async { tokio::time::timeout(seconds(20), first.post("/restore", &body)).await };
    let killed = async {
        first.logged(&["the data of before the restore are in", "to recovery_target_time"], PATIENCE).await;
        first.kill_arbiter();
    };
    let _ = tokio::join!(asked, killed);
    cluster.start(first);
    first.logged(&["going on with the restore"], PATIENCE).await;
    cluster.cli_ok(&["restore", "story", "--undo", "--force"]).await;
    first.logged(&["is undone: the data of before are where they were"], PATIENCE).await;
    std::fs::remove_file(&hold).expect("hold nothing any more");
    cluster.healthy().await;
    counts(first, "5").await;

    let before = archived(&directory);
    let said = cluster.cli_ok(&["restore", "story", "--to", &then, "--force"]).await;
    assert!(said.contains("Restored: story is at"), "{said}");
    cluster.healthy().await;
    counts(first, "20").await;
    counts(second, "20").await;
    let kept = first.dir().join(format!("{}.before-restore", first.data_dir().file_name().expect("a name").to_string_lossy()));
    assert!(kept.join("PG_VERSION").exists(), "the data of before are kept in {}", kept.display());
    let after = archived(&directory);
    for (path, content) in &before {
        assert!(after.get(path) == Some(content), "{} was overwritten", path.display());
    }
    let history = cluster.cli_ok(&["history", "story"]).await;
    assert!(history.contains("before 20"), "{history}");
    first.query("INSERT INTO t VALUES (21)").await.expect("it goes on");
    counts(second, "21").await;

    // Not over the data of before, and not to where nothing leads.
    let again = cluster.cli(&["restore", "story", "--to", &then, "--force"]).await;
    assert!(!again.status.success());
    let why = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(why.contains("the data of before an earlier restore are in"), "{why}");
    std::fs::remove_dir_all(&kept).expect("nothing of them is needed");
    let nowhere = cluster.cli(&["restore", "story", "--to-name", "nowhere", "--force"]).await;
    assert!(!nowhere.status.success());
    let why = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(why.contains("recovery ended before configured recovery target was reached"), "{why}");
    cluster.healthy().await;
    counts(first, "21").await;
}

/// As in the story's other clusters; and what `n1` wants of the archive waits while `hold` is there.
fn with_a_slow_archive(cluster: &Cluster, tool: &PgBackRest) -> PathBuf {
    with_pgbackrest(cluster, tool);
    let node = cluster.node("n1");
    let (hold, script) = (node.dir().join("hold"), node.dir().join("get.sh"));
    let line = tool.configure(cluster, node);
    cluster.room.file(&script, &format!("while test -e {}; do sleep 0.1; done\nexec {line} archive-get \"$1\" \"$2\"\n", hold.display()));
    cluster.reconfigure(node, |config| {
        config["postgresql"]["recovery_conf"] = json!({"restore_command": format!("sh {} %f \"%p\"", script.display())});
    });
    hold
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_restore_leaves_no_server() {
    // Nobody is rewound: the other member is copied from the backup, too.
    let cluster = Cluster::of(2).ttl(5).dynamic("postgresql", json!({"use_pg_rewind": false, "use_slots": true})).planned().await;
    let Some(tool) = PgBackRest::of(&cluster) else { return };
    let hold = with_a_slow_archive(&cluster, &tool);
    let (first, second) = (cluster.node("n1"), cluster.node("n2"));
    cluster.start(first);
    cluster.healthy_members(1).await;
    tool.run(&cluster, first, &["stanza-create"]).await;
    first.query("CREATE TABLE t AS SELECT generate_series(1, 10) AS n").await.expect("write");
    tool.run(&cluster, first, &["--type=full", "backup"]).await;
    cluster.start(second);
    cluster.healthy().await;
    first.query("INSERT INTO t SELECT generate_series(11, 20)").await.expect("what is to stay");
    let position = first.one("SELECT pg_current_wal_insert_lsn()").await.expect("the position");
    first.query("DELETE FROM t WHERE n <= 15").await.expect("a mistake");
    counts(second, "5").await;

    // Stopped while it recovers: no server stays, and the member that leads meanwhile goes on with the data of before.
    cluster.room.file(&hold, "");
    let body = json!({"lsn": position});
    let asked = async { tokio::time::timeout(seconds(30), first.post("/restore", &body)).await };
    let stopped = async {
        first.logged(&["waiting for the end of recovery"], PATIENCE).await;
        first.stop();
        first.ended(PATIENCE).await;
    };
    let _ = tokio::join!(asked, stopped);
    // It is told to end at once, and ends its own processes first.
    wait::until("no server on the data of the arbiter that has ended", seconds(10), async || {
        let left = servers_on(&first.data_dir());
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    std::fs::remove_file(&hold).expect("hold nothing any more");
    cluster.wait_until("the other to lead", |view| view.leader() == Some("n2")).await;
    cluster.start(first);
    cluster.healthy().await;
    first.logged(&["is undone: the data of before are where they were"], seconds(5)).await;
    counts(first, "5").await;
}

/// Two members in a cluster that winds nobody back, made from the backup and archived with it; the rows of `t`: 20 at the position that is
/// given, 5 after a mistake. The backup that the leader is to restore is named by the file `set` beside it, where there is one.
async fn before_a_restore(cluster: &Cluster, tool: &PgBackRest) -> String {
    with_pgbackrest(cluster, tool);
    let (first, second) = (cluster.node("n1"), cluster.node("n2"));
    let script = first.dir().join("restore.sh");
    let line = tool.configure(cluster, first);
    let set = first.dir().join("set").display().to_string();
    cluster.room.file(&script, &format!("test -e {set} && set -- --set=$(cat {set})\nexec {line} --delta \"$@\" restore\n"));
    cluster.reconfigure(first, |config| config["postgresql"]["pgbackrest"]["command"] = json!(format!("sh {}", script.display())));
    cluster.start(first);
    cluster.healthy_members(1).await;
    tool.run(cluster, first, &["stanza-create"]).await;
    first.query("CREATE TABLE t AS SELECT generate_series(1, 10) AS n").await.expect("write");
    tool.run(cluster, first, &["--type=full", "backup"]).await;
    cluster.start(second);
    cluster.healthy().await;
    first.query("INSERT INTO t SELECT generate_series(11, 20)").await.expect("what is to stay");
    let position = first.one("SELECT pg_current_wal_insert_lsn()").await.expect("the position");
    first.query("DELETE FROM t WHERE n <= 15").await.expect("a mistake");
    counts(second, "5").await;
    position
}

#[tokio::test]
async fn a_member_made_from_the_backup_after_a_restore_in_place_is_on_the_restored_timeline() {
    let cluster = Cluster::of(2).dynamic("postgresql", json!({"use_pg_rewind": false, "use_slots": true})).planned().await;
    let Some(tool) = PgBackRest::of(&cluster) else { return };
    let position = before_a_restore(&cluster, &tool).await;
    let (first, second) = (cluster.node("n1"), cluster.node("n2"));
    // It claims a timeline and begins none: the next one passes over its number, of which no archive has a history.
    let nowhere = cluster.cli(&["restore", "story", "--to-name", "nowhere", "--force"]).await;
    assert!(!nowhere.status.success());
    cluster.healthy().await;

    let said = cluster.cli_ok(&["restore", "story", "--to-lsn", &position, "--force"]).await;
    assert!(said.contains("Restored: story is at"), "{said}");
    counts(first, "20").await;
    second.logged(&["replica method pgbackrest: ", "the replica was made by pgbackrest"], PATIENCE).await;
    cluster.healthy().await;
    counts(second, "20").await;
    first.query("INSERT INTO t VALUES (21)").await.expect("it goes on");
    counts(second, "21").await;
    let made = second.log().matches("replica method pgbackrest: ").count();
    assert!(made > 0 && !second.log().contains("the replica was made by basebackup"), "{}", second.log());
}

#[tokio::test]
async fn a_backup_that_ended_after_the_point_of_a_restore_in_place_makes_no_member() {
    let cluster = Cluster::of(2).dynamic("postgresql", json!({"use_pg_rewind": false, "use_slots": true})).planned().await;
    let Some(tool) = PgBackRest::of(&cluster) else { return };
    let position = before_a_restore(&cluster, &tool).await;
    let (first, second) = (cluster.node("n1"), cluster.node("n2"));
    let early = std::fs::read_link(tool.directory.join("repo/backup/story/latest")).expect("the backup's name");
    cluster.room.file(&first.dir().join("set"), &early.display().to_string());
    tool.run(&cluster, first, &["--type=full", "backup"]).await;

    let said = cluster.cli_ok(&["restore", "story", "--to-lsn", &position, "--force"]).await;
    assert!(said.contains("Restored: story is at"), "{said}");
    second.logged(&["the backup is of after the point", "the replica was made by basebackup"], PATIENCE).await;
    cluster.healthy().await;
    counts(second, "20").await;
}

/// Processes whose command line names this data directory.
fn servers_on(data_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("read /proc").flatten();
    let words = entries.filter_map(|entry| {
        let text = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let words: Vec<&str> = text.split('\0').collect();
        let serves = words.first()?.ends_with("/postgres") && words.contains(&data_dir.to_str()?);
        serves.then(|| format!("{}: {}", entry.file_name().display(), words.join(" ")))
    });
    words.collect()
}
