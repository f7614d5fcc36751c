//! Path templates without configuration.
