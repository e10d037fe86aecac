//! How this node is: what was seen of it and of the others, from turn to turn, and what a sick leader does.

use crate::node::Node;
use cluster::health::{self, Cause, Course, Leading, Mode, Rules, Sick, Symptom, Vitals};
use cluster::leader::Term;
use cluster::local::GivesWay;
use cluster::lsn::Lsn;
use cluster::name::MemberName;
use cluster::time::Moment;
use cluster::view::ClusterView;
use std::collections::BTreeSet;
use std::time::Instant;

/// What is remembered from turn to turn.
#[derive(Debug, Clone)]
pub struct Watching {
    /// The moments of this room are counted from here.
    began: Instant,
    course: Course,
    /// In which term this node leads, and since when this arbiter has seen it.
    leads: Option<(Term, Instant)>,
    /// When it last tried to give way, in the present term.
    tried: Option<Instant>,
    /// That try is under way.
    trying: bool,
    told: Option<Cause>,
    /// The last sentence.
    said: Option<String>,
}

impl Default for Watching {
    fn default() -> Watching {
        Watching { began: Instant::now(), course: Course::default(), leads: None, tried: None, trying: false, told: None, said: None }
    }
}

/// How the node is now.
#[derive(Debug, Default)]
pub struct Health {
    /// What has lasted.
    pub lasting: Vec<Symptom>,
    /// Seen from outside of the server, for the member key; None where nobody looks.
    pub outside: Option<Vitals>,
    own: Vitals,
}

impl Watching {
    fn now(&self) -> Moment {
        Moment(self.began.elapsed())
    }

    /// Looks at everybody.
    pub fn look(&mut self, node: &Node, view: &ClusterView) -> Health {
        let rules = Rules::of(&node.dynamic(view));
        let name = &node.config.name;
        let term = view.leader_if(name).map(|leader| leader.term);
        if self.leads.map(|(term, _)| term) != term {
            self.leads = term.map(|term| (term, Instant::now()));
            self.tried = None;
        }
        let outside = node.vitals.seen().filter(|_| rules.mode != Mode::Off);
        let Some(seen) = &outside else {
            self.course = Course::default();
            return Health::default();
        };
        // The worker says it by way of its key, which needs neither the disk nor a session.
        let inside = view.members.get(name).and_then(|entry| entry.member.tenure.as_ref()?.vitals.clone()).unwrap_or_default();
        let own = inside.with_outside(seen);
        let now = self.now();
        self.course.look(now, view, name, &own, &rules);
        Health { lasting: self.course.lasting(now, name, &own, &rules), outside, own }
    }

    /// Judges a leader, tells what is new, and gives the sentence for the member key and the way to be gone.
    pub fn judge(
        &mut self,
        node: &Node,
        view: &ClusterView,
        health: &Health,
        flushed: Option<Lsn>,
        answered: &BTreeSet<MemberName>,
        holders_idle: bool,
    ) -> (Option<String>, Option<GivesWay>) {
        // What a change does to the server is no news of it, and why the next try must wait is none while this one may succeed.
        if self.trying && self.leads.is_some() {
            return (self.said.clone(), None);
        }
        let rules = Rules::of(&node.dynamic(view));
        let sick = self.leads.filter(|_| !view.is_standby_cluster()).and_then(|(_, since)| {
            let tried = self.tried.map(|at| at.elapsed());
            let leading = Leading { name: &node.config.name, for_long: since.elapsed(), flushed, answered, tried, holders_idle };
            health::judge(view, &self.course, self.now(), &health.own, &leading, &rules)
        });
        let words = || health.lasting.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let said = match &sick {
            Some(sick) => Some(sick.sentence(rules.mode)),
            None => (!health.lasting.is_empty()).then(words),
        };
        let cause = Cause::of(&health.lasting, sick.as_ref(), rules.mode);
        if self.told != cause {
            match &said {
                Some(said) => tracing::warn!("this node is sick: {said}"),
                None => tracing::info!("this node is well again"),
            }
            self.told = cause;
        }
        self.said.clone_from(&said);
        let way = match sick {
            Some(Sick { what, way: Ok(way), .. }) if rules.mode == Mode::Act => Some(GivesWay { what, way }),
            _ => None,
        };
        (said, way)
    }

    /// Those who hold the connections of a leader that has none left: has none of them got anything done? False where nobody knows.
    pub async fn holders_idle(&self, node: &Node, view: &ClusterView, health: &Health) -> bool {
        if self.leads.is_none() || !health.lasting.contains(&Symptom::Slots) {
            return false;
        }
        let asked = node.sql.clients_idle_for(Rules::of(&node.dynamic(view)).after).await;
        asked.unwrap_or_else(|why| {
            tracing::debug!("ask what those who hold the connections do: {why:#}");
            false
        })
    }

    /// It begins to give way. Whatever comes of it, it is not tried again at once.
    pub fn tries(&mut self) {
        self.tried = Some(Instant::now());
        self.trying = true;
    }

    /// Whatever came of the try, it is over.
    pub fn ends(&mut self) {
        self.trying = false;
    }
}
