//! Volumes as their users know them: directories that are captured, restored, changed, and captured again.

mod collecting;
mod crashes;
mod fetching;
mod places;
mod sealing;
mod trees;
mod verifying;
