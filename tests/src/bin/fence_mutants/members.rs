//! The guards of depositions, instances, voters, marks and Citus, and how each is taken out.

use super::mutants::{Mutant, TENURE};

const ORIGIN: &str = "extension/src/fence/origin.rs";
const REACH: &str = "extension/src/fence/reach.rs";
const INSTANCE: &str = "cluster/src/instance.rs";
const STANDING: &str = "cluster/src/race.rs";
const MARK: &str = "cluster/src/mark.rs";
const BOND: &str = "extension/src/fence/bond.rs";
const DEPOSITION: &str = "cluster/src/deposition.rs";
const DUTY: &str = "cluster/src/duty/mod.rs";
const SPOKEN: &str = "a_voter_that_has_spoken_in_a_vacancy_promises_nothing_until_another_leads";
const LACKS: &str = "a_voter_that_lacks_what_the_others_confirmed_votes_and_does_not_lead";

/// Those of who may speak, lead and go by a name.
pub const OF_MEMBERS: &[Mutant] = &[
    Mutant {
        name: "bond-promise",
        guard: "failsafe_mode: who is bound by a deposition promises nothing",
        file: TENURE,
        from: "self.deposing.load(SeqCst) != 0 || self.spoken",
        to: "self.spoken",
        stories: &[("deposition", "a_voter_that_is_bound_does_not_receive_again_until_its_word_is_called_off")],
    },
    Mutant {
        name: "word-promise",
        guard: "failsafe_mode: who has said a word that counts in a vacancy promises nothing",
        file: TENURE,
        from: " || self.spoken.load(SeqCst) != 0;",
        to: ";",
        stories: &[("failsafe", SPOKEN)],
    },
    Mutant {
        name: "word-kept",
        guard: "nor once its server was started again",
        file: "keeper/src/race.rs",
        from: "        if let Err(fault) = self.host.keep_word(Some(spoken)).await {",
        to: "        if let Err(fault) = self.host.keep_word(None).await {",
        stories: &[("failsafe", SPOKEN)],
    },
    Mutant {
        name: "bond-receiver",
        guard: "who has deposed a leader does not receive from it",
        file: BOND,
        from: "Ok(Some(bond)) if deposition::may_receive(&bond, theirs) => return system,",
        to: "Ok(Some(_)) => return system,",
        stories: &[("deposition", "a_voter_that_is_bound_does_not_receive_again_until_its_word_is_called_off")],
    },
    Mutant {
        name: "voter-hears",
        guard: "nobody is deposed whom another voter hears: too few have spoken, and that one says so",
        file: DEPOSITION,
        from: "    if let Some(name) = voters().find(|name| hears(name)) {\n        return on(Reason::VoterHears(name.clone(), leader.name.clone()));\n    }\n    let mut heard = 0;",
        to: "    let _ = hears;\n    let mut heard = sync.quorum as usize;",
        stories: &[("deposition", "one_voters_ears_depose_nobody_whom_another_voter_hears")],
    },
    Mutant {
        name: "may-speak",
        guard: "a voter that lacks what the others have confirmed says its word too",
        file: DEPOSITION,
        from: "        Err(Reason::LacksConfirmed { .. }) => Ok(()),\n",
        to: "",
        stories: &[("tables", LACKS)],
    },
    Mutant {
        name: "may-not-stand",
        guard: "and says in it that it does not stand",
        file: DEPOSITION,
        from: "        stands: stands.is_ok(),",
        to: "        stands: stands.is_ok() || me.lsn <= me.lsn,",
        stories: &[("tables", LACKS)],
    },
    Mutant {
        name: "words-counted",
        guard: "and that word counts for the one that takes the key",
        file: DEPOSITION,
        from: "word.after == term && word.deposes;",
        to: "word.after == term && word.deposes && word.stands;",
        stories: &[("tables", LACKS)],
    },
    Mutant {
        name: "loss-news",
        guard: "a leader that comes to be lost between two tries is news",
        file: "cluster/src/hearing.rs",
        from: "(ears == Ears::Lost || before != Ears::Unsure)",
        to: "(before != Ears::Unsure)",
        stories: &[("tables", "a_loss_is_news_whenever_the_time_makes_it_one")],
    },
    Mutant {
        name: "instance",
        guard: "a name that another instance goes by is left alone",
        file: INSTANCE,
        from: "(Some(theirs), Some(ours)) if theirs != ours => {",
        to: "(Some(theirs), Some(ours)) if theirs != ours && theirs == ours => {",
        stories: &[("copies", "a_lease_worker_leaves_a_name_alone_that_another_instance_took")],
    },
    Mutant {
        name: "restarted-voter",
        guard: "a standby that does not know the end of its WAL says nothing",
        file: STANDING,
        from: "    if !me.end_known && !me.primary {",
        to: "    if !me.end_known && !me.primary && me.streaming {",
        stories: &[("voters", "a_voter_that_restarts_speaks_only_when_it_knows_all_that_it_confirmed")],
    },
    Mutant {
        name: "coordinator-making",
        guard: "Citus: a coordinator of keys that were made again is newer than every one before, whatever its number",
        file: ORIGIN,
        from: "self.coordinator_term.fetch_max(term, SeqCst);",
        to: "self.coordinator_term.fetch_max(term & ((1 << 47) - 1), SeqCst);",
        stories: &[("lost_store", "a_worker_serves_the_coordinator_of_new_keys_and_refuses_the_one_before")],
    },
    Mutant {
        name: "gate-copy",
        guard: "Citus: COPY FROM waits while a planned change of a worker is under way, and is waited for",
        file: REACH,
        from: "T_CopyStmt => (*node.cast::<pg_sys::CopyStmt>()).is_from,",
        to: "T_CopyStmt => false,",
        stories: &[
            ("fence_gate", "a_closed_gate_holds_what_begins_and_counts_what_is_under_way"),
            ("fence_gate", "who_waits_at_the_gate_can_be_cancelled_and_the_gate_opens_by_itself"),
        ],
    },
    Mutant {
        name: "mark",
        guard: "data of a cluster is never unmanaged",
        file: MARK,
        from: "    match mark {\n        None if settings.scope.is_empty()",
        to: "    match mark.filter(|_| !settings.scope.is_empty()) {\n        None if settings.scope.is_empty()",
        stories: &[("by_hand", "a_deposed_leader_that_is_started_by_hand_acknowledges_nothing")],
    },
    Mutant {
        name: "foreign-server",
        guard: "a server that does not load the library is stopped by the arbiter that finds it",
        file: MARK,
        from: "        None => Some(\"the library pg_tenure is not loaded in it, so nothing fences its commits\".to_owned()),",
        to: "        None => None,",
        stories: &[("by_hand", "a_server_without_the_library_is_stopped_by_the_arbiter_that_finds_it")],
    },
    Mutant {
        name: "answered",
        guard: "who is given the key has answered just now",
        file: DUTY,
        from: "sync.has_standby(name) && local.answered.contains(name) && has_what_it_had",
        to: "sync.has_standby(name) && has_what_it_had",
        stories: &[
            ("voters", "in_synchronous_mode_a_crash_is_not_handed_over_to_a_silent_standby"),
            ("voters", "in_quorum_mode_a_crash_is_not_handed_over_to_silent_voters"),
        ],
    },
];
