//! Circuits as workers and the admin thread use them.
