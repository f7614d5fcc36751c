//! Properties of the whole graph.
