//! How a node without data gets a copy: by the methods of its file, from whom, and what happens when that breaks off.

use serde_json::json;
use stories::cluster::{Cluster, PATIENCE};
use stories::node::Node;
use stories::wait::{self, seconds};

/// One member leads with a few rows; the others are planned.
async fn led(count: usize, change: impl Fn(&Node, &mut stories::node::Config)) -> Cluster {
    let cluster = Cluster::of(count).planned().await;
    for node in &cluster.nodes {
        cluster.reconfigure(node, |config| change(node, config));
    }
    cluster.start(cluster.node("n1"));
    cluster.healthy_members(1).await;
    cluster.node("n1").query("CREATE TABLE t AS SELECT generate_series(1, 100) AS n").await.expect("write");
    cluster
}

async fn has_the_rows(node: &Node) {
    wait::until("the rows on the copy", PATIENCE, async || {
        let count = node.one("SELECT count(*) FROM t").await?;
        anyhow::ensure!(count == "100", "{count} rows");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn methods_are_tried_in_their_order_with_the_fields_arguments() {
    let cluster = Cluster::of(2).planned().await;
    let directory = cluster.room.directory("methods");
    let bin = stories::programs::postgres_bin();
    let notes = directory.join("notes");
    let script = directory.join("copy.sh");
    let text = format!(
        "for word; do case $word in --datadir=*) data=${{word#*=}};; --connstring=*) source=${{word#*=}};; esac; done\n\
         ls -A \"$data\" | wc -l > {0}.found\necho \"$*\" > {0}\necho a line of the method\n\
         exec {1}/pg_basebackup -D \"$data\" -X stream -d \"$source\"\n",
        notes.display(),
        bin.display()
    );
    cluster.room.file(&script, &text);
    let second = cluster.node("n2");
    cluster.reconfigure(second, |config| {
        config["postgresql"]["create_replica_methods"] = json!(["broken", "empty", "own", "basebackup"]);
        config["postgresql"]["broken"] = json!({"command": "sh -c 'echo no backup here >&2; exit 3'"});
        config["postgresql"]["empty"] = json!({"command": "true"});
        config["postgresql"]["own"] = json!({"command": format!("sh {} first", script.display()), "threshold": 30, "dry": false});
    });
    cluster.start(cluster.node("n1"));
    cluster.healthy_members(1).await;
    cluster.start(second);
    cluster.healthy().await;
    let words = [
        "replica method broken: no backup here",
        "replica method broken failed: sh ended with exit status: 3: no backup here",
        "replica method empty failed: it left no usable data directory",
        "replica method own: a line of the method",
        "the replica was made by own",
    ];
    second.logged(&words, seconds(5)).await;
    let told = std::fs::read_to_string(&notes).expect("the method noted its arguments");
    let data = format!("--datadir={}", second.data_dir().display());
    for part in ["first ", "--threshold=30", "--dry=False", "--scope=story", "--role=replica", &data, "--connstring=host=127.0.0.1"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert!(!told.contains("password="), "no password: {told}");
    let found = std::fs::read_to_string(notes.with_extension("found")).expect("it noted what it found");
    assert_eq!(found.trim(), "0", "the directory is emptied before each method");
}

#[tokio::test]
async fn a_copy_comes_from_a_member_that_offers_itself_and_from_the_leader_when_that_one_dies_midway() {
    let cluster = led(3, |node, config| match node.name() {
        "n2" => config["tags"] = json!({"clonefrom": true}),
        // Some 30 MB: slow enough to be met midway.
        "n3" => config["postgresql"]["basebackup"] = json!([{"max-rate": "4M"}]),
        _ => {}
    })
    .await;
    cluster.start(cluster.node("n2"));
    cluster.healthy_members(2).await;
    let third = cluster.node("n3");
    cluster.start(third);
    third.logged(&["cloning from n2"], PATIENCE).await;
    wait::until("the copy to be under way", PATIENCE, async || {
        let pg_wal = third.data_dir().join("base");
        if pg_wal.exists() { Ok(()) } else { Err("nothing is there yet") }
    })
    .await;
    cluster.node("n2").kill();
    third.logged(&["replica method basebackup failed", "cloning from n1", "the replica was made by basebackup"], PATIENCE).await;
    cluster.start(cluster.node("n2"));
    cluster.healthy().await;
    has_the_rows(third).await;
}

#[tokio::test]
async fn a_copy_that_hangs_is_ended_by_a_forced_reinit_and_by_the_end_of_the_arbiter() {
    let cluster = led(2, |node, config| {
        if node.name() == "n2" {
            let pid = node.dir().join("hangs.pid");
            config["postgresql"]["create_replica_methods"] = json!(["hangs", "basebackup"]);
            config["postgresql"]["hangs"] =
                json!({"command": format!("sh -c 'sleep 600 & echo $! > {}; wait'", pid.display()), "no_params": true});
        }
    })
    .await;
    let second = cluster.node("n2");
    let pid = second.dir().join("hangs.pid");
    let hangs = async || {
        wait::until("the method to hang", PATIENCE, async || {
            let text = std::fs::read_to_string(&pid).map_err(|error| error.to_string())?;
            text.trim().parse::<u32>().map_err(|error| error.to_string())
        })
        .await
    };
    let gone = async |pid: u32| {
        wait::until("the hanging method's child to be gone", PATIENCE, async || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { Err(stat) }
        })
        .await;
    };
    cluster.start(second);
    let first = hangs().await;
    second.stop();
    second.ended(PATIENCE).await;
    gone(first).await;

    // Killed, the arbiter can't end it: the next one does, before it works on the same directory.
    std::fs::remove_file(&pid).expect("forget the first");
    cluster.start(second);
    let left = hangs().await;
    std::fs::remove_file(&pid).expect("forget the second");
    second.kill_arbiter();
    cluster.start(second);
    gone(left).await;
    second.logged(&["an earlier arbiter left it working on"], PATIENCE).await;

    let last = hangs().await;
    let refused = second.post("/reinitialize", &json!({})).await.expect("ask");
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.body.contains("already in progress"), "{}", refused.body);
    let forced = second.post("/reinitialize", &json!({"force": true, "from_leader": true})).await.expect("ask");
    assert_eq!(forced.status, 200, "{}", forced.body);
    gone(last).await;
    cluster.healthy().await;
    second.logged(&["the replica was made by basebackup"], seconds(5)).await;
    has_the_rows(second).await;
}

#[tokio::test]
async fn a_standby_with_a_damaged_history_file_fetches_it_again() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let old = cluster.leader().await;
    let new = cluster.others(old)[0];
    cluster.cli_ok(&["switchover", "story", "--candidate", new.name(), "--force"]).await;
    cluster.wait_until("the new leader", |view| view.leader() == Some(new.name())).await;
    cluster.healthy().await;
    old.stop();
    old.ended(PATIENCE).await;
    let history = old.data_dir().join("pg_wal/00000002.history");
    cluster.room.file(&history, "this is no history\n");
    cluster.start(old);
    cluster.healthy().await;
    old.logged(&["00000002.history is no history file and was renamed"], seconds(5)).await;
    let again = std::fs::read_to_string(&history).expect("it was fetched again");
    assert!(again.starts_with("1\t"), "{again}");
}

#[tokio::test]
async fn a_damaged_pg_control_is_said_and_a_reinit_or_the_configuration_heals_it() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let damage = async || {
        standby.stop();
        standby.ended(PATIENCE).await;
        let control = standby.data_dir().join("global/pg_control");
        let mut bytes = std::fs::read(&control).expect("read pg_control");
        bytes[40] ^= 0xff;
        std::fs::write(&control, bytes).expect("damage pg_control");
        cluster.start(standby);
    };
    damage().await;
    standby.logged(&["no action: the data directory can't be used", "checksum does not match", "`tenure reinit`"], PATIENCE).await;
    // It ends when it is told to, and it says so to all that ask.
    let key = format!("members/{}", standby.name());
    cluster.wait_until("its member key", |view| view.key(&key).is_some_and(|text| text.contains("tenure reinit"))).await;
    cluster.cli_ok(&["reinit", "story", standby.name(), "--force"]).await;
    cluster.healthy().await;

    cluster.reconfigure(standby, |config| config["postgresql"]["remove_data_directory_on_rewind_failure"] = json!(true));
    damage().await;
    cluster.healthy().await;
    standby.logged(&["the configuration allows the data to be replaced by a clone"], seconds(5)).await;
}

#[tokio::test]
async fn a_copy_onto_a_full_disk_says_so_and_is_made_once_there_is_room() {
    let cluster = Cluster::of(2).planned().await;
    let second = cluster.node("n2");
    let disk = match stories::storm::disk::Disk::new(&cluster.room, "n2") {
        Ok(disk) => disk,
        Err(why) => return println!("SKIPPED: no disk can be made here: {why:#}"),
    };
    cluster.reconfigure(second, |config| config["postgresql"]["data_dir"] = json!(disk.path().join("data")));
    cluster.start(cluster.node("n1"));
    cluster.healthy_members(1).await;
    disk.fill(8 << 20).expect("fill the disk");
    cluster.start(second);
    let reason = |view: &stories::view::View| {
        let member: serde_json::Value = serde_json::from_str(view.key("members/n2")?).ok()?;
        member["tenure"]["reason"].as_str().map(str::to_owned)
    };
    let view = cluster.wait_until("the reason in the member key", |view| reason(view).is_some_and(|why| why.contains("tried again"))).await;
    let why = reason(&view).expect("it was just seen");
    assert!(why.contains("No space left on device"), "{why}");
    let checked = cluster.cli(&["check", "story"]).await;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("No space left on device"), "{said}");
    disk.free();
    cluster.healthy().await;
    second.kill();
    drop(disk);
}

#[tokio::test]
async fn a_copy_whose_first_start_failed_is_started_again_and_not_rewound() {
    let cluster = Cluster::of(2).ttl(5).planned().await;
    let late = &cluster.nodes[1];
    cluster.start(&cluster.nodes[0]);
    cluster.healthy_members(1).await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", late.port())).expect("take the port");
    cluster.start(late);
    late.logged(&["the replica was made by basebackup", "Postgres ended while it started"], PATIENCE).await;
    // Several looks at what lies there.
    tokio::time::sleep(seconds(5)).await;
    drop(taken);
    cluster.healthy().await;
    assert!(!late.log().contains("rewind to"), "its copy was taken for a crashed primary:\n{}", late.log());
}

/// How much WAL the leader keeps for the slot of this member, and whether its copy is told of it.
async fn keeps_wal_for(leader: &Node, slot: &str) -> u64 {
    let question =
        format!("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = '{slot}'");
    leader.one(&question).await.expect("the slot is there").parse().expect("a number")
}

#[tokio::test]
async fn a_copy_has_its_wal_from_the_beginning_and_the_old_data_stay_until_it_streams() {
    let cluster = Cluster::of(2).ttl(3).planned().await;
    let (first, second) = (cluster.node("n1"), cluster.node("n2"));
    cluster.start(first);
    cluster.healthy_members(1).await;
    first.query("CREATE TABLE t AS SELECT generate_series(1, 100) AS n").await.expect("write");
    cluster.start(second);
    cluster.healthy().await;
    has_the_rows(second).await;
    let aside = second.dir().join(format!("{}.aside", second.data_dir().file_name().expect("a name").to_string_lossy()));

    // Some 30 MB at this rate: slow enough to be met midway.
    cluster.reconfigure(second, |config| config["postgresql"]["basebackup"] = json!([{"max-rate": "4M"}]));
    cluster.cli_ok(&["reload", "story", "n2", "--force"]).await;
    let midway = async || {
        cluster.cli_ok(&["reinit", "story", "n2", "--force"]).await;
        wait::until("the copy to be under way", PATIENCE, async || {
            let begun = second.data_dir().join("base").exists() && aside.join("PG_VERSION").exists();
            if begun { Ok(()) } else { Err("no copy beside the old data yet") }
        })
        .await;
    };
    midway().await;
    second.logged(&["n1 keeps WAL for this copy from now on, by the slot n2", "are set aside as"], seconds(5)).await;
    // What would be removed without the slot.
    for _ in 0..4 {
        first.query("SELECT pg_switch_wal()").await.expect("end a segment");
        first.query("CHECKPOINT").await.expect("remove what nobody needs");
    }
    assert!(keeps_wal_for(first, "n2").await > 3 << 24, "the segments of before are kept");
    let check = cluster.cli(&["check", "story"]).await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("n2: its Postgres is being copied") && said.contains("the slot n2 keeps"), "{said}");

    // Its arbiter is killed midway: the next one goes on, and what is set aside is still the whole.
    second.kill_arbiter();
    cluster.start(second);
    cluster.healthy().await;
    has_the_rows(second).await;
    wait::until("the old data to be gone", PATIENCE, async || if aside.exists() { Err("they are there") } else { Ok(()) }).await;

    // The source dies midway, for good: the old data are the only ones, come back and lead.
    midway().await;
    first.kill();
    second.logged(&["nobody leads, so the data that were set aside for a new copy were put back"], PATIENCE).await;
    cluster.wait_until("n2 to lead", |view| view.leader() == Some("n2")).await;
    wait::until("a write on what was put back", PATIENCE, async || second.query("INSERT INTO t VALUES (101)").await.map(drop)).await;
    assert_eq!(second.one("SELECT count(*) FROM t").await.expect("count"), "101");
    assert!(!aside.exists());
}
