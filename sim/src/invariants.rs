//! What must hold, as named functions, asked at the very step at which it could cease to hold.

use crate::server::Server;
use crate::time::Part;
use crate::world::{Node, World, now};
use cluster::citus;
use cluster::fence::{self, Mode};
use cluster::leader::LeaseId;
use cluster::lsn::Lsn;
use cluster::name::{MemberName, Timeline};
use cluster::reached::{self, End};
use cluster::store::{self, Memory};
use cluster::time::Moment;
use cluster::view::{Announcement, ClusterView};
use dcs::Dcs;
use keeper::Look;

impl World {
    /// **one_acknowledger_at_a_time**: who acknowledges holds the newest term that was opened anywhere.
    /// **no_ack_after_own_deadline**: and its own deadline is ahead.
    /// **sync_key_never_trusts_more_than_setting**: a member that the sync key lets lead has the commit already.
    pub fn acknowledged(&self, server: &Server, commit: u64, end: u64) {
        let at = server.at;
        let page = server.page.look();
        let name = &self.nodes[at].name;
        if !matches!(page.mode, Mode::Open | Mode::Draining) || self.clock(at) >= page.deadline {
            self.violated(
                "no_ack_after_own_deadline",
                format!("{name} acknowledges commit {commit}, page {}, term {}", page.mode.word(), page.term),
            );
        }
        self.has_by_now(server);
        let opened = self.judge.borrow().opened;
        self.deposed_leader_acknowledges_nothing_new(server, commit, end);
        if let Some((token, other)) = opened.filter(|(token, other)| *token > page.token && *other != at)
            && !self.setting.bad_clocks
            && !(self.setting.deposes && self.has(other, commit, end))
        {
            let other = &self.nodes[other].name;
            self.violated(
                "one_acknowledger_at_a_time",
                format!("{name} acknowledges commit {commit} in term {} after {other} opened its fence in token {token}", page.term),
            );
        }
        if self.setting.sync {
            let key = self.judge.borrow().sync.clone().unwrap_or_default();
            let trusted = self.originals().filter(|(_, node)| node.name != *name && key.may_lead(&node.name));
            let has = |node: &Node| self.of_name(&node.name).any(|other| self.has(other, commit, end));
            let lacking: Vec<_> = trusted.filter(|(_, node)| !has(node)).map(|(_, node)| &node.name).collect();
            // The leader of the key may lead without any vote, its standbys with as many as the quorum asks for.
            let voters = lacking.iter().filter(|name| key.has_standby(name)).count();
            if voters > key.quorum as usize || voters < lacking.len() {
                let names = server.awaited.borrow().to_string();
                let how =
                    format!("{name} acknowledges commit {commit} (awaiting '{names}'), the sync key is {key:?}, and {lacking:?} lack it");
                self.violated("sync_key_never_trusts_more_than_setting", how);
            }
        }
        let mut judge = self.judge.borrow_mut();
        judge.acknowledged.insert(commit);
        judge.last_acknowledged = Some(self.now());
    }

    /// **deposed_leader_acknowledges_nothing_new**: what is acknowledged once another holds the key was confirmed before: that one has it. (The client is
    /// told late of what is there.)
    fn deposed_leader_acknowledges_nothing_new(&self, server: &Server, commit: u64, end: u64) {
        let judge = self.judge.borrow();
        let Some(leads) = judge.leads.filter(|leads| *leads != server.at && judge.term > server.page.look().token) else { return };
        drop(judge);
        if self.setting.sync && !self.has(leads, commit, end) {
            let (me, other) = (&self.nodes[server.at].name, &self.nodes[leads].name);
            self.violated(
                "deposed_leader_acknowledges_nothing_new",
                format!("{me} acknowledges commit {commit} in term {} although {other} leads and lacks it", server.page.look().term),
            );
        }
    }

    /// **bound_servers_confirm_nothing**: a server that has said its word by a bond confirms nothing to a server of a timeline that the deposed one may be on.
    ///
    /// The bond alone forbids only that a receiver begins. One that runs when it is written may confirm once more, above all one that is frozen and goes on: the
    /// word is said after it has ended, and with the position of then, so what it confirmed is in the word.
    pub fn bound_servers_confirm_nothing(&self, me: &Server, source: &Server) {
        let bond = self.bond(me.at).filter(|bond| self.judge.borrow().spoke_bound.get(&me.at) == Some(bond));
        if bond.is_some() && !self.bond_allows(me.at, source.at) {
            let (me, source) = (&self.nodes[me.at].name, &self.nodes[source.at].name);
            self.violated("bound_servers_confirm_nothing", format!("{me} confirms to {source} although it has said its word by {bond:?}"));
        }
    }

    fn has(&self, at: usize, commit: u64, end: u64) -> bool {
        let data = self.nodes[at].data.borrow();
        let Some(disk) = data.disk() else { return false };
        let count = disk.wal.upto(end);
        count > 0 && disk.wal.records[count - 1].commit == commit
    }

    fn lacks(&self, at: usize) -> Option<u64> {
        let data = self.nodes[at].data.borrow();
        let commits = data.disk().map(|disk| disk.wal.commits()).unwrap_or_default();
        self.judge.borrow().acknowledged.iter().filter(|commit| !commits.contains(commit)).min().copied()
    }

    /// **no_acknowledged_commit_lost_in_sync_mode**: every acknowledged commit is in the WAL of each server that becomes primary.
    pub fn primary_is_sound(&self, at: usize, how: &str) {
        if self.setting.sync
            && let Some(commit) = self.lacks(at)
        {
            self.violated(
                "no_acknowledged_commit_lost_in_sync_mode",
                format!("{} {how} without the acknowledged commit {commit}", self.nodes[at].name),
            );
        }
    }

    /// **at_most_one_promotion_per_term**: of two nodes. **one_server_per_timeline_number**: whatever became of the first.
    pub fn promoted(&self, at: usize, term: i64, timeline: u32) {
        let name = &self.nodes[at].name;
        let token = citus::order(self.judge.borrow().memory.making.generation, term);
        let before = self.judge.borrow_mut().promotions.insert(token, at);
        // The same node again: it crashed before its first checkpoint, and begins yet another timeline.
        if let Some(before) = before.filter(|before| *before != at) {
            self.violated(
                "at_most_one_promotion_per_term",
                format!("{name} is promoted in term {term}, as {} was", self.nodes[before].name),
            );
        }
        let first = self.judge.borrow_mut().timelines.insert(timeline, at);
        if let Some(first) = first {
            let first = &self.nodes[first].name;
            self.violated(
                "one_server_per_timeline_number",
                format!("{name}, promoted in term {term}, begins timeline {timeline} after {first} began one of that number"),
            );
        }
        self.primary_is_sound(at, &format!("is promoted in term {term}"));
    }

    /// This node has promised a leader not to take its key.
    pub fn promised(&self, at: usize, until: Moment) {
        let mut judge = self.judge.borrow_mut();
        let known = judge.promises.entry(at).or_default();
        *known = (*known).max(until);
    }

    /// **no_take_while_a_promise_binds**: a node that has promised sends no request to take the key, and opens no page for
    /// a new term, also where its server was restarted and remembers nothing.
    pub fn takes(&self, at: usize) {
        let until = self.judge.borrow().promises.get(&at).copied().unwrap_or_default();
        let now = self.clock(at);
        if now < until {
            let left = until.since(now).as_millis();
            self.violated("no_take_while_a_promise_binds", format!("{} takes, and its promise binds {left} ms more", self.nodes[at].name));
        }
    }

    /// **terms_grow**, in every page; and nobody opens an old term with time left.
    pub fn page_is_sound(&self, at: usize, before: Look, after: Look) {
        let is_open = |page: &Look| matches!(page.mode, Mode::Open | Mode::Draining);
        if !is_open(&after) {
            return;
        }
        let name = &self.nodes[at].name;
        if !is_open(&before) || after.token != before.token {
            self.takes(at);
        }
        if after.token < before.token {
            self.violated("terms_grow", format!("the page of {name} goes back from term {} to {}", before.term, after.term));
        }
        if (!is_open(&before) || after.token != before.token)
            && self.server(at).is_some_and(|server| !server.in_recovery.get() && server.ready.get())
        {
            self.primary_is_sound(at, &format!("opens its fence in term {}", after.term));
        }
        let opened = self.judge.borrow().opened;
        let ahead = self.clock(at) < after.deadline;
        match opened {
            Some((token, other))
                if other != at
                    && (token == after.token || token > after.token && ahead && !self.setting.bad_clocks && !self.setting.deposes) =>
            {
                let other = &self.nodes[other].name;
                self.violated(
                    "one_acknowledger_at_a_time",
                    format!("{name} opens its fence in term {} after {other} did in token {token}", after.term),
                );
            }
            Some((token, _)) if token >= after.token => {}
            _ => {
                let mut judge = self.judge.borrow_mut();
                judge.opened = Some((after.token, at));
                judge.leaders += 1;
            }
        }
    }

    /// **fence_shuts_before_etcd_lets_go**: whose lease runs out in etcd is past its own deadline already.
    pub fn fence_shuts_before_etcd_lets_go(&self, lease: LeaseId) {
        if self.setting.bad_clocks {
            return;
        }
        for at in 0..self.nodes.len() {
            let Some(server) = self.server(at) else { continue };
            let page = server.page.look();
            let clock = self.clock(at);
            // By the page alone: an invariant does not ask the rule that it judges. What stands on promises is judged by
            // no_take_while_a_promise_binds and one_acknowledger_at_a_time.
            if page.deadline > server.by_promises_until.get() && page.lease == lease.0 && page.mode != Mode::Closed && clock < page.deadline
            {
                let left = page.deadline.since(clock).as_micros();
                self.violated("fence_shuts_before_etcd_lets_go", format!("{} may still acknowledge for {left} us", self.nodes[at].name));
            }
        }
    }

    /// **terms_grow**, in etcd; and a sync key that is new trusts only those that have everything.
    pub fn keys_are_sound(&self) {
        let Ok(mut view) = now(self.etcd.load_view()) else { return };
        if !view.unreadable.is_empty() {
            self.violated("terms_grow", format!("keys can't be read: {:?}", view.unreadable));
        }
        // An etcd that went back is judged by what its keys do to the members, which do not believe it. One that went back by nothing that decisions
        // rest on is believed by a node that has begun since: the revision alone is not written down.
        let known = self.judge.borrow().memory_of_decisions();
        let went_back = store::judge(&known, &view).is_err();
        self.judge.borrow_mut().went_back = went_back;
        if went_back {
            return;
        }
        {
            let memory = &mut self.judge.borrow_mut().memory;
            store::complete(memory, &mut view);
            store::learn(memory, &view);
        }
        if let Some(leader) = &view.leader {
            let token = citus::order(view.store_generation(), leader.term.0);
            let known = self.judge.borrow().term;
            if token < known || leader.term != view.last_term() {
                self.violated("terms_grow", format!("term {} after {known}, last term {}", leader.term, view.last_term()));
            }
            if token > known {
                self.tell("etcd", &format!("{} leads in term {}", leader.name, leader.term));
            }
            let deposed = token > known && view.last_term.as_ref().is_some_and(|last| last.value.how == "deposed");
            let mut judge = self.judge.borrow_mut();
            judge.deposed += u64::from(deposed);
            (judge.term, judge.leads) = (token, self.number_of(&leader.name));
        }
        self.sync_key_is_sound(&view);
    }

    /// **a_word_is_heeded**: keys that went back are believed by nobody who reads in them that another member knows of more. Where nobody
    /// has said so, one that was away all the time can't know: what comes of that is the documented limit.
    pub fn believes(&self, at: usize, view: &ClusterView) {
        if !self.judge.borrow().went_back {
            return;
        }
        let knows_more = |known: &&Memory| known.making.generation >= view.store_generation() && known.term > view.last_term();
        let words = view.members.iter().filter_map(|(name, entry)| Some((name, store::published(entry)?)));
        if let Some((name, known)) = words.clone().find(|(_, known)| knows_more(known)) {
            let how =
                format!("{} believes term {}, and {name} says that it knows of {}", self.nodes[at].name, view.last_term(), known.term);
            self.violated("a_word_is_heeded", how);
        }
        let now = self.now();
        self.judge.borrow_mut().unwarned.get_or_insert((now, at));
    }

    /// Of a node of which there is a copy, or of the copy: what it has by now may have been counted under their name.
    pub fn has_by_now(&self, server: &Server) {
        if self.setting.copies && self.is_one_of_two(server.at) {
            let (timeline, lsn) = server.position(self);
            let mut judge = self.judge.borrow_mut();
            judge.had = judge.had.max(End { timeline, lsn });
        }
    }

    /// The node of this name, and the copy that goes by it. Which of them confirmed is known by how far it came, not by the name.
    fn of_name(&self, name: &MemberName) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(move |at| self.nodes[*at].name == *name)
    }

    fn is_one_of_two(&self, at: usize) -> bool {
        self.nodes.get(self.setting.nodes).is_some_and(|copy| copy.name == self.nodes[at].name)
    }

    /// A word under a name that two disks have. Where this one has less than the other had, and less was not known of it, nobody can tell: the
    /// documented limit (docs/failure-modes.md).
    fn is_told_from_its_copy(&self, at: usize, view: &ClusterView, word: &Announcement) {
        let end = End { timeline: word.timeline, lsn: word.lsn };
        let has_less = self.setting.copies && self.is_one_of_two(at) && end < self.judge.borrow().had;
        if has_less && reached::lost_by(view, &self.nodes[at].name, end).is_none() {
            let now = self.now();
            self.judge.borrow_mut().replaced.get_or_insert(now);
        }
    }

    /// A copy is thrown away. If it led, its timeline may be with nobody else: the documented limit.
    pub fn copy_is_thrown_away(&self, at: usize) {
        let led = self.judge.borrow().promotions.values().any(|promoted| *promoted == at);
        if led || self.server(at).is_some_and(|server| !server.in_recovery.get()) {
            let now = self.now();
            self.judge.borrow_mut().replaced.get_or_insert(now);
        }
    }

    fn sync_key_is_sound(&self, view: &ClusterView) {
        let key = view.sync.as_ref().map(|sync| sync.value.clone());
        if !self.setting.sync || self.judge.borrow().sync == key {
            return;
        }
        self.judge.borrow_mut().sync.clone_from(&key);
        let key = key.unwrap_or_default();
        // One that is being copied has no data to lead with; what it gets is the leader's.
        // A server that has less than its name had is refused, whatever the key says of the name.
        let is_told = |node: &Node| {
            let end = node.data.borrow().disk().map(|disk| End { timeline: Timeline(disk.wal.timeline), lsn: Lsn(disk.wal.end()) });
            self.setting.copies && end.is_some_and(|end| reached::lacked_by(view, &node.name, end).is_some())
        };
        let voters = self.originals().map(|(_, node)| node).filter(|node| key.has_standby(&node.name) && !is_told(node));
        let of_disks = |node: &Node| {
            let disks = self.of_name(&node.name).filter_map(|at| self.nodes[at].data.borrow().disk().map(|disk| disk.wal.commits()));
            disks.reduce(|one, other| &one | &other)
        };
        let has: Vec<_> = voters.filter_map(of_disks).collect();
        let judge = self.judge.borrow();
        let missing = |commit: &&u64| has.iter().filter(|commits| !commits.contains(commit)).count() > key.quorum as usize;
        let lost = judge.acknowledged.iter().filter(missing).min().copied();
        drop(judge);
        if let Some(commit) = lost {
            let how = format!("more than {} of the standbys in {key:?} lack the acknowledged commit {commit}", key.quorum);
            self.violated("sync_key_never_trusts_more_than_setting", how);
        }
    }

    /// **never_delete_the_only_best_copy**: what is about to be deleted is whole somewhere else.
    pub fn before_deletion(&self, at: usize, how: &str) {
        if !self.setting.sync || self.judge.borrow().acknowledged.is_empty() || self.lacks(at).is_some() {
            return;
        }
        if !(0..self.nodes.len()).any(|other| other != at && self.lacks(other).is_none()) {
            let name = &self.nodes[at].name;
            self.violated("never_delete_the_only_best_copy", format!("{how} on {name}, which alone has every acknowledged commit"));
        }
    }

    /// **stands_only_when_it_receives_no_more**: no receiver runs when a standby sends its word.
    pub fn announces(&self, me: &Server, word: &Announcement) {
        if let Ok(view) = now(self.etcd.load_view()) {
            self.is_told_from_its_copy(me.at, &view, word);
        }
        if let Some(bond) = self.bond(me.at).filter(|_| word.deposes) {
            self.judge.borrow_mut().spoke_bound.insert(me.at, bond);
        }
        if word.stands && !word.primary && me.receiver_running(self) {
            self.violated(
                "stands_only_when_it_receives_no_more",
                format!("{} says {} while its receiver runs", self.nodes[me.at].name, word.lsn),
            );
        }
    }

    /// A standby that said for this vacancy what it has must not receive more: counted, see docs/simulation.md.
    pub fn stood_and_confirms(&self, me: &Server) {
        let Ok(view) = now(self.etcd.load_view()) else { return };
        let word = view.announcements.get(&self.nodes[me.at].name);
        if view.leader.is_none() && word.is_some_and(|word| word.value.after == view.last_term() && word.value.stands) {
            self.judge.borrow_mut().confirmed_after_standing += 1;
        }
    }

    /// **no_forked_history_is_streamed**: a walsender let pass what has the same timeline by number only.
    pub fn forked_stream(&self, me: usize, up: usize) {
        let (me, up) = (&self.nodes[me].name, &self.nodes[up].name);
        self.violated(
            "no_forked_history_is_kept",
            format!("{me} streams from {up}, whose WAL under the same timeline number is another one"),
        );
    }

    /// **liveness_once_healed**: one primary with an open fence, everybody else streams from it.
    pub fn unhealthy(&self) -> Option<String> {
        let Ok(view) = now(self.etcd.load_view()) else { return Some("etcd is empty".to_owned()) };
        let Some(leader) = &view.leader else { return Some("nobody leads".to_owned()) };
        let Some(at) = self.number_of(&leader.name) else { return Some("a stranger leads".to_owned()) };
        let Some(server) = self.serving(at).filter(|server| !server.in_recovery.get()) else {
            return Some(format!("{} leads and is no primary", leader.name));
        };
        let page = server.page.look();
        if page.term != leader.term.0 || !fence::may_acknowledge(server.page.fence(), self.clock(at)) {
            return Some(format!("the fence of {} is not open", leader.name));
        }
        for (other, node) in self.originals().filter(|(other, _)| *other != at) {
            let streams = self
                .serving(other)
                .is_some_and(|server| server.in_recovery.get() && server.streaming.get() && server.upstream.get() == Some(at));
            if !streams {
                return Some(format!("{} does not stream from {}", node.name, leader.name));
            }
            if !self.time.lives((other, Part::Arbiter)) {
                return Some(format!("{} has no arbiter", node.name));
            }
        }
        None
    }
}
