//! Commands of the node's file around starts, stops and promotions.

use serde_json::json;
use std::path::{Path, PathBuf};
use stories::cluster::{Cluster, PATIENCE};
use stories::wait::{self, seconds};

/// A script in the room that notes what it is called with, then does `more`.
fn noting(cluster: &Cluster, name: &str, more: &str) -> (PathBuf, PathBuf) {
    let directory = cluster.room.directory("hooks");
    let (script, notes) = (directory.join(format!("{name}.sh")), directory.join(format!("{name}.notes")));
    cluster.room.file(&script, &format!("echo \"$*\" >> {}\necho it was called\n{more}\n", notes.display()));
    (script, notes)
}

fn noted(notes: &Path) -> Vec<String> {
    std::fs::read_to_string(notes).unwrap_or_default().lines().map(str::to_owned).collect()
}

async fn notes_say(notes: &Path, wanted: &[&str]) {
    wait::until(&format!("the notes to be {wanted:?}"), PATIENCE, async || {
        let noted = noted(notes);
        if noted == wanted { Ok(()) } else { Err(format!("{noted:?}")) }
    })
    .await;
}

#[tokio::test]
async fn callbacks_are_told_what_became_of_the_server() {
    let cluster = Cluster::of(2).planned().await;
    let mut notes = Vec::new();
    for node in &cluster.nodes {
        let (script, path) = noting(&cluster, node.name(), "");
        notes.push(path);
        let line = format!("sh {}", script.display());
        let all = ["on_start", "on_stop", "on_restart", "on_reload", "on_role_change"];
        let callbacks: serde_json::Map<_, _> = all.iter().map(|name| ((*name).to_owned(), json!(line))).collect();
        cluster.reconfigure(node, |config| config["postgresql"]["callbacks"] = json!(callbacks));
        cluster.start(node);
    }
    cluster.healthy().await;
    let old = cluster.leader().await;
    let new = cluster.others(old)[0];
    let of = |node: &stories::node::Node| &notes[usize::from(node.name() == "n2")];
    // Reloads come with synchronous standbys and the like, as often as the configuration changes.
    let roles = |path: &Path| noted(path).into_iter().filter(|line| !line.starts_with("on_reload")).collect::<Vec<_>>();
    let say = async |path: &Path, wanted: &[&str]| {
        wait::until(&format!("the notes to be {wanted:?}"), PATIENCE, async || {
            let noted = roles(path);
            if noted == wanted { Ok(()) } else { Err(format!("{noted:?}")) }
        })
        .await;
    };
    say(of(old), &["on_start primary story"]).await;
    say(of(new), &["on_start replica story"]).await;

    cluster.cli_ok(&["restart", "story", new.name(), "--force"]).await;
    say(of(new), &["on_start replica story", "on_restart replica story"]).await;
    cluster.cli_ok(&["reload", "story", new.name(), "--force"]).await;
    wait::until("on_reload", PATIENCE, async || {
        let noted = noted(of(new));
        if noted.iter().any(|line| line == "on_reload replica story") { Ok(()) } else { Err(format!("{noted:?}")) }
    })
    .await;

    cluster.healthy().await;
    cluster.cli_ok(&["switchover", "story", "--candidate", new.name(), "--force"]).await;
    cluster.wait_until("the new leader", |view| view.leader() == Some(new.name())).await;
    cluster.healthy().await;
    say(of(new), &["on_start replica story", "on_restart replica story", "on_role_change primary story"]).await;
    say(of(old), &["on_start primary story", "on_stop primary story", "on_role_change replica story"]).await;
    new.logged(&["callback on_role_change (primary): it was called"], seconds(20)).await;

    // Told to end, the arbiter waits for the callback that takes an address away.
    old.stop();
    old.ended(PATIENCE).await;
    assert_eq!(roles(of(old)).last().map(String::as_str), Some("on_stop replica story"));
}

#[tokio::test]
async fn a_callback_that_hangs_is_ended_by_the_next_one_and_holds_nothing_up() {
    let cluster = Cluster::of(2).planned().await;
    let hangs = "sleep 600 & echo $! > \"$0.pid\"; wait";
    for node in &cluster.nodes {
        let (script, _) = noting(&cluster, node.name(), hangs);
        cluster.reconfigure(node, |config| {
            config["postgresql"]["callbacks"] = json!({"on_start": format!("sh {}", script.display()), "on_role_change": "true"});
        });
        cluster.start(node);
    }
    cluster.healthy().await;
    let new = cluster.others(cluster.leader().await)[0];
    let pid_file = cluster.room.path().join(format!("hooks/{}.sh.pid", new.name()));
    let pid = wait::until("the callback to hang", PATIENCE, async || {
        let text = std::fs::read_to_string(&pid_file).map_err(|error| error.to_string())?;
        text.trim().parse::<u32>().map_err(|error| error.to_string())
    })
    .await;
    cluster.cli_ok(&["switchover", "story", "--candidate", new.name(), "--force"]).await;
    cluster.wait_until("the new leader", |view| view.leader() == Some(new.name())).await;
    wait::until("the hanging callback's child to be gone", PATIENCE, async || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { Err(stat) }
    })
    .await;
    new.logged(&["the callback before it still ran and is ended"], seconds(20)).await;
}

#[tokio::test]
async fn a_promotion_that_the_hook_refuses_is_another_nodes() {
    let cluster = Cluster::of(3).ttl(3).planned().await;
    let (refusing, notes) = noting(&cluster, "pre_promote", "exit 1");
    for node in &cluster.nodes {
        // Which one would win is not ours to say, so two may not: the third has to.
        if node.name() == "n2" {
            let line = format!("sh {}", refusing.display());
            cluster.reconfigure(node, |config| {
                config["postgresql"]["pre_promote"] = json!(line);
                config["tags"] = json!({"failover_priority": 100});
            });
        }
    }
    cluster.start(cluster.node("n1"));
    cluster.wait_until("n1 to lead", |view| view.leader() == Some("n1")).await;
    cluster.start(cluster.node("n2"));
    cluster.start(cluster.node("n3"));
    cluster.healthy().await;
    cluster.node("n1").kill();
    let view = cluster.wait_until("n3 to lead", |view| view.leader() == Some("n3")).await;
    assert_eq!(view.leader(), Some("n3"), "{view}");
    cluster.healthy_members(2).await;
    assert!(!noted(&notes).is_empty(), "the fitter node was asked first");
    let refused = cluster.node("n2");
    refused.logged(&["this node is not promoted and stands down", "pre_promote"], seconds(5)).await;
    assert!(!refused.log().contains("promoting, term"), "{}", refused.log());
}

#[tokio::test]
async fn the_hook_before_a_stop_comes_first_and_can_not_hold_it_up() {
    let cluster = Cluster::of(2).planned().await;
    let mut hook = Vec::new();
    for node in &cluster.nodes {
        let port = node.port();
        let psql = stories::programs::postgres_bin().join("psql");
        let more = format!(
            "{} -X -h {} -p {port} -U postgres -Atc 'SELECT 1' >> \"$0.answer\"\nexec sleep 600",
            psql.display(),
            node.dir().display()
        );
        hook.push(noting(&cluster, &format!("{}.before_stop", node.name()), &more));
        let line = format!("sh {} in order", hook.last().expect("just pushed").0.display());
        cluster.reconfigure(node, |config| config["postgresql"]["before_stop"] = json!(line));
        cluster.start(node);
    }
    cluster.healthy().await;
    let standby = cluster.others(cluster.leader().await)[0];
    let (script, notes) = &hook[usize::from(standby.name() == "n2")];
    standby.stop();
    standby.ended(PATIENCE).await;
    notes_say(notes, &["in order"]).await;
    let answer = std::fs::read_to_string(format!("{}.answer", script.display()));
    assert_eq!(answer.expect("the hook asked the server").trim(), "1", "the server still ran");
    standby.logged(&["before_stop failed, the stop goes on", "ended by force after 10 s"], seconds(5)).await;
}
