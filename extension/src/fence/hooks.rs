//! The hooks that were there before ours: each of ours calls the one in whose place it is.

use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::c_int;

unsafe extern "C-unwind" {
    // pgrx binds neither the variable nor its type. `Port` stays opaque.
    pub(super) static mut ClientAuthentication_hook: AuthenticationHook;
}

pub(super) type AuthenticationHook = Option<unsafe extern "C-unwind" fn(port: *mut pg_sys::Port, status: c_int)>;

thread_local! {
    pub(super) static PREVIOUS: Cell<Previous> = const { Cell::new(Previous { utility: None, executor_start: None, authentication: None, planner: None, object_access: None }) };
}

/// The hooks that were there before ours.
#[derive(Clone, Copy)]
pub(super) struct Previous {
    pub utility: pg_sys::ProcessUtility_hook_type,
    pub executor_start: pg_sys::ExecutorStart_hook_type,
    pub authentication: AuthenticationHook,
    /// On a Citus server only, as the next.
    pub planner: pg_sys::planner_hook_type,
    pub object_access: pg_sys::object_access_hook_type,
}
