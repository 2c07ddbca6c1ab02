//! The reconciler against a small engine of our own, in a time of our own.

mod rules;
mod simulation;
mod world;
