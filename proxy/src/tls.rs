//! TLS on the data path. So far only the look at a ClientHello, for connections that pass through encrypted.

pub mod hello;
