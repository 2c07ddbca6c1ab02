mod data;
mod explained;
mod moves;
mod placing;
mod properties;
mod rollouts;
mod world;
