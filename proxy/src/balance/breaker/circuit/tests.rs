//! Tables and properties of the service circuit.
