//! Statements that act outside of their transaction: what they did to files, or on another server, stays done where the commit is refused.
//!
//! So they are judged before they act. Everything else that a statement does is undone by its own abort, or is judged at each of the
//! commits that it makes: docs/fence-proof.md has the table of what was tried. The deadline may still pass while such a statement
//! works: then its commit is refused, and what is left is what a crash at that moment would have left.

use pgrx::pg_sys::NodeTag;

/// What such a statement does, as the refusal says it; None where a statement of this kind is undone by its abort.
pub(super) fn what(tag: NodeTag) -> Option<&'static str> {
    Some(match tag {
        // Directories are made, and removed, before the commit.
        NodeTag::T_CreatedbStmt => "create the database",
        NodeTag::T_DropdbStmt => "drop the database",
        // SET TABLESPACE copies the files. Of its other forms none is worth a second look.
        NodeTag::T_AlterDatabaseStmt => "alter the database",
        NodeTag::T_CreateTableSpaceStmt => "create the tablespace",
        NodeTag::T_DropTableSpaceStmt => "drop the tablespace",
        // Slots are made, changed and dropped at the publisher.
        NodeTag::T_CreateSubscriptionStmt => "create the subscription",
        NodeTag::T_AlterSubscriptionStmt => "alter the subscription",
        NodeTag::T_DropSubscriptionStmt => "drop the subscription",
        _ => return None,
    })
}
