mod data;
mod explained;
mod moves;
mod placing;
mod properties;
mod replicas;
mod rollouts;
mod world;
