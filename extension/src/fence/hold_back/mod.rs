//! A logical walsender does not run ahead of those who may take over: a change leaves for its subscriber once the standbys have
//! it. Otherwise a subscriber could know of commits that the next primary has never seen, and would then pass over what is
//! committed there at the same positions, without a word.
//!
//! PostgreSQL 17 can be told so by name (`synchronized_standby_slots`, all of which it then awaits, dead or alive). Here it is
//! the synchronous standbys, where commits wait for any; else, where `hold_back_logical` is on, every member that may take over
//! and streams at this moment. Where it is off, nobody.
//!
//! [`walsender`] stands between a walsender and its socket, [`by_sql`] does the same for slots that are read by SQL, [`upstream`] for what subscriptions of this server confirm.

pub mod by_sql;
mod confirmed;
pub mod upstream;
pub mod walsender;
