//! What can be done with a slot, and why one is dropped.

use super::said::LogicalSlot;
use crate::lsn::Lsn;
use std::fmt;

/// Why a slot is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyDrop {
    /// It was the cluster's own and is wanted no more.
    NotWanted,
    /// Its WAL is gone.
    Lost,
    /// It reserves nothing.
    ReservesNothing,
    /// It was left from when this node was primary and holds rows back for nobody.
    HoldsRowsBack,
    /// A logical slot that a standby can't use: left from when this node was primary.
    LeftOver,
    /// It is not what the leader's slot of this name is.
    NotTheSame,
    /// The copy that it kept WAL for takes too long for the room that is left here.
    CopyTooLong,
}

impl fmt::Display for WhyDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WhyDrop::NotWanted => "it is wanted no more",
            WhyDrop::Lost => "its WAL is gone",
            WhyDrop::ReservesNothing => "it reserved no WAL",
            WhyDrop::HoldsRowsBack => "it was left from when this node was primary, and held rows back",
            WhyDrop::LeftOver => "it was left from when this node was primary",
            WhyDrop::NotTheSame => "the leader's slot of this name is another one",
            WhyDrop::CopyTooLong => "it held back more WAL for a copy that is being made than there is room for",
        })
    }
}

/// One thing to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotStep {
    /// Drop an unused slot.
    Drop {
        /// Which.
        name: String,
        /// Why.
        why: WhyDrop,
    },
    /// Make a physical slot that reserves WAL from now on.
    CreatePhysical {
        /// Its name.
        name: String,
    },
    /// Make a logical slot on the primary.
    CreateLogical {
        /// Its name.
        name: String,
        /// In this database.
        database: String,
        /// With this plugin.
        plugin: String,
        /// As a failover slot (PostgreSQL 17).
        failover: bool,
    },
    /// Move an unused slot forward.
    Advance {
        /// Which.
        name: String,
        /// To here.
        to: Lsn,
        /// A logical one: decoding may take its time.
        logical: bool,
    },
    /// Copy a logical slot of the leader, as a temporary one.
    Copy {
        /// Its name.
        name: String,
        /// What the leader says of it.
        from: LogicalSlot,
    },
    /// The copy is safe: make it permanent (where it is temporary) and remember that.
    Trust {
        /// Which.
        name: String,
        /// It is still temporary.
        temporary: bool,
    },
    /// The leader has stopped to keep what the copy needs: it counts as new.
    Distrust {
        /// Which.
        name: String,
    },
    /// A permanent slot is not as it should be, and only a person can put that right.
    Tell {
        /// Which.
        name: String,
        /// What is wrong and what to do.
        what: String,
    },
}
