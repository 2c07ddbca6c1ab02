//! Clusters of simulated machines whose power is lost, whose network is cut, whose daemons are killed.
//!
//! They need root. `make bed` runs all of them, the long ones too.

mod machines;
