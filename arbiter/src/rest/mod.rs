//! REST.
pub mod outcome;
